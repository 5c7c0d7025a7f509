"""Tables in Markdown, and the table that compares runs."""

import statistics
from collections.abc import Sequence

from jaxresnet.runs.groups import RunGroup


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table. The first row is the header; all columns but the first are aligned to the right.

    >>> print(as_markdown([("run", "%"), ("a", "91.26")]))
    | run | % |
    |---|--:|
    | a | 91.26 |
    """
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([lines[0], "|---" + "|--:" * (len(rows[0]) - 1) + "|", *lines[1:]])


def mean_and_spread(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """The values times `scale` as "mean ± standard deviation" (over n - 1); one value alone; "-" for none.

    >>> mean_and_spread([0.5, 0.7], 100)
    '60.00 ± 14.14'
    """
    if not values:
        return "-"
    mean = f"{scale * statistics.mean(values):.{digits}f}"
    return f"{mean} ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def comparison_table(groups: Sequence[RunGroup]) -> list[tuple[str, ...]]:
    """A header, and a row for each group, with accuracies in percent."""
    rows = [("runs", "seeds", "epochs", "split", "last epoch (%)", "best epoch (%)", "train loss", "minutes")]
    for group in groups:
        split = group.split
        done = [len(history.epochs) for history in group.histories]
        planned = group.histories[0].config.epochs
        epochs = f"{planned}" if set(done) == {planned} else f"{min(done)}-{max(done)} of {planned}"
        rows.append(
            (
                group.name,
                str(len(group.histories)),
                epochs,
                split or "-",
                mean_and_spread(group.last_accuracies(split), 100) if split else "-",
                mean_and_spread(group.best_accuracies(split), 100) if split else "-",
                mean_and_spread(group.last_train_losses(), digits=4),
                mean_and_spread([history.seconds / 60 for history in group.histories], digits=1),
            )
        )
    return rows
