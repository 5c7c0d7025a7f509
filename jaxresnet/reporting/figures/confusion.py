"""A confusion matrix."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from jaxresnet.reporting.text import one_line

MOST_NUMBERS = 54
"""As many classes as have room for the counts on the largest figure, of 20 inches."""


def confusion(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """A confusion matrix of counts [C, C], with true classes as rows. The shade of a cell is its share of the row.

    Of more than MOST_NUMBERS classes the counts are left out, which would not fit, and only some names are written.
    """
    totals = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shares = matrix / totals
    size = min(1.3 + 0.37 * len(class_names), 20)
    figure = Figure(figsize=(size + 0.2, size))
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    named = range(0, len(class_names), -(-len(class_names) // MOST_NUMBERS))
    names = [one_line(class_names[number], 16) for number in named]
    axis.set_xticks(named, names, rotation=45, ha="right", fontsize=9)
    axis.set_yticks(named, names, fontsize=9)
    axis.set(xlabel="predicted", ylabel="true")
    numbered = range(len(class_names) if len(class_names) <= MOST_NUMBERS else 0)
    for row in numbered:
        for column in numbered:
            # The text stands on a cell, not on the page: dark on pale cells and white on deep ones in both themes.
            colour = "white" if shares[row, column] > 0.5 else "#1f2328"
            text = str(matrix[row, column])
            axis.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)
    axis.spines[:].set_visible(False)
    return figure
