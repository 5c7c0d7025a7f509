"""The figures of a report, drawn with matplotlib from plain values. Nothing here reads or writes a run's folder."""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from jaxresnet.network.describe import LayerInfo
from jaxresnet.reporting.page import Picture
from jaxresnet.runs.groups import RunGroup
from jaxresnet.runs.records import EpochRecord

COLOURS = ("#2f7fd1", "#e0662f", "#2a9d6f", "#b04fb5", "#c79a1d", "#17a2b8", "#d14b69", "#7d8590")
"""Colours that most colour-blind readers can tell apart, too, on white and on black."""


def picture(name: str, caption: str, draw: Callable[[], Figure]) -> Picture:
    """The figure that `draw` returns, drawn once for white pages and once for dark ones."""
    return Picture(name, caption, render(draw), render(draw, dark=True))


def render(draw: Callable[[], Figure], *, dark: bool = False) -> bytes:
    """The figure that `draw` returns as a PNG, for a white page or for a dark one."""
    text, background, grid = ("#e6e6e6", "#16181c", "#3a3f47") if dark else ("#1f2328", "#ffffff", "#d8dce1")
    style: dict[Any, Any] = {
        "figure.facecolor": background,
        "axes.facecolor": background,
        "savefig.facecolor": background,
        "text.color": text,
        "text.parse_math": False,  # a $ in a name is a dollar sign
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
        # Without matplotlib's version in the file, so that equal inputs give equal bytes.
        draw().savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


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


@dataclass(frozen=True)
class Curve:
    """A quantity by epoch: its name in the legend, and its value in an epoch's record (None if it has none)."""

    name: str
    value: Callable[[EpochRecord], float | None]


def curves(
    groups: Sequence[RunGroup],
    drawn: Sequence[Curve],
    ylabel: str,
    scale: float = 1.0,
    *,
    from_zero: bool = False,
) -> Figure:
    """Curves by epoch, with values multiplied by `scale`. With `from_zero`, the vertical axis begins at 0.

    A group of several runs is drawn as their mean, in a band from the lowest value to the highest. For one group, each
    curve has its own colour. For several, each group has its own colour, and the first curve of several is dashed.
    """
    figure = Figure(figsize=(4.8, 3.6))
    axis = figure.subplots()
    several = len(groups) > 1
    for number, group in enumerate(groups):
        for position, curve in enumerate(drawn):
            dashed = several and len(drawn) > 1 and position == 0
            _draw_curve(
                axis,
                _values_by_epoch(group, curve, scale),
                COLOURS[(number if several else position) % len(COLOURS)],
                "--" if dashed else "-",
                group.name if several and not dashed else None if several else curve.name,
            )
    _fit_axes(axis, logarithmic="loss" in ylabel, from_zero=from_zero)
    axis.set(xlabel="epoch", ylabel=ylabel)
    if len(axis.lines) > 1:
        axis.legend(fontsize=8)
    return figure


def _values_by_epoch(group: RunGroup, curve: Curve, scale: float) -> dict[int, list[float]]:
    """Epoch to the values of the runs that have one, in the order of the epochs."""
    values: dict[int, list[float]] = {}
    for history in group.histories:
        for record in history.epochs:
            if (value := curve.value(record)) is not None:
                values.setdefault(record.epoch, []).append(scale * value)
    return dict(sorted(values.items()))


def _draw_curve(
    axis: Axes, values: dict[int, list[float]], colour: str, linestyle: str, label: str | None
) -> None:
    """Draw the mean by epoch as a line, and the band of all values if an epoch has several."""
    if not values:
        return
    epochs = list(values)
    axis.plot(
        epochs,
        [sum(each) / len(each) for each in values.values()],
        color=colour,
        linestyle=linestyle,
        linewidth=1.8,
        marker="o" if len(epochs) <= 15 else None,
        markersize=3.5,
        label=label,
    )
    if any(len(each) > 1 for each in values.values()):
        low, high = [min(each) for each in values.values()], [max(each) for each in values.values()]
        axis.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)


