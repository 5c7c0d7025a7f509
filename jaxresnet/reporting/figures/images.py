"""Images with titles, such as training images and mistakes."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure


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
