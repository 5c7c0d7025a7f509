"""Configurations as TOML: reading a file, writing a run's configuration, finding those shipped with the package."""

import contextlib
import json
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jaxresnet.config.schema import Config, setting_error
from jaxresnet.disk import CONFIG_LIMIT, read_file
from jaxresnet.errors import UserError

_PACKAGE = Path(__file__).parent.parent
_SHIPPED = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
"""Where the shipped configurations are: in an installed package, and in the repository."""


def shipped_configs() -> dict[str, Path]:
    """The files of the shipped configurations, by name, such as "paper" or "ablations/no_crop"."""
    folder = next((folder for folder in _SHIPPED if (folder / "paper.toml").is_file()), None)
    if folder is None:
        return {}
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.toml"))
    }


def find_config(name: str) -> Path:
    """The file that `name` means: a path, or the name of a shipped configuration.

    If both exist, the path wins. Raises UserError (exit code 2) if a name without a suffix is neither. A path that
    does not exist but has a suffix is returned: `load_config` reports it.
    """
    path, shipped = Path(name), shipped_configs()
    if path.is_file() or name not in shipped:
        if not path.suffix and not path.exists():
            raise UserError(
                f"no configuration {name}: expected a TOML file, or one of {', '.join(shipped)}, which are shipped",
                2,
            )
        return path
    return shipped[name]


@contextlib.contextmanager
def naming(file: Path | None, given: Collection[str] = ()) -> Iterator[None]:
    """In the block, UserErrors with exit code 2 get the name of the configuration's file, in each line.

    A line that begins with one of the `given` settings gets none: that one is a flag's.
    """
    try:
        yield
    except UserError as error:
        if error.exit_code != 2 or file is None:
            raise
        lines = str(error).splitlines()
        named = [line if line.partition(":")[0] in given else f"{file}: {line}" for line in lines]
        raise UserError("\n".join(named), 2) from None


def load_config(path: Path, *, follow: bool = True) -> Config:
    """Read a TOML file. Settings that it leaves out keep their defaults. With `follow`, it may be a link.

    Raises UserError (exit code 2), with one line per problem, if the file cannot be read or is not TOML, or if a
    setting is unknown, has a wrong type, is out of range or contradicts another one.
    """
    try:
        text = read_file(path, CONFIG_LIMIT, follow=follow).decode("utf-8-sig")  # skips a byte order mark
    except UserError as error:
        raise UserError(f"cannot read the configuration: {error}", 2) from None
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}", 2) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: expected a TOML file in UTF-8, found other bytes", 2) from None
    return parse_config(text, source=f"{path}: ")


def parse_config(text: str, source: str = "") -> Config:
    """The configuration in a TOML text.

    Raises the same errors as `load_config`; each line begins with `source`.

    >>> parse_config("epochs = 5").epochs
    5
    """
    try:
        # By way of JSON: there pydantic's strict mode accepts a list for a tuple and 1 for 1.0, but neither "40" nor
        # true for 40. Dates and times, which JSON does not have, become what no setting takes.
        values = json.dumps(
            tomllib.loads(text), default=lambda value: {"date or time": str(value)}, ensure_ascii=False
        )
        return Config.model_validate_json(values, strict=True)
    except ValidationError as error:
        raise setting_error(error, source) from None
    except (ValueError, RecursionError) as error:  # tomllib's own, a number too long, nesting too deep
        raise UserError(f"{source}expected TOML: {error}", 2) from None


def dump_config(config: Config) -> str:
    """The whole configuration as TOML. `parse_config` makes an equal configuration of it."""
    lines, sections = [], []
    for name, value in config.model_dump().items():
        if isinstance(value, dict):
            sections += ["", f"[{name}]", *(f"{key} = {toml_value(item)}" for key, item in value.items())]
        else:
            lines.append(f"{name} = {toml_value(value)}")
    return "\n".join([*lines, *sections, ""])


def portable(config: Config) -> Config:
    """The configuration as it travels with weights: without what makes sense on this machine only.

    That is where the data are, and the network that the training began with.
    """
    return config.replace({"data.dir": "", "init": "", "freeze_stages": 0})


def toml_value(value: Any) -> str:
    """A setting's value, which is a bool, int, float, str or tuple of numbers, as TOML."""
    # For these types JSON's literals are also TOML's, except for one character that JSON does not escape.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
