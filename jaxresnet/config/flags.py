"""Command-line flags: one for each setting, under the names that the TOML files use.

`learning_rate` under `[optimizer]` is `--optimizer.learning-rate`. Files and flags pass the same validation and give
the same errors.
"""

import argparse
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

from jaxresnet.config.files import find_config, load_config, toml_value
from jaxresnet.config.schema import Config, setting_fields
from jaxresnet.errors import UserError

_SYNONYMS = {
    "lr": "--optimizer.learning-rate",
    "rate": "--optimizer.learning-rate",
    "wd": "--optimizer.weight-decay",
    "decay": "--optimizer.weight-decay",
    "bs": "--batch-size",
    "batch": "--batch-size",
    "dropout": "--model.dropout-rate",
    "dataset": "--data.name",
    "data-dir": "--data.dir",
    "output": "--workdir",
}
"""Names that other programs use for some flags."""


class _Switch(argparse.Action):
    """A flag without a value and its opposite, such as --model.conv-bias and --model.no-conv-bias."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        key = (option_string or "").removeprefix("--").rpartition(".")[2]
        setattr(namespace, self.dest, not key.startswith("no-"))


def _with_dashes(argument: str) -> str:
    """A flag with dashes in its name; its value, and any other argument, as it is."""
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value if argument.startswith("--") else argument


class ArgumentParser(argparse.ArgumentParser):
    """argparse without abbreviations. An error is one line (UserError, exit code 2)."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise UserError. argparse itself would print the usage of all flags and exit."""
        raise UserError(f"{message} (see --help)", exit_code=2)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse flags that are written with dashes or underscores.

        Raises UserError (exit code 2) on a wrong flag. For an unknown one it names the nearest.
        """
        flags_end = list(argv).index("--") if "--" in argv else len(argv)
        argv = [*map(_with_dashes, argv[:flags_end]), *argv[flags_end:]]
        args, unknown = self.parse_known_intermixed_args(argv)  # files may follow flags that follow files
        if unknown:
            first = next((each for each in unknown if each != "--"), "--")
            near = self._nearest(first.split("=")[0])
            hint = f"; did you mean {near}?" if near else ""
            position = argv.index(first)
            action = self._option_string_actions.get(argv[position - 1]) if position else None
            if action is not None and action.nargs == 0:
                hint = f"; {argv[position - 1]} takes no value"
                opposite = [flag for flag in action.option_strings if flag != argv[position - 1]]
                hint += f", its opposite is {opposite[0]}" if isinstance(action, _Switch) else ""
            self.error(f"unknown argument {first}{hint}")
        return args

    def _nearest(self, unknown: str) -> str | None:
        """The flag that was probably meant: a known synonym, else one with that last part, else a similar name."""
        flags = list(self._option_string_actions)
        last_parts = {flag.removeprefix("--").rpartition(".")[2]: flag for flag in flags}
        key = unknown.removeprefix("--").rpartition(".")[2]
        if _SYNONYMS.get(key) in flags:
            return _SYNONYMS[key]
        if key in last_parts:
            return last_parts[key]
        whole = difflib.get_close_matches(unknown, flags, n=1)
        part = difflib.get_close_matches(key, last_parts, n=1)
        return whole[0] if whole else last_parts[part[0]] if part else None


def add_device_argument(parser: ArgumentParser) -> None:
    """Add --device, which `jaxresnet.machine.devices.start_devices` reads."""
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="auto takes a GPU if there is one; cuda fails without one (default: auto)",
    )


def add_distributed_arguments(parser: ArgumentParser) -> None:
    """Add --distributed and what names the processes, which `jaxresnet.machine.hosts.launch.read_launch` reads."""
    group = parser.add_argument_group(
        "one run on several processes",
        "Start the same command once for each process, with --distributed. Under Slurm, Open MPI and Kubernetes the "
        "processes find each other; elsewhere the three flags below say how, or the environment variables "
        "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
    )
    group.add_argument(
        "--distributed", action="store_true", help="be one of several processes that compute together"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--processes", metavar="INT", help="number of processes")
    group.add_argument("--process-id", metavar="INT", help="number of this process, from 0")
    group.add_argument(
        "--peer-timeout",
        metavar="SECONDS",
        help="how long to wait for all processes at the start, and for a sign of life of each later (default: 90)",
    )


def add_network_arguments(parser: ArgumentParser) -> None:
    """Add what names a trained network, as `jaxresnet.trained.load.load_network` takes it.

    `args.network` str, `args.checkpoint` str or None, `args.average` bool.
    """
    parser.add_argument(
        "network",
        metavar="NETWORK",
        help="folder of a run, safetensors file of weights, or name of weights that are shipped with the package",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="latest|best|STEP",
        help="which checkpoint of a run; best: most accurate on the split evaluated in training (default: latest)",
    )
    parser.add_argument(
        "--average",
        action="store_true",
        help="take the average of the weights that a run keeps (optimizer.ema_decay)",
    )


def add_data_argument(parser: ArgumentParser) -> None:
    """Add --data.dir for a command that uses a trained network, `args.data_dir`."""
    parser.add_argument(
        "--data.dir",
        dest="data_dir",
        default="",
        metavar="DIR",
        help="folder of pictures, or of the prepared TFDS data sets (default: the run's, if it still exists, or "
        "$TFDS_DATA_DIR, or ~/tensorflow_datasets)",
    )


def add_config_arguments(parser: ArgumentParser) -> None:
    """Add --config and one flag per setting, which `config_from_arguments` reads."""
    parser.add_argument(
        "--config",
        type=find_config,
        metavar="FILE|NAME",
        help="TOML file to start from, or the name of a shipped one, such as digits; without it, the paper's recipe",
    )
    add_setting_arguments(parser)


def add_setting_arguments(parser: ArgumentParser) -> None:
    """Add one flag per setting."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, field in setting_fields().items():
        section = name.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(f"[{section}]" if section else "settings")
        flag = name.replace("_", "-")
        default = toml_value(field.default)
        text = f"{(field.description or '').replace('%', '%%')} (default: {default})"
        options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
        if field.annotation is bool:
            group, _, key = flag.rpartition(".")
            no_flag = f"{group}.no-{key}" if group else f"no-{key}"
            groups[section].add_argument(
                f"--{flag}", f"--{no_flag}", action=_Switch, nargs=0, help=text, **options
            )
            continue
        if get_origin(field.annotation) is tuple:
            options["nargs"] = "*"
        if get_origin(field.annotation) is Literal:
            options["metavar"] = "{" + ",".join(get_args(field.annotation)) + "}"
        else:
            names: dict[Any, str] = {int: "INT", float: "FLOAT", str: "TEXT"}
            options["metavar"] = names.get(field.annotation, "VALUE")
        groups[section].add_argument(f"--{flag}", help=text, **options)


def config_from_arguments(args: argparse.Namespace) -> Config:
    """The configuration of --config, or the default one, with the values of the flags put in.

    Raises UserError (exit code 2) with one line per problem.
    """
    config = load_config(args.config) if args.config else Config()
    return config.replace(setting_arguments(args))


def setting_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The values that were given as flags, by the settings' dotted names; not yet validated."""
    return {name: getattr(args, name) for name in setting_fields() if hasattr(args, name)}


def to_arguments(settings: Mapping[str, Any]) -> list[str]:
    """The command-line arguments that set these settings, which are given by dotted name."""
    arguments = []
    for name, value in settings.items():
        section, dot, key = name.replace("_", "-").rpartition(".")
        if isinstance(value, bool):
            arguments.append(f"--{section}{dot}{'' if value else 'no-'}{key}")
        elif isinstance(value, tuple):
            arguments += [f"--{section}{dot}{key}", *map(str, value)]
        else:
            arguments.append(f"--{section}{dot}{key}={value}")
    return arguments
