"""The data sets by name. Opening one reads no data; each has its own module in `jaxresnet.data`."""

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jaxresnet.config.schema import Config, DataConfig
from jaxresnet.data.cifar10 import Cifar10
from jaxresnet.data.digits import Digits
from jaxresnet.errors import UserError

if TYPE_CHECKING:
    from jaxresnet.data.splits import Source


SOURCES: "dict[str, Callable[[DataConfig], Source]]" = {
    "cifar10": Cifar10,
    "digits": lambda config: Digits(),
}
"""The function that opens a data set, by the configuration's `data.name`."""


def reopen_source(config: Config, directory: str = "") -> "Source":
    """The data set of a run or of weights whose folder may have moved since, as `open_source` does.

    It is looked for in `directory` if that is given, or in the configuration's folder if that still exists, or in the
    usual places: $TFDS_DATA_DIR and ~/tensorflow_datasets.
    """
    # os.path, because Path.expanduser fails if the user has no home.
    kept = config.data.dir if Path(os.path.expanduser(config.data.dir)).is_dir() else ""  # noqa: PTH111
    return open_source(config.replace({"data.dir": directory or kept}).data)


def open_source(config: DataConfig, source: str = "") -> "Source":
    """The data set that the configuration names.

    Raises UserError (exit code 2) if no data set has that name. Its line begins with `source`.

    >>> open_source(DataConfig(name="digits")).info.test_examples
    355
    """
    if config.name not in SOURCES:
        near = difflib.get_close_matches(config.name, SOURCES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        names = " or ".join(map(repr, SOURCES))
        raise UserError(f"{source}data.name: expected {names}, found {config.name!r}{hint}", 2)
    return SOURCES[config.name](config)
