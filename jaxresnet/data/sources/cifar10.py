"""CIFAR-10, as tensorflow-datasets downloads and prepares it, or in its original archive."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxresnet.config.schema import DataConfig
from jaxresnet.data.info import DatasetInfo
from jaxresnet.errors import UserError
from jaxresnet.machine.workarounds import load_tensorflow

if TYPE_CHECKING:
    from jaxresnet.data.splits import Split

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
"""The archive that tensorflow-datasets downloads: 162 MiB, and 133 MiB once prepared."""

INFO = DatasetInfo(
    name="cifar10",
    image_shape=(32, 32, 3),
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    train_examples=50_000,
    test_examples=10_000,
    # The std over all pixels. The smaller one in other code, (0.2023, 0.1994, 0.2010), is a mean of per-image stds.
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)

PIXEL_SUMS = {
    "train": (
        2_186_738_454, 1_792_474_165, 1_834_069_962, 1_785_320_810, 1_716_868_592,
        1_803_175_522, 1_636_791_303, 1_826_153_434, 2_050_191_760, 1_908_898_001,
    ),
    "test": (
        446_982_175, 358_698_501, 368_999_173, 356_339_063, 338_149_949,
        367_921_820, 329_846_595, 369_238_806, 410_500_189, 386_699_363,
    ),
}  # fmt: skip
"""The sum of all pixel values of each class, by split. It does not depend on the order of the examples."""


class Cifar10:
    """CIFAR-10 in the folder of data sets that a configuration names.

    If its original archive is there (`jaxresnet.data.sources.archive`), it is read without TensorFlow. The examples and
    their order are the same.
    """

    info = outline = INFO

    def __init__(self, config: DataConfig):
        self._config = config

    def prepare(self) -> None:
        """Nothing to do: it is downloaded when it is read."""

    @property
    def at_hand(self) -> bool:
        """Whether it is prepared in the folder, or its archive is there."""
        from jaxresnet.data.sources.archive import find_archive
        from jaxresnet.data.sources.tfds import data_root

        root = data_root(self._config)
        return find_archive(root) is not None or _is_prepared(root)

    def read(self, split: Literal["train", "test"]) -> "Split":
        """All examples of one split. The data set is downloaded and prepared first if it is not there yet.

        Raises UserError (exit code 1) if it cannot be downloaded or is damaged.
        """
        from jaxresnet.data.sources.archive import find_archive, read_archive
        from jaxresnet.data.sources.tfds import data_root

        root = data_root(self._config)
        archive = find_archive(root)
        return read_archive(archive, split) if archive else _read_prepared(root, split)


def _is_prepared(root: Path) -> bool:
    return any(root.glob("cifar10/*/dataset_info.json"))


def _read_prepared(root: Path, split: Literal["train", "test"]) -> "Split":
    """A split of what tensorflow-datasets has prepared in `root`, or prepares now."""
    import numpy as np

    from jaxresnet.data.sources.tfds import errors_told, require_files, require_network
    from jaxresnet.data.splits import Split

    require_files(root, "cifar10")
    if not _is_prepared(root):
        print(
            f"CIFAR-10 is not in {root}: downloading 162 MiB from {URL} and preparing 133 MiB there",
            flush=True,
        )
        require_network(URL, "CIFAR-10", root)
    with errors_told("CIFAR-10", root / "cifar10") as at:
        load_tensorflow()
        import tensorflow_datasets as tfds

        builder = tfds.builder("cifar10", data_dir=root)
        if not builder.is_prepared():
            builder.download_and_prepare()
        at.place = ", ".join(map(str, builder.info.splits[split].filepaths))
        # The whole split as one batch, in the order of the files.
        examples = builder.as_dataset(split=split, batch_size=-1, shuffle_files=False)  # pyright: ignore[reportCallIssue]
        arrays = tfds.as_numpy(examples)
    found = Split(np.asarray(arrays["image"]), np.asarray(arrays["label"]).astype(np.int32))
    _check_sums(found, split, at.place, root)
    return found


def _check_sums(split: "Split", name: str, place: str, root: Path) -> None:
    """Raise UserError unless the pixel values of a split, read from `place`, have the sums in PIXEL_SUMS."""
    images, labels = split
    sums = images.reshape(len(images), math.prod(images.shape[1:])).sum(1, dtype="uint32")
    if tuple(int(sums[labels == label].sum()) for label in range(INFO.classes)) != PIXEL_SUMS[name]:
        raise UserError(
            f"{place} does not hold the {name} split of CIFAR-10: expected its images and labels, found others; "
            f"remove {root / 'cifar10'} to prepare it anew"
        )
