"""The figures of a report, drawn by matplotlib, each from plain values; nothing here reads or writes a run."""

import io
import math
import re
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from jaxresnet.comparison import RunGroup
from jaxresnet.model import LayerInfo

COLOURS = ("#2f7fd1", "#e0662f", "#2a9d6f", "#b04fb5", "#c79a1d", "#17a2b8", "#d14b69", "#7d8590")
"""Distinct also for most colour-blind readers, on white and on black."""


def render(draw: Callable[[], Figure], *, dark: bool = False) -> bytes:
    """The figure that `draw` returns as a PNG, for a white page or for a dark one."""
    text, background, grid = ("#e6e6e6", "#16181c", "#3a3f47") if dark else ("#1f2328", "#ffffff", "#d8dce1")
    style = {
        "figure.facecolor": background,
        "axes.facecolor": background,
        "savefig.facecolor": background,
        "text.color": text,
        "axes.labelcolor": text,
        "axes.edgecolor": grid,
        "axes.titlesize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": text,
        "ytick.color": text,
        "grid.color": grid,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
        "figure.dpi": 130,
    }
    with rc_context(style):
        file = io.BytesIO()
        draw().savefig(
            file, format="png", metadata={"Software": None}
        )  # no version: equal inputs, equal bytes
    return file.getvalue()


def image_grid(images: Sequence[np.ndarray], titles: Sequence[str], columns: int = 4) -> Figure:
    """uint8 images [H, W, 3] in rows of `columns`, each under its title."""
    rows = max(1, math.ceil(len(images) / columns))
    figure = Figure(figsize=(1.35 * columns, 1.55 * rows))
    for axis in figure.subplots(rows, columns, squeeze=False).flat:
        axis.set_axis_off()
    for axis, image, title in zip(figure.axes, images, titles, strict=False):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(title, fontsize=9, pad=3)
    return figure


def curves(
    groups: Sequence[RunGroup],
    keys: dict[str, str],
    ylabel: str,
    scale: float = 1.0,
    *,
    from_zero: bool = False,
) -> Figure:
    """Values of metrics.jsonl by epoch: `keys` maps each to its name in the legend, `scale` multiplies them.

    With `from_zero` the axis begins there. A group of several runs is drawn as their mean, within the band of
    all of them. With one group the keys have colours of their own, with several the groups have, and the first
    of several keys is dashed.
    """
    figure = Figure(figsize=(4.8, 3.6))
    axis = figure.subplots()
    extremes, longest = [], 1
    for number, group in enumerate(groups):
        for position, (key, name) in enumerate(keys.items()):
            series = [dict(zip(*run.values(key), strict=True)) for run in group.runs]
            epochs = sorted(set().union(*series))
            if not epochs:
                continue
            values = [[scale * run[epoch] for run in series if epoch in run] for epoch in epochs]
            means = [sum(each) / len(each) for each in values]
            several = len(groups) > 1
            dashed = several and len(keys) > 1 and position == 0
            colour = COLOURS[(number if several else position) % len(COLOURS)]
            axis.plot(
                epochs,
                means,
                color=colour,
                linestyle="--" if dashed else "-",
                linewidth=1.8,
                marker="o" if len(epochs) <= 15 else None,
                markersize=3.5,
                label=group.name if several and not dashed else None if several else name,
            )
            if len(series) > 1:
                low, high = [min(each) for each in values], [max(each) for each in values]
                axis.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)
            extremes += [min(means), max(means)]
            longest = max(longest, *epochs)
    if "loss" in ylabel and extremes and min(extremes) > 0 and max(extremes) > 20 * min(extremes):
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(ScalarFormatter())
    if from_zero:
        axis.set_ylim(0, 1.05 * max(extremes, default=1.0))
    axis.set(xlabel="epoch", ylabel=ylabel, xlim=(0.5 if longest < 20 else 0, longest + 0.5))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(linewidth=0.6)
    axis.set_axisbelow(True)
    if len(axis.lines) > 1:
        axis.legend(fontsize=8)
    return figure


