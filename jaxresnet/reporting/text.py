"""Names and numbers as they can be shown in a page, in Markdown and in a drawing."""

import re

from jaxresnet.errors import printable
from jaxresnet.trained.scores import wilson_interval


def printable_lines(text: str) -> str:
    """The text with `jaxresnet.errors.printable` applied to each of its lines."""
    return "\n".join(map(printable, text.split("\n")))


def one_line(text: str, longest: int | None = None) -> str:
    """The text in one printable line, with its middle left out if it has more than `longest` characters.

    >>> one_line("a\\nb"), one_line("runs/ablations/no_dropout", 12)
    ('a b', 'runs/a…opout')
    """
    line = printable(" ".join(text.split()))
    if longest is None or len(line) <= longest:
        return line
    return line[: longest // 2] + "…" + line[len(line) - (longest - 1) // 2 :]


_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_MARKS = re.compile(
    r"[\\`*~$\[\]]"  # code, emphasis, formulas, links, images
    r"|(?<!\w)_|_(?!\w)"  # emphasis; within a word it has no meaning
    r"|(?<=:)/(?=/)|(?<=www)\."  # addresses
)


def escape_markdown(text: str) -> str:
    """A text as one line of Markdown, escaped so that it makes no HTML, link, image, code or emphasis.

    >>> print(escape_markdown("<b>[x] _y_ a_b http://z"))
    &lt;b&gt;\\[x\\] \\_y\\_ a_b http:\\//z
    """
    return _MARKS.sub(r"\\\g<0>", one_line(text).translate(_HTML))


def fenced(text: str) -> str:
    """A text of several lines as a block of code in Markdown. No text can end the block early.

    >>> print(fenced("epochs = 5"))
    ```
    epochs = 5
    ```
    """
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{printable_lines(text).rstrip()}\n{fence}"


def interval_of(accuracy: float, examples: int) -> str:
    """The 95 % interval of an accuracy (0 to 1) that was measured on a number of examples.

    >>> interval_of(0.9126, 10_000)
    '95 % interval 90.69 to 91.80 %'
    """
    low, high = wilson_interval(accuracy, examples)
    return f"95 % interval {100 * low:.2f} to {100 * high:.2f} %"
