"""Train a network: `python -m jaxresnet.train --config configs/digits.toml`.

Started again on the same workdir, it resumes; on a finished run it prints the result.
"""

from collections.abc import Sequence
from pathlib import Path

from jaxresnet.config import ArgumentParser, add_config_arguments, add_device_argument, config_from_arguments
from jaxresnet.errors import run_command
from jaxresnet.memory import use_huge_pages


def main(argv: Sequence[str]) -> None:
    """Run the command with the arguments `argv`."""
    parser = ArgumentParser(prog="python -m jaxresnet.train", description=__doc__)
    parser.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="folder of the run (default: runs/ and the config file's name); a run in it is resumed, with its "
        "own configuration if --config is not given",
    )
    add_device_argument(parser)
    add_config_arguments(parser)
    args = parser.parse(argv)
    if args.config is None and args.workdir is not None and (args.workdir / "config.toml").is_file():
        args.config = args.workdir / "config.toml"
    config = config_from_arguments(args)
    workdir = args.workdir or Path("runs") / (args.config.stem if args.config else "paper")

    from jaxresnet.loop import fit  # here, so that --help and a wrong flag are answered at once

    fit(config, workdir, args.device)


if __name__ == "__main__":
    use_huge_pages()
    run_command(main)