def confusion(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Counts [C, C] with true classes as rows, shaded by their share of the row."""
    totals = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shares = matrix / totals
    size = 1.6 + 0.5 * len(class_names)
    figure = Figure(figsize=(size + 0.4, size))
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(class_names))
    axis.set_xticks(ticks, class_names, rotation=45, ha="right", fontsize=8)
    axis.set_yticks(ticks, class_names, fontsize=8)
    axis.set(xlabel="predicted", ylabel="true")
    for row in ticks:
        for column in ticks:
            # On the shading, not on the page: black on pale cells and white on deep ones in either theme.
            colour = "white" if shares[row, column] > 0.5 else "#1f2328"
            text = str(matrix[row, column])
            axis.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)
    axis.spines[:].set_visible(False)
    return figure


def architecture(layers: Sequence[LayerInfo]) -> Figure:
    """The network from its layers: a box for each block, as high as its map and as wide as its channels.

    An arc is a block's shortcut, dashed where it is a convolution.
    """
    blocks = [(name, list(group)) for name, group in groupby(layers, lambda layer: _block(layer.name))]
    stages = [(name, list(group)) for name, group in groupby(blocks, lambda block: block[0].split("_")[0])]
    figure = Figure(figsize=(10, 4.0))
    axis = figure.subplots()
    axis.set_axis_off()
    size = max(layer.output_shape[0] for layer in layers if len(layer.output_shape) == 3)
    left, text_bottom = 0.0, -0.62
    for number, (stage, members) in enumerate(stages):
        colour = COLOURS[number % len(COLOURS)]
        # Many blocks share the room of ten.
        share = min(1.0, 10 / len(members))
        began = left
        for name, block in members:
            shape = block[-1].output_shape
            width = share * (0.28 + 0.16 * math.log2(shape[-1] / 8 + 1))
            height = 2 * math.sqrt((shape[0] if len(shape) == 3 else 1) / size)
            box = Rectangle((left, -height / 2 + 1), width, height, facecolor=colour, alpha=0.85)
            axis.add_patch(box)
            if "_block" in name:
                convolution = any("shortcut" in layer.name for layer in block)
                axis.add_patch(
                    FancyArrowPatch(
                        (left - 0.07 * share, 1 + height / 2 + 0.05),
                        (left + width + 0.07 * share, 1 + height / 2 + 0.05),
                        connectionstyle=f"arc3,rad={-0.55 if convolution else -0.4}",
                        arrowstyle="-|>",
                        mutation_scale=8,
                        linestyle="--" if convolution else "-",
                        color=colour,
                    )
                )
            left += width + 0.2 * share
        last = members[-1][1][-1]
        parameters = sum(layer.parameters for _, block in members for layer in block)
        macs = sum(layer.macs for _, block in members for layer in block)
        title = re.sub(r"(\D)(\d+)$", r"\1 \2", stage)
        count = (
            f"{len(members)} block{'s' if len(members) > 1 else ''}" if "stage" in stage else _kind(members)
        )
        lines = [count, "x".join(map(str, last.output_shape)), f"{parameters:,}", _short(macs)]
        centre = (began + left - 0.2 * share) / 2
        axis.text(centre, 2.5, title, ha="center", fontsize=10, fontweight="bold", color=colour)
        axis.text(
            centre, text_bottom + 0.42, "\n".join(lines), ha="center", va="top", fontsize=8, linespacing=1.5
        )
        left = max(left, began + 0.95) + 0.35
    axis.text(
        -0.25,
        text_bottom + 0.42,
        "\noutput\nparameters\nMACs",
        ha="right",
        va="top",
        fontsize=8,
        linespacing=1.5,
    )
    axis.set(xlim=(-1.1, left), ylim=(-1.15, 2.7))
    return figure


def _block(name: str) -> str:
    """The block that a layer belongs to: stem_conv and stem_norm are the stem."""
    first = name.split("/")[0]
    return first if "_block" in first else first.split("_")[0]


def _kind(members: Sequence[tuple[str, list[LayerInfo]]]) -> str:
    """What the stem or the head is made of; pooling has no parameters, and so is no layer of the list."""
    kinds = {"Conv": "conv", "BatchNorm": "BN", "Dense": "pool + linear"}
    return " + ".join(kinds[layer.kind] for layer in members[0][1])


def _short(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 1e5 else f"{count / 1e3:,.1f} k"
