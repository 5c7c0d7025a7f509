"""What all figures share: colours, and turning a figure into PNGs for white pages and for dark ones."""

import io
import warnings
from collections.abc import Callable
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from jaxresnet.reporting.page import Drawing, Picture

COLOURS = ("#2f7fd1", "#e0662f", "#2a9d6f", "#b04fb5", "#c79a1d", "#17a2b8", "#d14b69", "#7d8590")
"""Colours that most colour-blind readers can tell apart, too, on white and on black."""


def picture(
    name: str, caption: str, draw: Callable[[], Figure], narrow: Callable[[], Figure] | None = None
) -> Picture:
    """The figure that `draw` returns; on narrow pages the one that `narrow` returns, if that is given."""
    return Picture(name, caption, _both(draw), _both(narrow) if narrow else None)


def _both(draw: Callable[[], Figure]) -> Drawing:
    return Drawing(render(draw), render(draw, dark=True))


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
    with rc_context(style), warnings.catch_warnings():
        # A letter that matplotlib's own font does not have is drawn as a box; the tables show it.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        file = io.BytesIO()
        # Without matplotlib's version in the file, so that equal inputs give equal bytes.
        draw().savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
