"""Train a network: `python -m jaxresnet.train --config digits`.

If it is started again on the same workdir, it resumes the run. For a finished run it prints the result.
"""

from collections.abc import Sequence
from pathlib import Path

from jaxresnet.config.flags import (
    ArgumentParser,
    add_config_arguments,
    add_device_argument,
    config_from_arguments,
)
from jaxresnet.config.schema import Config
from jaxresnet.data.sources import open_source
from jaxresnet.errors import run_command
from jaxresnet.machine.huge_pages import use_huge_pages
from jaxresnet.plan import resolve
from jaxresnet.runs.workdir import Workdir


def main(argv: Sequence[str]) -> None:
    """Run the command with the arguments `argv`."""
    parser = ArgumentParser(prog="python -m jaxresnet.train", description=__doc__)
    parser.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="folder of the run (default: runs/ and the config file's name, without --config runs/paper, or runs/ and "
        "the name of another data set); a run in it is resumed, with its own configuration if --config is not given",
    )
    add_device_argument(parser)
    add_config_arguments(parser)
    args = parser.parse(argv)
    if args.config is None and args.workdir is not None and (args.workdir / "config.toml").is_file():
        args.config = args.workdir / "config.toml"
    config = config_from_arguments(args)
    source = f"{args.config}: " if args.config else ""
    folder = Workdir(args.workdir or Path("runs") / default_name(args.config, config))
    plan = resolve(config, open_source(config.data, source).info, source)
    folder.check(plan)

    # Imported here, so that --help and a wrong flag are answered at once.
    from jaxresnet.machine.workarounds import own_process

    own_process()
    from jaxresnet.fit import fit
    from jaxresnet.machine.cache import use_compilation_cache
    from jaxresnet.machine.devices import start_devices
    from jaxresnet.machine.signals import StopSignal

    mesh = None
    with StopSignal("stopping: saving first; a second signal ends the run at once, unsaved") as stop:
        if folder.finished(config.epochs) is None:
            mesh = start_devices(args.device, chosen_cpu_devices(config, folder.config()))
            use_compilation_cache()
        fit(config, folder.path, mesh, stop)


def chosen_cpu_devices(config: Config, saved: Config | None) -> int:
    """The number in `config`; else that of the run so far, `saved`, on which its bits depend; else automatic."""
    from jaxresnet.machine.devices import automatic_cpu_devices

    recorded = saved.cpu_devices if saved else 0
    return config.cpu_devices or recorded or automatic_cpu_devices(config.batch_size)


def default_name(file: Path | None, config: Config) -> str:
    """The name of the folder of a run: that of its configuration file, or else of what it trains on."""
    if file is not None:
        return file.stem
    return "paper" if config.data.name == Config().data.name else config.data.name


if __name__ == "__main__":
    use_huge_pages()
    run_command(main)
