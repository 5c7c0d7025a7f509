"""The facts of a data set: all that a network needs to know about its data."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Side = Annotated[int, Field(ge=1, le=65_536)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


@dataclass(frozen=True)
class DatasetInfo:
    """Facts about a data set. They are saved with every run and every weights file.

    `image_shape` is (height, width, channels) of its uint8 images. `mean` and `std` are taken over all pixels of the
    training split, per channel, on a scale of 0 to 1; a std is at least 1e-6. Raises ValueError if they do not have
    one entry per channel, if there are no class names, or if two are equal.
    """

    name: str
    image_shape: tuple[Side, Side, Side]
    class_names: tuple[str, ...]
    train_examples: Positive
    test_examples: Count
    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...]
    std: tuple[Annotated[float, Field(ge=1e-6, le=1)], ...]

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
