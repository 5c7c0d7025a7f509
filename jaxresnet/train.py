"""Train a network: `python -m jaxresnet.train --config digits`.

If it is started again on the same workdir, it resumes the run. For a finished run it prints the result.
"""

if __name__ == "__main__":  # first, because the imports below take half a second
    from jaxresnet.errors import begin_command
    from jaxresnet.machine.huge_pages import use_huge_pages

    begin_command()
    use_huge_pages()

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path

from jaxresnet.config.files import naming
from jaxresnet.config.flags import (
    ArgumentParser,
    add_config_arguments,
    add_device_argument,
    add_distributed_arguments,
    config_from_arguments,
    setting_arguments,
)
from jaxresnet.config.schema import Config, setting_values
from jaxresnet.data.sources import open_source
from jaxresnet.errors import UserError, run_command
from jaxresnet.machine.hosts import find_peers
from jaxresnet.machine.hosts.launch import read_launch
from jaxresnet.machine.hosts.peers import Peers
from jaxresnet.machine.memory import require_address_space
from jaxresnet.machine.workarounds import own_process
from jaxresnet.plan import resolve
from jaxresnet.runs.workdir import FREE_SETTINGS, Workdir
from jaxresnet.trained.initial import with_initial_model


def main(argv: Sequence[str]) -> None:
    """Run the command with the arguments `argv`."""
    parser = ArgumentParser(prog="python -m jaxresnet.train", description=__doc__)
    parser.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="folder of the run (default: runs/ and the config file's name, without --config runs/paper, or runs/ and "
        "the name of another data set, or runs/finetuned with --init); a run in it is resumed, with its own "
        "configuration if --config is not given",
    )
    add_device_argument(parser)
    add_distributed_arguments(parser)
    add_config_arguments(parser)
    args = parser.parse(argv)
    with find_peers(read_launch(vars(args))) as peers:
        train_command(args, peers)


def train_command(args: argparse.Namespace, peers: Peers) -> None:
    """Train as the parsed arguments say, together with `peers`."""
    own = None
    if args.config is None and args.workdir is not None:
        args.config = own = own_config(args.workdir, setting_arguments(args))
    config = config_from_arguments(args)
    require_address_space(3)
    own_process()
    folder = Workdir(args.workdir or Path("runs") / default_name(args.config, config))
    config = with_initial_model(config, folder)
    # The data may lie somewhere else on each computer.
    peers.require_same({k: v for k, v in setting_values(config).items() if k != "data.dir"}, 2)
    # What is wrong is told before images are read.
    facts = folder.facts(config)
    with naming(args.config, setting_arguments(args)):
        source = open_source(config.data)
        resolve(config, facts or source.outline)

    # Imported here, so that --help and a wrong flag are answered at once.
    from jaxresnet.fit import fit
    from jaxresnet.machine.cache import use_compilation_cache
    from jaxresnet.machine.devices import start_devices
    from jaxresnet.machine.signals import StopSignal

    mesh = None
    notice = "stopping: saving first; a second signal ends the run at once, unsaved"
    with StopSignal(notice if peers.first else "") as stop:
        finished = folder.finished(config.epochs) is not None
        peers.require_same({"a finished run in the workdir": finished})  # else some would wait for the others
        if not finished:
            # In the run's own configuration, their number is not a wish but a record.
            recorded = own is not None and "cpu_devices" not in setting_arguments(args)
            asked = config.replace({"cpu_devices": 0}) if recorded else config
            cpu_devices = peers.told(chosen_cpu_devices(asked, folder.config(), peers.count))
            mesh = start_devices(args.device, cpu_devices // peers.count)
            use_compilation_cache()
        fit(config, folder.path, mesh, stop, source, peers)


def own_config(workdir: Path, given: Collection[str]) -> Path | None:
    """The file with the configuration of the run in `workdir`, if there is one.

    `given` are the names of the settings that flags set. Raises UserError (exit code 2) if there is no run and the
    flags only say how to go on with one: then the folder's name is mistyped, rather than the paper's recipe meant.
    """
    file = workdir / "config.toml"
    if file.exists():
        return file
    if Workdir(workdir).config() is None and all(name.startswith(FREE_SETTINGS) for name in given):
        raise UserError(
            f"no run in {workdir} to resume: to start one there, name a --config, such as paper", 2
        )
    return None


def chosen_cpu_devices(config: Config, saved: Config | None, processes: int = 1) -> int:
    """The number in `config`; else that of the run so far, `saved`, on which its bits depend; else automatic.

    It is that of all processes together. Raises UserError (exit code 2) if `config` has another number than a multiple
    of the processes, or they cannot divide its batches.
    """
    from jaxresnet.machine.devices import automatic_cpu_devices

    recorded = saved.cpu_devices if saved else 0
    if config.batch_size % processes:
        raise UserError(
            f"batch_size: expected a multiple of the {processes} processes, found {config.batch_size}", 2
        )
    if config.cpu_devices % processes:
        raise UserError(
            f"cpu_devices: expected a multiple of the {processes} processes, found {config.cpu_devices}", 2
        )
    recorded = 0 if recorded % processes else recorded
    automatic = processes * automatic_cpu_devices(config.batch_size // processes)
    return config.cpu_devices or recorded or automatic


def default_name(file: Path | None, config: Config) -> str:
    """The name of the folder of a run: that of its configuration file, or else of what it does or trains on."""
    if file is not None:
        return file.stem
    if config.init:
        return "finetuned"
    return "paper" if config.data.name == Config().data.name else config.data.name


if __name__ == "__main__":
    run_command(main)
