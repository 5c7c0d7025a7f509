"""The splits of a data set: loading them into memory, checking them, and holding out validation examples."""

from collections.abc import Collection
from typing import Literal, NamedTuple, Protocol

import numpy as np

from jaxresnet.data.info import DatasetInfo, changes, known_changes, listed
from jaxresnet.errors import UserError


class Split(NamedTuple):
    """The examples of a split: `images` uint8 [N, H, W, C] and `labels` int32 [N]."""

    images: np.ndarray
    labels: np.ndarray


class Source(Protocol):
    """A data set that can be read. To open one reads nothing."""

    @property
    def outline(self) -> DatasetInfo:
        """The facts as far as they are known without the images and without a download.

        They are all there is to know, or `jaxresnet.data.info.outline` makes them. If the data set is still to be
        downloaded, names of classes may be numbers, and the numbers of examples are large enough for any setting.
        """
        ...

    @property
    def info(self) -> DatasetInfo:
        """All facts. If they must be computed, the data is read, and kept for the next `read`."""
        ...

    def prepare(self) -> None:
        """Download the data set if `outline` lacks it. Raises UserError (exit code 1) if that fails."""
        ...

    @property
    def at_hand(self) -> bool:
        """Whether it can be read without a download."""
        ...

    def read(self, split: Literal["train", "test"]) -> Split:
        """All examples of one of its splits, in a fixed order.

        Raises UserError (exit code 1) if the data set cannot be obtained or is damaged.
        """
        ...


def load_split(
    source: Source, name: str, validation_examples: int = 0, expected: DatasetInfo | None = None
) -> Split:
    """Load one split, as `load_splits` does.

    `expected` are the facts of the data that a network was trained on. Raises UserError if the data set has other
    classes or another image shape, and what `load_splits` raises.
    """
    source.prepare()
    info = source.outline
    if expected and (info.class_names, info.image_shape) != (expected.class_names, expected.image_shape):
        raise UserError(
            f"the data set {info.name} is not what the network was trained on: expected images {expected.image_shape} "
            f"of {listed(expected.class_names)}, found {info.image_shape} of {listed(info.class_names)}"
        )
    return load_splits(source, {name}, validation_examples)[name]


def changed_data(info: DatasetInfo, source: Source, *, whole: bool) -> str:
    """How a data set is another one than `info` is of, in words; empty if it is the same.

    With `whole` all images are read and compared, else what is known without them. A data set that is known in advance
    is checked as it is read. Raises UserError if it cannot be read.
    """
    if not info.digest:
        return ""
    if not whole:
        return known_changes(info, source.outline)
    return "" if source.info == info else changes(info, source.info)


def load_splits(source: Source, names: Collection[str], validation_examples: int = 0) -> dict[str, Split]:
    """Load the splits "train", "validation" and "test" as far as they are in `names`; other names are ignored.

    "validation" is the hold-out of `validation_examples` training examples, and "train" is the rest. Raises UserError
    (exit code 1) if the data set cannot be obtained, is damaged, does not agree with its facts, or if the hold-out has
    all examples of a class.
    """
    splits = {}
    if "test" in names:
        splits["test"] = _read_checked(source, "test")
    if parts := [name for name in ("train", "validation") if name in names]:
        whole = _read_checked(source, "train")
        held_out = np.zeros(len(whole.labels), bool)
        held_out[holdout_indices(whole.labels, validation_examples)] = True
        used_up = np.setdiff1d(whole.labels, whole.labels[~held_out])
        if used_up.size:
            names = listed([source.outline.class_names[label] for label in used_up])
            raise UserError(
                f"data.validation_examples: expected training examples of each class beside the {validation_examples} "
                f"held out, found none of {names}: add examples to it, or leave it out"
            )
        for name in parts:
            keep = held_out if name == "validation" else ~held_out
            splits[name] = whole if keep.all() else Split(whole.images[keep], whole.labels[keep])
    return splits


def _read_checked(source: Source, name: Literal["train", "test"]) -> Split:
    split = source.read(name)
    _check_split(source.outline, name, split)
    return split


def _check_split(info: DatasetInfo, name: str, split: Split) -> None:
    """Raise UserError unless the split is as `info` says. A label outside the classes would be trained as no class.

    A class may have no examples in it.
    """
    images, labels = split
    examples = info.test_examples if name == "test" else info.train_examples
    shape = (examples, *info.image_shape)
    expected = f"uint8 images {shape} and labels 0 to {info.classes - 1}"
    found = f"{images.dtype} images {images.shape}"
    if len(labels):
        found += f" and labels {labels.min()} to {labels.max()}"
    outside = (labels < 0) | (labels >= info.classes)
    if (images.dtype, images.shape) != (np.uint8, shape) or outside.any():
        raise UserError(
            f"the {name} split is not that of {info.name}: expected {expected}, found {found}; "
            "point TFDS_DATA_DIR or --data.dir to another folder"
        )


def holdout_indices(labels: np.ndarray, examples: int) -> np.ndarray:
    """The positions of a hold-out, sorted, int64 [examples]: the last examples of each class.

    `labels` is an int array [N]. The hold-out is stratified: each class has its share of it, to within one example.
    It does not depend on a seed, so that runs with different seeds are compared on the same examples.

    >>> holdout_indices(np.array([0, 1, 0, 1, 0, 1]), 2)
    array([4, 5])
    """
    # The positions are spread evenly over the examples sorted by class. So a class of n gets n * examples / N of them,
    # to within one.
    by_class = np.argsort(labels, kind="stable")
    positions = (np.arange(1, examples + 1) * len(labels)) // max(examples, 1) - 1
    per_class = np.bincount(labels[by_class[positions]], minlength=labels.max() + 1)
    chosen = [np.flatnonzero(labels == c)[-count:] for c, count in enumerate(per_class) if count]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)
