"""Groups of runs that differ only in their seed, for comparing such groups with each other."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxresnet.config.schema import Config, differing_settings
from jaxresnet.errors import UserError
from jaxresnet.machine.environment import Start
from jaxresnet.plan import Plan
from jaxresnet.runs.records import (
    EpochRecord,
    EvaluationRecord,
    best_epoch,
    evaluated_split,
    read_evaluation,
)
from jaxresnet.runs.workdir import FREE_SETTINGS, Workdir

NEUTRAL_SETTINGS = ("seed", *(setting for setting in FREE_SETTINGS if setting != "epochs"))
"""Settings, or beginnings of their names, in which runs of one kind may differ: the seed, where a run computes and when
it saves."""


@dataclass(frozen=True)
class History:
    """A run as its folder records it, without its network: name, plan and finished epochs."""

    workdir: Workdir
    name: str
    plan: Plan
    epochs: list[EpochRecord]
    starts: list[Start]

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.plan.config

    @property
    def split(self) -> str | None:
        """The split that was evaluated during training, "test" or "validation"; None if neither was."""
        return evaluated_split(self.epochs)

    @property
    def seconds(self) -> float:
        """Seconds spent training in all starts of the run, without evaluation and compilation.

        Version 0.1 did not record them by start. Of its runs these are the last process's seconds in each epoch, which
        is less than all if a start ended within an epoch.
        """
        # A later version's start without them ended before it had trained.
        if not self.starts or any(_is_of_0_1(start) for start in self.starts):
            return sum(epoch.seconds for epoch in self.epochs)
        return sum(start.train_seconds or 0.0 for start in self.starts)

    def evaluation(self, *, average: bool = False) -> EvaluationRecord | None:
        """The evaluation of the last epoch's checkpoint on the test split; None if there is none of this step.

        With `average`, that of the average of the weights. Raises UserError if the file holds something else.
        """
        record = read_evaluation(self.workdir.evaluation_path("latest", average=average))
        return record if record and self.epochs and record.step == self.epochs[-1].step else None


@dataclass(frozen=True)
class RunGroup:
    """Runs whose configurations are equal except for the seed."""

    name: str
    histories: list[History]

    @property
    def split(self) -> str | None:
        """The split that was evaluated during training; None if no run has evaluated one."""
        return next((history.split for history in self.histories if history.split), None)

    def last_accuracies(self, split: str) -> list[float]:
        """The last accuracy (0 to 1) of each run on a split. Runs without one are left out."""
        found = [[record.accuracy(split) for record in history.epochs] for history in self.histories]
        known = [[accuracy for accuracy in each if accuracy is not None] for each in found]
        return [each[-1] for each in known if each]

    def best_accuracies(self, split: str) -> list[float]:
        """The highest accuracy (0 to 1) of each run on a split. Runs without one are left out."""
        best = [best_epoch(history.epochs, split) for history in self.histories]
        return [accuracy for record in best if record and (accuracy := record.accuracy(split)) is not None]

    def evaluated_accuracies(self, *, average: bool = False) -> list[float]:
        """The test accuracy (0 to 1) in each run's evaluation. Runs without one (`History.evaluation`) are left out."""
        found = [history.evaluation(average=average) for history in self.histories]
        return [record.accuracy for record in found if record]

    def last_train_losses(self) -> list[float]:
        """The training loss of each run in its last epoch. Runs without a finished epoch are left out."""
        return [history.epochs[-1].train_loss for history in self.histories if history.epochs]


def read_histories(workdirs: Sequence[Path], above: Path | None = None) -> list[History]:
    """Read the folders of runs. Each run's name is its path relative to the last common folder.

    With `above`, a folder that all paths begin with, it is relative to that, also where the path is a link. Raises
    UserError if a folder holds no run or is given twice.
    """
    paths = [path.resolve() for path in workdirs]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"--workdir: expected different folders, found {path} twice", 2)
    common = Path(os.path.commonpath([path.parent for path in paths]))
    histories = []
    for path, given in zip(paths, workdirs, strict=True):
        workdir = Workdir(given)
        name = (given.relative_to(above) if above else path.relative_to(common)).as_posix()
        histories.append(
            History(workdir, name, workdir.require_plan(), workdir.epochs.read(), workdir.starts.read())
        )
    return histories


def group_runs(histories: Sequence[History]) -> list[RunGroup]:
    """Group the runs on the same data whose configurations differ only in the seed.

    The groups are in the order of their first runs. Settings that say where a run computes and when it saves are not
    compared, either; its number of epochs is.
    """
    groups: list[list[History]] = []
    for history in histories:
        for group in groups:
            differing = differing_settings(group[0].config, history.config)
            same_data = group[0].plan.info == history.plan.info  # data.dir may name other pictures
            if same_data and all(name.startswith(NEUTRAL_SETTINGS) for name in differing):
                group.append(history)
                break
        else:
            groups.append([history])
    full = [", ".join(history.name for history in group) for group in groups]
    short = [_common_name([history.name for history in group]) for group in groups]
    names = [brief if short.count(brief) == 1 else whole for brief, whole in zip(short, full, strict=True)]
    return [RunGroup(name, group) for name, group in zip(names, groups, strict=True)]


def _is_of_0_1(start: Start) -> bool:
    """Whether version 0.1 recorded the start, without the seconds that it trained."""
    return start.train_seconds is None and start.versions.get("jaxresnet", "").startswith("0.1.")


def _common_name(names: Sequence[str]) -> str:
    """The common form of the names without the number of a seed at the end; all names if they have no common form."""
    if len(names) == 1:
        return re.sub(r"/seed\d+$", "", names[0])
    stems = {re.sub(r"[/_.-]*(seed)?[/_.-]*\d+$", "", name) for name in names}
    return stems.pop() if len(stems) == 1 and "" not in stems else ", ".join(names)
