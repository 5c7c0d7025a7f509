"""What crosses from the host's pipeline to the device."""

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """A batch of examples, in NumPy or JAX arrays.

    `image` uint8 [B, H, W, C]; `label` int32 [B]; `mask` bool [B], false where an example only fills up.
    """

    image: Any
    label: Any
    mask: Any
