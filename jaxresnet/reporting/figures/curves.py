"""Curves of losses, accuracies and the like by epoch, of one run or of groups of runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from jaxresnet.reporting.figures.drawing import COLOURS
from jaxresnet.reporting.text import one_line
from jaxresnet.runs.groups import RunGroup
from jaxresnet.runs.records import EpochRecord

_LONGEST_NAME = 36
"""Longest name in a legend, in characters; of a longer one the middle is left out."""


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
    marks: Sequence[float] = (),
) -> Figure:
    """Curves by epoch, with values multiplied by `scale`. With `from_zero`, the vertical axis begins at 0.

    Dotted vertical lines are drawn at the `marks`, in epochs.

    A group of several runs is drawn as their mean, in a band from the lowest value to the highest. For one group, each
    curve has its own colour. For several, each group has its own colour, or colour and marker if they are many, and the
    first curve of several is dashed.
    """
    figure = Figure(figsize=(4.8, 3.6))
    axis = figure.subplots()
    several = len(groups) > 1
    entries: list[tuple[Line2D, str]] = []
    for number, group in enumerate(groups):
        lines = []
        for position, curve in enumerate(drawn):
            dashed = several and len(drawn) > 1 and position == 0
            look = _Look.of(number if several else position, dashed=dashed)
            if line := _draw_curve(axis, _values_by_epoch(group, curve, scale), look):
                lines.append((line, one_line(group.name if several else curve.name, _LONGEST_NAME)))
        # Of several groups each has one name, beside its solid line if it has one.
        entries += lines[-1:] if several else lines
    _fit_axes(axis, logarithmic="loss" in ylabel, from_zero=from_zero)
    for mark in marks:
        axis.axvline(mark, color="0.4", linestyle=":", linewidth=1.2)
    axis.set(xlabel="epoch", ylabel=ylabel)
    if several or len(entries) > 1:
        # Given one by one, because matplotlib itself would leave out a name that begins with an underscore.
        axis.legend([line for line, _ in entries], [name for _, name in entries], fontsize=8)
    return figure


@dataclass(frozen=True)
class _Look:
    """How a line is drawn. `marker` is None for small points, and only where there are few."""

    colour: str
    linestyle: str
    marker: str | None

    @classmethod
    def of(cls, number: int, *, dashed: bool) -> "_Look":
        """The look of one of several lines, by its number from 0. Up to 48 differ."""
        again, colour = divmod(number, len(COLOURS))
        return cls(COLOURS[colour], "--" if dashed else "-", [None, *"s^Dv*"][again % 6])


def _values_by_epoch(group: RunGroup, curve: Curve, scale: float) -> dict[int, list[float]]:
    """Epoch to the values of the runs that have one, in the order of the epochs."""
    values: dict[int, list[float]] = {}
    for history in group.histories:
        for record in history.epochs:
            if (value := curve.value(record)) is not None:
                values.setdefault(record.epoch, []).append(scale * value)
    return dict(sorted(values.items()))


def _draw_curve(axis: Axes, values: dict[int, list[float]], look: _Look) -> Line2D | None:
    """Draw the mean by epoch as a line, and the band of all values if an epoch has several. None without values."""
    if not values:
        return None
    epochs = list(values)
    [line] = axis.plot(
        epochs,
        [sum(each) / len(each) for each in values.values()],
        color=look.colour,
        linestyle=look.linestyle,
        linewidth=1.8,
        marker=look.marker or ("o" if len(epochs) <= 15 else None),
        markersize=7 if len(epochs) == 1 else 5 if look.marker else 3.5,
        markevery=-(-len(epochs) // 15),
    )
    if any(len(each) > 1 for each in values.values()):
        low, high = [min(each) for each in values.values()], [max(each) for each in values.values()]
        axis.fill_between(epochs, low, high, color=look.colour, alpha=0.18, linewidth=0)
    return line


def _fit_axes(axis: Axes, *, logarithmic: bool, from_zero: bool) -> None:
    """Fit the axes to the lines. `logarithmic` allows a logarithmic one if values span more than a factor of 20."""
    means = [float(y) for line in axis.lines for y in np.asarray(line.get_ydata())]
    longest = max((int(x) for line in axis.lines for x in np.asarray(line.get_xdata())), default=1)
    if logarithmic and means and min(means) > 0 and max(means) > 20 * min(means):
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if from_zero:
        axis.set_ylim(0, 1.05 * max(means, default=1.0))
    axis.set_xlim(0.5 if longest < 20 else 0, longest + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.grid(linewidth=0.6)
    axis.set_axisbelow(True)
