"""Predictions on the console: tables with bars, a line for each file, or JSON lines."""

import itertools
import json
import sys
from collections.abc import Sequence

import numpy as np
from rich.bar import Bar
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from jaxresnet.errors import printable
from jaxresnet.reporting.text import one_line

FEW = 5
"""Files up to which each has a table: with three classes each they fit into a terminal of 24 lines."""

LONGEST_CLASS_NAME = 24

LIVE_PER_SECOND = 4
"""Updates of the bar."""


def ranking(names: Sequence[str], probabilities: np.ndarray, top: int) -> list[tuple[str, float]]:
    """The `top` most probable classes, name and probability, the most probable first.

    `probabilities` are float32 [classes]. Each is given as the shortest number that is the same in float32.

    >>> ranking(["cat", "dog"], np.float32([0.1, 0.9]), 5)
    [('dog', 0.9), ('cat', 0.1)]
    """
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [(names[int(each)], float(str(probabilities[each]))) for each in order]


def as_json(file: str, ranked: Sequence[tuple[str, float]]) -> str:
    r"""A file's ranking as a line of JSON in ASCII.

    A byte of the file's name that is not UTF-8 is written as Python's escape for it, \udc80 to \udcff, so that
    os.fsencode(json.loads(line)["file"]) is the name again.

    >>> print(as_json("ü\udcff.png", [("cat", 0.75)]))
    {"file": "\u00fc\udcff.png", "class": "cat", "probability": 0.75, "top": [["cat", 0.75]]}
    """
    best, probability = ranked[0]
    return json.dumps({"file": file, "class": best, "probability": probability, "top": ranked})


class PredictionConsole:
    """Prints the prediction of each of a number of `files`. A context manager.

    On a terminal that is a table with bars for each of few files, and a line for each of many. Elsewhere, or with
    `json_lines`, it is a line of JSON. While it prints many, there is a bar on the terminal, if stdout or stderr is
    one. `names` are those of the classes, and `top` is how many are shown. Raises OSError if stdout cannot be written.
    """

    def __init__(self, names: Sequence[str], top: int, files: int, json_lines: bool):
        self._names, self._top, self._few = names, top, files <= FEW
        self._terminal = sys.stdout.isatty()
        self._json = json_lines or not self._terminal
        self._console = Console(
            file=sys.stdout if self._terminal else sys.stderr, highlight=False, markup=False, emoji=False
        )
        self._console.width -= 3  # the terminal shows the ^C of a Ctrl-C behind the bar
        longest = min(LONGEST_CLASS_NAME, max(8, self._console.width // 3))
        self._widest = min(longest, max(cell_len(printable(name)) for name in names))
        self._bar = None
        if not self._few and (self._terminal or sys.stderr.isatty()):
            self._bar = Progress(
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
                refresh_per_second=LIVE_PER_SECOND,
                redirect_stdout=False,
                redirect_stderr=sys.stderr.isatty(),
            )
            self._task = self._bar.add_task("", total=files)

    def __enter__(self) -> "PredictionConsole":
        if self._bar:
            self._bar.start()
            self._console.show_cursor(True)  # Ctrl-C ends a command at once, and nothing would show it again
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, file: str, probabilities: np.ndarray) -> None:
        """Print a file's prediction, from the probabilities of the classes, float32 [classes]."""
        ranked = ranking(self._names, probabilities, self._top)
        if self._json:
            self._print_line(as_json(file, ranked))
        elif self._few:
            self._console.print(Text(printable(file), style="bold", overflow="fold"))
            self._console.print(_table(ranked, self._widest))
        else:
            self._print_line(self._short_line(file, ranked))

    def done(self) -> None:
        """Count a file, whether it was shown or not."""
        if self._bar:
            self._bar.advance(self._task)

    def _print_line(self, line: str) -> None:
        if self._terminal:
            self._console.print(line, soft_wrap=True)  # above the bar, if there is one
        else:
            print(line, flush=True)

    def _short_line(self, file: str, ranked: Sequence[tuple[str, float]]) -> str:
        """The most probable class, its probability, and the file, within the width of the terminal if possible."""
        best, probability = ranked[0]
        name = shortened(best, self._widest)
        start = f"{name}{' ' * (self._widest - cell_len(name))} {probability:6.1%}  "
        return start + shortened(file, max(10, self._console.width - cell_len(start)))


def shortened(text: str, cells: int) -> str:
    """The text in one printable line of at most so many cells of a terminal, with its middle left out if need be.

    >>> shortened("holiday/beach.jpg", 10), shortened("写真.jpg", 10), shortened("写真と写真.jpg", 10)
    ('holid….jpg', '写真.jpg', '写真と…jpg')
    """
    lines = itertools.chain([printable(text)], (one_line(text, longest) for longest in range(cells, 0, -1)))
    return next(line for line in lines if cell_len(line) <= cells)


def _table(ranked: Sequence[tuple[str, float]], widest: int) -> Table:
    """A line for each class: its name in at most `widest` cells, its probability, and a bar in what is left."""
    table = Table.grid(padding=(0, 1), pad_edge=True, expand=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(ratio=1)
    for name, probability in ranked:
        bar = Bar(1.0, 0.0, probability, color="cyan")
        table.add_row(Text(f" {shortened(name, widest)}"), f"{probability:.1%}", bar)
    return table
