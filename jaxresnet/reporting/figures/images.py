"""Images with titles, such as training images and mistakes."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from jaxresnet.reporting.figures.drawing import render
from jaxresnet.reporting.text import one_line

_LONGEST_FILE_NAME, _LONGEST_CLASS_NAME = 18, 11
"""Characters above a picture of a contact sheet. The probability stands beside the class."""


def image_grid(images: Sequence[np.ndarray], titles: Sequence[str], columns: int = 4) -> Figure:
    """Images in rows of `columns`, each with its title above: uint8 [H, W, 3], or [H, W, 1] in grey."""
    rows = max(1, math.ceil(len(images) / columns))
    figure = Figure(figsize=(1.35 * columns, 1.55 * rows))
    for axis in figure.subplots(rows, columns, squeeze=False).flat:
        axis.set_axis_off()
    for axis, image, title in zip(figure.axes, images, titles, strict=False):
        axis.imshow(image, interpolation="nearest", cmap="gray", vmin=0, vmax=255)
        axis.set_title(title, fontsize=9, pad=3)
    return figure


def contact_sheet(
    pictures: Sequence[np.ndarray], names: Sequence[str], best: Sequence[tuple[str, float]]
) -> bytes:
    """A PNG of pictures, uint8 [H, W, 3], as near to a square as they can be arranged.

    Above each stand its file's name and its best class with the probability, 0 to 1.
    """
    titles = [
        f"{one_line(name, _LONGEST_FILE_NAME)}\n{one_line(label, _LONGEST_CLASS_NAME)} {probability:.1%}"
        for name, (label, probability) in zip(names, best, strict=True)
    ]
    return render(lambda: image_grid(pictures, titles, columns=math.ceil(math.sqrt(len(pictures)))))
