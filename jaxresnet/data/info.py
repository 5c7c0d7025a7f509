"""The facts of a data set: all that a network needs to know about its data."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from jaxresnet.errors import printable

Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Side = Annotated[int, Field(ge=1, le=65_536)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]

MOST_NAMES = 10
"""Names that a message lists."""


@dataclass(frozen=True)
class DatasetInfo:
    """Facts about a data set. They are saved with every run and every weights file.

    `image_shape` is (height, width, channels) of its uint8 images. `mean` and `std` are taken over all pixels of the
    training split, per channel, on a scale of 0 to 1; a std is at least 1e-6. `digest` is a SHA-256 of all labels
    and images in their order; empty for a data set whose content is known in advance. Raises ValueError if mean and std
    do not have one entry per channel, if there are no class names, or if two are equal.
    """

    name: str
    image_shape: tuple[Side, Side, Side]
    class_names: tuple[str, ...]
    train_examples: Positive
    test_examples: Count
    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...]
    std: tuple[Annotated[float, Field(ge=1e-6, le=1)], ...]
    digest: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""

    def __post_init__(self) -> None:
        channels = self.image_shape[2]
        if not len(self.mean) == len(self.std) == channels:
            raise ValueError(
                f"expected mean and std of {channels} channels, found {self.mean} and {self.std}"
            )
        if not self.class_names or len(set(self.class_names)) < len(self.class_names):
            raise ValueError(f"expected different class names, found {list(self.class_names)}")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def outline(
    name: str,
    image_shape: tuple[int, int, int],
    class_names: Sequence[str],
    train_examples: int,
    test_examples: int,
) -> DatasetInfo:
    """The facts that are known before the images are read: mean and std are 0 and 1 in place of the real ones."""
    zero, one = (0.0,) * image_shape[2], (1.0,) * image_shape[2]
    return DatasetInfo(name, image_shape, tuple(class_names), train_examples, test_examples, zero, one)


def changes(before: DatasetInfo, now: DatasetInfo) -> str:
    """What differs between the facts of two data sets, in words.

    >>> changes(outline("a", (8, 8, 3), ["cat", "dog"], 20, 5), outline("a", (8, 8, 3), ["cat", "cow"], 21, 5))
    'the classes dog are gone; the classes cow are new; train_examples was 20, is 21'
    """
    old, new = before.class_names, now.class_names
    gone, come = [each for each in old if each not in new], [each for each in new if each not in old]
    words = [f"the classes {listed(gone)} are gone"] if gone else []
    words += [f"the classes {listed(come)} are new"] if come else []
    words += ["the classes are in another order"] if old != new and not words else []
    for name in ("name", "image_shape", "train_examples", "test_examples"):
        if (was := getattr(before, name)) != (found := getattr(now, name)):
            words.append(f"{name} was {was}, is {found}")
    # Mean, std and digest follow from the images. So they are told only if they are all that differs.
    if not words and before.digest != now.digest:
        words.append("images or labels differ, or their order")
    return (
        "; ".join(words) or f"mean and std were {before.mean} and {before.std}, are {now.mean} and {now.std}"
    )


def known_changes(before: DatasetInfo, outlined: DatasetInfo) -> str:
    """What differs between the facts of a data set and what is known of another without its images, in words.

    `outlined` is the outline of its source. Returns "" if nothing differs.
    """
    now = dataclasses.replace(outlined, mean=before.mean, std=before.std, digest=before.digest)
    return "" if now == before else changes(before, now)


def listed(names: Sequence[str]) -> str:
    """The first few names, in one line.

    >>> listed([f"c{number}" for number in range(100)])
    'c0, c1, c2, c3, c4, c5, c6, c7, c8, c9 and 90 more'
    """
    shown = ", ".join(printable(name) for name in names[:MOST_NAMES])
    return shown + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
