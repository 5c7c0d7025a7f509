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
    """A header, and a row for each group, with accuracies in percent.

    If epochs were not evaluated on the test split, or a run keeps an average of its weights, further columns have the
    test accuracies of the evaluations after the last step.
    """
    evaluated = {
        "test, last step (%)": [group.evaluated_accuracies() for group in groups],
        "test, average (%)": [group.evaluated_accuracies(average=True) for group in groups],
    }
    if all(group.split == "test" for group in groups):
        del evaluated["test, last step (%)"]  # it would be the last epoch's
    more = {name: values for name, values in evaluated.items() if any(values)}
    rows = [
        (
            "runs",
            "number",
            "epochs",
            "split",
            "last epoch (%)",
            "best epoch (%)",
            *more,
            "train loss",
            "minutes",
        )
    ]
    for number, group in enumerate(groups):
        split = group.split
        done = [len(history.epochs) for history in group.histories]
        planned = group.histories[0].config.epochs
        span = "-".join(str(number) for number in sorted({min(done), max(done)}))
        epochs = span if span == str(planned) else f"{span} of {planned}"
        rows.append(
            (
                group.name,
                str(len(group.histories)),
                epochs,
                split or "-",
                mean_and_spread(group.last_accuracies(split), 100) if split else "-",
                mean_and_spread(group.best_accuracies(split), 100) if split else "-",
                *(mean_and_spread(values[number], 100) for values in more.values()),
                mean_and_spread(group.last_train_losses(), digits=4),
                mean_and_spread([history.seconds / 60 for history in group.histories], digits=1),
            )
        )
    return rows
