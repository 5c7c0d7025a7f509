"""How sure a network is, and how often it is right."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from jaxresnet.reporting.figures.drawing import COLOURS
from jaxresnet.trained.scores import CalibrationBin


def reliability(bins: Sequence[CalibrationBin]) -> Figure:
    """Share of correct predictions by confidence, in percent, with the diagonal of perfect calibration.

    A bin without examples has no bar.
    """
    figure, axis = _axis_of_confidence("correct (%)")
    _draw_bars(axis, bins, [100 * each.accuracy for each in bins], COLOURS[0])
    axis.plot([0, 100], [0, 100], linestyle="--", linewidth=1.5, color=COLOURS[1])
    axis.set_ylim(0, 100)
    return figure


def confidence_counts(bins: Sequence[CalibrationBin]) -> Figure:
    """The number of examples by confidence, also in figures."""
    figure, axis = _axis_of_confidence("examples")
    bars = _draw_bars(axis, bins, [each.examples for each in bins], COLOURS[2])
    axis.bar_label(bars, [f"{each.examples:,}" for each in bins if each.examples], fontsize=7, padding=1)
    axis.margins(y=0.1)
    return figure


def _axis_of_confidence(ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, 3.6))
    axis = figure.subplots()
    axis.set(xlabel="confidence: probability of the predicted class (%)", xlim=(0, 100), ylabel=ylabel)
    axis.grid(axis="y", linewidth=0.6)
    axis.set_axisbelow(True)
    return figure, axis


def _draw_bars(
    axis: Axes, bins: Sequence[CalibrationBin], heights: Sequence[float], colour: str
) -> BarContainer:
    """Draw a bar for each bin that has examples, over its part of the axis."""
    width = 100 / len(bins)
    full = [number for number, each in enumerate(bins) if each.examples]
    left, shown = [number * width for number in full], [heights[number] for number in full]
    return axis.bar(left, shown, 0.9 * width, align="edge", color=colour)
