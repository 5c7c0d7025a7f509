"""The network's blocks, from the first layer to the last."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from jaxresnet.network.describe import LayerInfo
from jaxresnet.reporting.figures.drawing import COLOURS


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


class _Stage(NamedTuple):
    """The stem, a stage of residual blocks, or the head."""

    name: str
    colour: str
    blocks: list[_Block]


class _Pen(NamedTuple):
    """Where boxes are drawn, and how large: `largest` is the height in pixels of the largest map of the network."""

    axis: Axes
    largest: int
    scale: float = 1.0


def architecture(layers: Sequence[LayerInfo]) -> Figure:
    """The network, drawn from its layers from left to right, with a box for each block.

    A higher box has a larger map, a wider box has more channels. An arc is the shortcut of a block. It is dashed if the
    shortcut is a convolution. Stages are counted from 1.
    """
    stages, largest = _stages(layers)
    figure = Figure(figsize=(10, 4.0))
    axis = figure.subplots()
    axis.set_axis_off()
    left = 0.0
    for stage in stages:
        right = _draw_blocks(_Pen(axis, largest), stage, left, 1)
        centre = (left + right) / 2
        axis.text(centre, 2.5, stage.name, ha="center", fontsize=10, fontweight="bold", color=stage.colour)
        _write(axis, centre, -0.2, _facts(stage), "center")
        left = max(right + _gap(stage.blocks), left + 0.95) + 0.35
    _write(axis, -0.25, -0.2, ["", "output", "parameters", "MACs"], "right")
    axis.set(xlim=(-1.1, left), ylim=(-1.15, 2.7))
    return figure


def stacked_architecture(layers: Sequence[LayerInfo]) -> Figure:
    """The same drawing for a narrow page: from top to bottom, each stage beside what is known of it."""
    stages, largest = _stages(layers)
    widest = max(_width(stage.blocks) for stage in stages)
    scale = min(0.55, 1.9 / widest)  # all lengths are in inches
    heights = [max(1.1, scale * _box_height(stage.blocks[0], largest) + 0.35) for stage in stages]
    figure = Figure(figsize=(3.9, sum(heights)))
    axis = figure.subplots()
    axis.set_axis_off()
    x, top = scale * widest + 0.35, 0.0
    for stage, height in zip(stages, heights, strict=True):
        middle = top - height / 2
        _draw_blocks(_Pen(axis, largest, scale), stage, 0.1, middle)
        axis.text(x, middle + 0.2, stage.name, fontsize=11, fontweight="bold", color=stage.colour)
        made_of, shape, parameters, macs = _facts(stage)
        lines = [made_of, f"output {shape}", f"{parameters} parameters", f"{macs} MACs"]
        _write(axis, x, middle + 0.16, lines, "left", 9)
        top -= height
    axis.set(xlim=(0, 3.9), ylim=(top, 0))
    return figure


def _stages(layers: Sequence[LayerInfo]) -> tuple[list[_Stage], int]:
    """The network's stages in order, stem and head included, and the height of its largest map in pixels."""
    blocks = [_Block(name, list(group)) for name, group in groupby(layers, _block_name)]
    stages = [
        _Stage(_shown_name(name), COLOURS[number % len(COLOURS)], list(group))
        for number, (name, group) in enumerate(groupby(blocks, lambda block: block.name.split("_")[0]))
    ]
    return stages, max(block.height for block in blocks)


def _block_name(layer: LayerInfo) -> str:
    """The block that a layer belongs to: stem_conv and stem_norm are the stem."""
    first = layer.name.split("/")[0]
    return first if "_block" in first else first.split("_")[0]


def _shown_name(stage: str) -> str:
    """People count stages from 1, the network's variables from 0.

    >>> _shown_name("stage0"), _shown_name("head")
    ('stage 1', 'head')
    """
    number = stage.removeprefix("stage")
    return f"stage {int(number) + 1}" if number.isdecimal() else stage


def _share(blocks: Sequence[_Block]) -> float:
    """The factor by which boxes become narrower: more than ten blocks get the room of ten."""
    return min(1.0, 10 / len(blocks))


def _gap(blocks: Sequence[_Block]) -> float:
    return 0.2 * _share(blocks)


def _box_width(block: _Block) -> float:
    return 0.28 + 0.16 * math.log2(block.output_shape[-1] / 8 + 1)


def _box_height(block: _Block, largest: int) -> float:
    return 2 * math.sqrt(block.height / largest)


def _width(blocks: Sequence[_Block]) -> float:
    """The room that the boxes of a stage take."""
    return sum(_share(blocks) * _box_width(block) + _gap(blocks) for block in blocks)


def _draw_blocks(pen: _Pen, stage: _Stage, left: float, centre: float) -> float:
    """Draw the boxes of a stage from `left` on, at the height `centre`. Returns where the last one ends."""
    share, right = _share(stage.blocks), left
    for block in stage.blocks:
        width = pen.scale * share * _box_width(block)
        height = pen.scale * _box_height(block, pen.largest)
        box = Rectangle((left, centre - height / 2), width, height, facecolor=stage.colour, alpha=0.85)
        pen.axis.add_patch(box)
        right = left + width
        if "_block" in block.name:
            margin = pen.scale * 0.07 * share
            ends = (left - margin, right + margin)
            _draw_shortcut(pen.axis, block, ends, centre + height / 2 + 0.05 * pen.scale, stage.colour)
        left = right + pen.scale * _gap(stage.blocks)
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


def _facts(stage: _Stage) -> list[str]:
    """What a stage is made of, its output shape, and its numbers of parameters and MACs."""
    layers = [layer for block in stage.blocks for layer in block.layers]
    if "_block" in stage.blocks[0].name:
        made_of = f"{len(stage.blocks)} block{'s' if len(stage.blocks) > 1 else ''}"
    else:
        # Pooling has no parameters, so it is not in the list of layers.
        kinds = {"Conv": "conv", "BatchNorm": "BN", "Dense": "pool + linear"}
        made_of = " + ".join(kinds[layer.kind] for layer in layers)
    macs = sum(layer.macs for layer in layers)
    return [
        made_of,
        "x".join(map(str, stage.blocks[-1].output_shape)),
        f"{sum(layer.parameters for layer in layers):,}",
        f"{macs / 1e6:,.1f} M" if macs >= 1e5 else f"{macs / 1e3:,.1f} k",
    ]


def _write(axis: Axes, x: float, y: float, lines: Sequence[str], alignment: str, size: float = 8) -> None:
    """Write lines of text from the height `y` downwards."""
    axis.text(x, y, "\n".join(lines), ha=alignment, va="top", fontsize=size, linespacing=1.5)
