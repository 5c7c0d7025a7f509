"""The data sets by name. Opening one reads no data; each kind has its own module in `jaxresnet.data.sources`."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from jaxresnet.config.schema import Config, DataConfig
from jaxresnet.data.info import DatasetInfo
from jaxresnet.data.sources.cifar10 import Cifar10
from jaxresnet.data.sources.digits import Digits
from jaxresnet.errors import UserError

if TYPE_CHECKING:
    from jaxresnet.data.splits import Source


SOURCES: "dict[str, Callable[[DataConfig], Source]]" = {
    "cifar10": Cifar10,
    "digits": lambda config: Digits(),
}
"""The data sets whose facts are known in advance: `data.name` to the function that opens one.

The others are "folder", and the names of tensorflow-datasets.
"""


def reopen_source(config: Config, directory: str = "") -> "Source":
    """The data set of a run or of weights whose folder may have moved since, as `open_source` does.

    It is looked for in `directory` if that is given, or in the configuration's folder if that still exists, or in the
    usual places: $TFDS_DATA_DIR and ~/tensorflow_datasets. There are none for a folder of pictures.
    """
    # os.path, because Path.expanduser fails if the user has no home, and Path.is_dir if a folder above is another's.
    there = os.path.isdir(os.path.expanduser(config.data.dir))  # noqa: PTH111, PTH112
    kept = config.data.dir if there or config.data.name == "folder" else ""
    return open_source(config.replace({"data.dir": directory or kept}).data)


def known_facts(config: DataConfig) -> DatasetInfo:
    """The facts of a data set that is known in advance, for files of version 0.1, which do not record them.

    Such a file may come from a stranger, and so no other data set is looked for. Raises UserError (exit code 2) if the
    configuration names another.
    """
    if config.name not in SOURCES:
        raise UserError(
            f"data.name: expected {' or '.join(SOURCES)} where no facts of the data set are recorded, found "
            f"{config.name!r}",
            2,
        )
    return open_source(config).outline


def open_source(config: DataConfig) -> "Source":
    """The data set that the configuration names.

    Raises UserError (exit code 2) if a setting does not fit it, at the latest when its facts are asked for: also if no
    data set has that name.

    >>> open_source(DataConfig(name="digits")).info.test_examples
    355
    """
    if config.name in SOURCES:
        found = SOURCES[config.name](config)
        height = found.outline.image_shape[0]
        if config.image_size not in (0, height):
            raise UserError(
                f"data.image_size: expected 0 or {height} for {config.name}, found {config.image_size}",
                2,
            )
        return found
    # Imported here, because they load NumPy and Pillow.
    if config.name == "folder":
        from jaxresnet.data.sources.folder import Folder

        return Folder(config)
    from jaxresnet.data.sources.tfds import Tfds

    return Tfds(config)
