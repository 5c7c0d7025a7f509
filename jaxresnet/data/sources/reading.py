"""What data sets have in common whose facts are computed: decoding in threads, memory, mean and std, a test split."""

import dataclasses
import functools
import hashlib
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from jaxresnet.config.schema import DataConfig
from jaxresnet.data.info import MOST_NAMES, DatasetInfo, listed
from jaxresnet.data.splits import Split, holdout_indices
from jaxresnet.errors import UserError, printable
from jaxresnet.machine.memory import free_bytes

CHUNK = 512
"""Pictures that wait to be decoded, at most, so that not all files are in memory at once."""


class PictureSource(ABC):
    """A data set of pictures, which are decoded into memory. Its mean and std are computed from them.

    Each split is kept until it is read, so that computing the facts and then loading the splits decodes them once.
    """

    def __init__(self, config: DataConfig):
        self.config = config
        self._kept: dict[str, Split] = {}

    @property
    @abstractmethod
    def outline(self) -> DatasetInfo:
        """The facts that are known without the images."""

    @abstractmethod
    def prepare(self) -> None:
        """Download the data set if that is needed."""

    @property
    @abstractmethod
    def at_hand(self) -> bool:
        """Whether it can be read without a download."""

    @abstractmethod
    def own_test_split(self) -> bool:
        """Whether the test split is not a share of the training examples."""

    def test_split_note(self) -> str:
        """What takes the place of a test split, in words; empty if there is one."""
        if self.own_test_split():
            return ""
        held, outline = self.outline.test_examples, self.outline
        return (
            f"{held:,} of its {outline.train_examples + held:,} examples are held out as one, the same share of each "
            "class to within one example (data.test_share)"
        )

    @abstractmethod
    def decode(self, split: Literal["train", "test"]) -> dict[str, Split]:
        """Decode one split, or both if they are parts of the same examples."""

    @property
    def info(self) -> DatasetInfo:
        """All facts of the data set. They are computed once, and what takes minutes is told on stdout."""
        return self._info

    @functools.cached_property
    def _info(self) -> DatasetInfo:
        self.prepare()
        outline = self.outline
        examples = outline.train_examples + outline.test_examples
        if note := self.test_split_note():
            print(f"{outline.name} has no test split: {note}", flush=True)
        require_memory(outline, outline.train_examples + examples)  # tf.data copies the training images
        height, width, _ = outline.image_shape
        print(f"reading {examples:,} images as {width} x {height} pixels", flush=True)
        problems = []
        for split in ("train", "test"):
            try:
                self._kept[split] = self.read(split)
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("\n".join(problems))
        present = set(self._kept["test"].labels.tolist())
        if absent := [name for label, name in enumerate(outline.class_names) if label not in present]:
            print(f"the test split has no example of {listed(absent)}", flush=True)
        mean, std = statistics(self._kept["train"].images)
        found = digest(self._kept["train"], self._kept["test"])
        return dataclasses.replace(outline, mean=mean, std=std, digest=found)

    def read(self, split: Literal["train", "test"]) -> Split:
        """All examples of one split. Raises UserError if pictures are damaged or do not fit into memory."""
        if split not in self._kept:
            self.prepare()
            require_memory(self.outline, getattr(self.outline, f"{split}_examples"))
            self._kept |= self.decode(split)
        return self._kept.pop(split)


def decode_all(
    readers: Iterable[Callable[[], np.ndarray]], examples: int, image_shape: tuple[int, int, int]
) -> np.ndarray:
    """The images that the readers return, uint8 [examples, H, W, C], in their order. They are called in threads.

    Black images follow if there are fewer readers. Raises UserError with a line for each reader that raised one, up to
    MOST_NAMES.
    """
    images = np.zeros((examples, *image_shape), np.uint8)

    def fill(numbered: tuple[int, Callable[[], np.ndarray]]) -> str | None:
        position, reader = numbered
        try:
            images[position] = reader()
        except UserError as error:
            return printable(str(error))
        return None

    problems: list[str] = []
    waiting = enumerate(readers)
    with ThreadPoolExecutor() as pool:
        while chunk := list(itertools.islice(waiting, CHUNK)):
            problems += filter(None, pool.map(fill, chunk))
    if problems:
        more = len(problems) - MOST_NAMES
        lines = problems[:MOST_NAMES] + ([f"and {more:,} more pictures like these"] if more > 0 else [])
        raise UserError("\n".join(lines))
    return images


def require_memory(info: DatasetInfo, images: int) -> None:
    """Raise UserError if so many images of the data set do not fit into the free memory."""
    free, needed = free_bytes(), images * math.prod(info.image_shape)
    if free is not None and needed > free:
        height, width, _ = info.image_shape
        raise UserError(
            f"out of memory: {images:,} images of {info.name} with {width} x {height} pixels take "
            f"{needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free: lower data.image_size or use fewer images"
        )


def statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel over all pixels of the images, uint8 [N, H, W, C], on a scale of 0 to 1.

    The sums are integers, so that the result is the same to the bit everywhere. A std is at least 1e-6.

    >>> statistics(np.array([[[[0], [255]]]], np.uint8))
    ((0.5,), (0.5,))
    """
    values = range(256)
    counts = np.zeros((images.shape[3], 256), np.int64)
    for start in range(0, len(images), CHUNK):
        for channel, pixels in enumerate(np.moveaxis(images[start : start + CHUNK], 3, 0)):
            counts[channel] += np.bincount(pixels.ravel(), minlength=256)
    means, stds = [], []
    for histogram in counts.tolist():
        pixels = sum(histogram)
        total = sum(value * count for value, count in zip(values, histogram, strict=True))
        squares = sum(value**2 * count for value, count in zip(values, histogram, strict=True))
        means.append(total / (255 * pixels))
        stds.append(max(1e-6, math.sqrt((pixels * squares - total**2) / (255 * pixels) ** 2)))
    return tuple(means), tuple(stds)


def digest(*splits: Split) -> str:
    """The SHA-256 of the splits, of each its labels, as little-endian int32, and images, in hexadecimal digits."""
    found = hashlib.sha256()
    for images, labels in splits:
        found.update(np.ascontiguousarray(labels, "<i4").data)
        found.update(np.ascontiguousarray(images).data)
    return found.hexdigest()


def held_out(examples: int, share: float) -> int:
    """The number of examples that are held out as a test split: a share of them, at least one."""
    return max(1, round(share * examples))


def test_positions(labels: np.ndarray, share: float, class_names: Sequence[str]) -> np.ndarray:
    """Which examples are the test split of a data set without one: bool [N], a stratified share.

    Raises UserError if a class would have no training example.
    """
    chosen = np.zeros(len(labels), bool)
    chosen[holdout_indices(labels, held_out(len(labels), share))] = True
    left = np.bincount(labels[~chosen], minlength=len(class_names))
    if missing := [name for name, count in zip(class_names, left, strict=True) if not count]:
        raise UserError(
            f"expected training examples of each class beside the test split, found none of {listed(missing)}: add "
            "examples to it; a lower data.test_share helps where a class has several"
        )
    return chosen


def expand(path: str) -> Path:
    """A path with the user's home folder in place of ~. Raises UserError if that user has none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"cannot find {path}, because that user has no home folder: set TFDS_DATA_DIR or --data.dir"
        ) from None