def _fit_axes(axis: Axes, *, logarithmic: bool, from_zero: bool) -> None:
    """Fit the axes to the lines. `logarithmic` allows a logarithmic one if values span more than a factor of 20."""
    means = [float(y) for line in axis.lines for y in np.asarray(line.get_ydata())]
    longest = max((int(x) for line in axis.lines for x in np.asarray(line.get_xdata())), default=1)
    if logarithmic and means and min(means) > 0 and max(means) > 20 * min(means):
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(ScalarFormatter())
    if from_zero:
        axis.set_ylim(0, 1.05 * max(means, default=1.0))
    axis.set_xlim(0.5 if longest < 20 else 0, longest + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(linewidth=0.6)
    axis.set_axisbelow(True)


def confusion(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """A confusion matrix of counts [C, C], with true classes as rows. The shade of a cell is its share of the row."""
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
            # The text stands on a cell, not on the page: dark on pale cells and white on deep ones in both themes.
            colour = "white" if shares[row, column] > 0.5 else "#1f2328"
            text = str(matrix[row, column])
            axis.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)
    axis.spines[:].set_visible(False)
    return figure


class _Block(NamedTuple):
    """A part of the network that is drawn as one box: the stem, a residual block or the head."""

    name: str
    layers: list[LayerInfo]

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.layers[-1].output_shape

    @property
    def height(self) -> int:
        """Height of its output, in pixels; 1 if that is no map."""
        return self.output_shape[0] if len(self.output_shape) == 3 else 1


def architecture(layers: Sequence[LayerInfo]) -> Figure:
    """The network, drawn from its layers, with a box for each block.

    A higher box has a larger map, a wider box has more channels. An arc is the shortcut of a block. It is dashed if the
    shortcut is a convolution.
    """
    blocks = [_Block(name, list(group)) for name, group in groupby(layers, _block_name)]
    stages = [(name, list(group)) for name, group in groupby(blocks, lambda block: block.name.split("_")[0])]
    figure = Figure(figsize=(10, 4.0))
    axis = figure.subplots()
    axis.set_axis_off()
    largest = max(block.height for block in blocks)
    left = 0.0
    for number, (stage, members) in enumerate(stages):
        colour = COLOURS[number % len(COLOURS)]
        right = _draw_stage(axis, members, left, largest, colour)
        _describe_stage(axis, stage, members, (left + right) / 2, colour)
        left = max(right + _gap(members), left + 0.95) + 0.35
    _write_lines(axis, -0.25, ["", "output", "parameters", "MACs"], "right")
    axis.set(xlim=(-1.1, left), ylim=(-1.15, 2.7))
    return figure


def _block_name(layer: LayerInfo) -> str:
    """The block that a layer belongs to: stem_conv and stem_norm are the stem."""
    first = layer.name.split("/")[0]
    return first if "_block" in first else first.split("_")[0]


def _share(members: Sequence[_Block]) -> float:
    """The factor by which boxes become narrower: more than ten blocks get the room of ten."""
    return min(1.0, 10 / len(members))


def _gap(members: Sequence[_Block]) -> float:
    return 0.2 * _share(members)


def _draw_stage(axis: Axes, members: Sequence[_Block], left: float, largest: int, colour: str) -> float:
    """Draw the boxes of a stage from `left` on. Returns where the last one ends."""
    share, right = _share(members), left
    for block in members:
        width = share * (0.28 + 0.16 * math.log2(block.output_shape[-1] / 8 + 1))
        height = 2 * math.sqrt(block.height / largest)
        box = Rectangle((left, -height / 2 + 1), width, height, facecolor=colour, alpha=0.85)
        axis.add_patch(box)
        right = left + width
        if "_block" in block.name:
            margin = 0.07 * share
            _draw_shortcut(axis, block, (left - margin, right + margin), 1 + height / 2 + 0.05, colour)
        left = right + _gap(members)
    return right


def _draw_shortcut(axis: Axes, block: _Block, ends: tuple[float, float], height: float, colour: str) -> None:
    convolution = any("shortcut" in layer.name for layer in block.layers)
    arrow = FancyArrowPatch(
        (ends[0], height),
        (ends[1], height),
        connectionstyle=f"arc3,rad={-0.55 if convolution else -0.4}",
        arrowstyle="-|>",
        mutation_scale=8,
        linestyle="--" if convolution else "-",
        color=colour,
    )
    axis.add_patch(arrow)


def _describe_stage(axis: Axes, stage: str, members: Sequence[_Block], centre: float, colour: str) -> None:
    """Write the name of a stage above its boxes, and below them its layers, output shape, parameters and MACs."""
    layers = [layer for block in members for layer in block.layers]
    if "stage" in stage:
        made_of = f"{len(members)} block{'s' if len(members) > 1 else ''}"
    else:
        # Pooling has no parameters, so it is not in the list of layers.
        kinds = {"Conv": "conv", "BatchNorm": "BN", "Dense": "pool + linear"}
        made_of = " + ".join(kinds[layer.kind] for layer in layers)
    macs = sum(layer.macs for layer in layers)
    lines = [
        made_of,
        "x".join(map(str, members[-1].output_shape)),
        f"{sum(layer.parameters for layer in layers):,}",
        f"{macs / 1e6:,.1f} M" if macs >= 1e5 else f"{macs / 1e3:,.1f} k",
    ]
    title = re.sub(r"(\D)(\d+)$", r"\1 \2", stage)
    axis.text(centre, 2.5, title, ha="center", fontsize=10, fontweight="bold", color=colour)
    _write_lines(axis, centre, lines, "center")


def _write_lines(axis: Axes, x: float, lines: Sequence[str], alignment: str) -> None:
    """Write lines of text below the boxes, one for each quantity."""
    axis.text(x, -0.2, "\n".join(lines), ha=alignment, va="top", fontsize=8, linespacing=1.5)
