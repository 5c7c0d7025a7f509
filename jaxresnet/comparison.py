"""Runs that differ only in their seed, taken together, and groups of such runs side by side."""

import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxresnet.config import Config, differing_keys
from jaxresnet.errors import UserError
from jaxresnet.workdir import FREE_SETTINGS, Workdir


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder tells without loading its network: `epochs` are the lines of metrics.jsonl."""

    path: Path
    name: str
    config: Config
    epochs: list[dict[str, Any]]

    def values(self, key: str) -> tuple[list[int], list[float]]:
        """The epochs that have `key`, and its values there."""
        entries = [(epoch["epoch"], epoch[key]) for epoch in self.epochs if key in epoch]
        return [number for number, _ in entries], [value for _, value in entries]

    @property
    def accuracy_key(self) -> str | None:
        """test_accuracy or validation_accuracy, whichever was evaluated in training; None if neither was."""
        keys = {key for epoch in self.epochs for key in epoch}
        return next((key for key in ("test_accuracy", "validation_accuracy") if key in keys), None)

    @property
    def seconds(self) -> float:
        """Seconds spent training, without evaluation and compilation."""
        return sum(epoch["seconds"] for epoch in self.epochs)


@dataclass(frozen=True)
class RunGroup:
    """Runs of one configuration but for the seed."""

    name: str
    runs: list[RunRecord]

    def last(self, key: str) -> list[float]:
        """Each run's last value of `key`, where it has one."""
        return [values[-1] for run in self.runs if (values := run.values(key)[1])]

    def best(self, key: str) -> list[float]:
        """Each run's highest value of `key`, where it has one."""
        return [max(values) for run in self.runs if (values := run.values(key)[1])]


def read_runs(workdirs: Sequence[Path], above: Path | None = None) -> list[RunRecord]:
    """Read the runs' folders, named by their paths below `above`, by default below the last folder they share.

    Raises UserError if a folder holds no run or is named twice.
    """
    paths = [path.resolve() for path in workdirs]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"--workdir: expected different folders, found {path} twice", 2)
    above = above.resolve() if above else Path(os.path.commonpath([path.parent for path in paths]))
    runs = []
    for path, given in zip(paths, workdirs, strict=True):
        folder = Workdir(given)
        name = path.relative_to(above).as_posix()
        runs.append(RunRecord(given, name, folder.require_config(), folder.metrics()))
    return runs


def group_runs(runs: Sequence[RunRecord]) -> list[RunGroup]:
    """Put runs together whose configurations differ in the seed alone, in the order of their first ones.

    Where and on what a run computed does not count; its number of epochs does.
    """
    neutral = ("seed", *(setting for setting in FREE_SETTINGS if setting != "epochs"))
    groups: list[list[RunRecord]] = []
    for run in runs:
        for group in groups:
            differing = differing_keys(group[0].config, run.config)
            if all(name.startswith(neutral) for name in differing):
                group.append(run)
                break
        else:
            groups.append([run])
    return [RunGroup(_common_name([run.name for run in group]), group) for group in groups]


def _common_name(names: Sequence[str]) -> str:
    """The names' common form without a seed's number at the end; all of them if they have none."""
    if len(names) == 1:
        return re.sub(r"/seed\d+$", "", names[0])
    stems = {re.sub(r"[/_.-]*(seed)?[/_.-]*\d+$", "", name) for name in names}
    return stems.pop() if len(stems) == 1 and "" not in stems else ", ".join(names)


def mean_and_spread(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """ "mean ± standard deviation" over n - 1, without it for one value, a dash for none."""
    if not values:
        return "-"
    mean = f"{scale * statistics.mean(values):.{digits}f}"
    return f"{mean} ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def comparison_table(groups: Sequence[RunGroup]) -> list[tuple[str, ...]]:
    """A header and a row for each group, accuracies in percent."""
    rows = [("runs", "seeds", "epochs", "split", "last epoch (%)", "best epoch (%)", "train loss", "minutes")]
    for group in groups:
        key = next((run.accuracy_key for run in group.runs if run.accuracy_key), None)
        done = [len(run.epochs) for run in group.runs]
        planned = group.runs[0].config.epochs
        epochs = f"{planned}" if set(done) == {planned} else f"{min(done)}-{max(done)} of {planned}"
        rows.append(
            (
                group.name,
                str(len(group.runs)),
                epochs,
                key.removesuffix("_accuracy") if key else "-",
                mean_and_spread(group.last(key), 100) if key else "-",
                mean_and_spread(group.best(key), 100) if key else "-",
                mean_and_spread(group.last("train_loss"), digits=4),
                mean_and_spread([run.seconds / 60 for run in group.runs], digits=1),
            )
        )
    return rows


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of a header and rows; numbers stand to the right."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([lines[0], "|---" + "|--:" * (len(rows[0]) - 1) + "|", *lines[1:]])
