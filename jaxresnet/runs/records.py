"""The records that a run writes. Each kind has one reader and one writer, both here."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from jaxresnet.errors import Interrupted, UserError, printable
from jaxresnet.machine.environment import Start
from jaxresnet.plan import MAX_STEPS
from jaxresnet.runs.files import (
    json_text,
    parse_record,
    read_if_there,
    read_record,
    to_json,
    write_json,
    write_named,
    write_to_disk,
    write_whole,
)

SPLITS = ("train", "validation", "test")

Fraction = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=MAX_STEPS)]


@dataclass(frozen=True)
class Identity:
    """A run's identity, to which its checkpoints are bound.

    `run` is a random id, the content of run.json; None in a folder that an earlier version made. `settings` are those
    that stay the same when a run is resumed: dotted name to JSON value.
    """

    run: str | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class EpochRecord:
    """An epoch's record, a line of metrics.jsonl.

    `epoch` is counted from 1. `step` is the number of steps taken at its end. Losses are means over the examples,
    accuracies are fractions; those of a split are None if it was not evaluated. Those of training are of the augmented
    images; one that is mixed from two counts by the class of its larger part. Those with "average" are of the average
    of the weights, if the run keeps one. `learning_rate` is that of the epoch's last step. `seconds` and
    `images_per_second` do not include compilation and evaluation. They are of the last process's part of the epoch;
    the rate is None if it had no step left to train.
    """

    epoch: Count
    step: Count
    learning_rate: Finite
    train_loss: Finite
    train_accuracy: Fraction
    seconds: Finite
    images_per_second: Finite | None = None
    validation_loss: Finite | None = None
    validation_accuracy: Fraction | None = None
    test_loss: Finite | None = None
    test_accuracy: Fraction | None = None
    validation_average_loss: Finite | None = None
    validation_average_accuracy: Fraction | None = None
    test_average_loss: Finite | None = None
    test_average_accuracy: Fraction | None = None

    def loss(self, split: str) -> float | None:
        """The loss on the split "train", "validation" or "test"; None if it was not evaluated.

        "validation_average" and "test_average" name the loss of the average of the weights.
        """
        return getattr(self, f"{split}_loss")

    def accuracy(self, split: str) -> float | None:
        """The accuracy (0 to 1) on a split, which is named as for `loss`; None if it was not evaluated."""
        return getattr(self, f"{split}_accuracy")

    def as_json(self) -> dict[str, Any]:
        """The object that is written as a line. Values that are None are left out, and the times come last."""
        found = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        clock = {key: found.pop(key) for key in ("seconds", "images_per_second") if key in found}
        return found | clock


@dataclass(frozen=True)
class EvaluationRecord:
    """An evaluation, the content of evaluation.json.

    `checkpoint` is "latest", "best", the number of a step or the name of a file. `step` is None for weights from a
    file. `selected_on` names the split that served to choose the checkpoint among others; None if none did. Accuracies
    are fractions; that of a class without examples is None. The rows of the confusion matrix are true classes.
    `average` says that the weights are the average that the run kept. If the images were also predicted with test-time
    augmentation, `tta` is its kind, and `tta_loss` and `tta_accuracy` are its results; all others are of the plain
    images. Raises ValueError if the matrix has another number of classes.
    """

    checkpoint: str
    step: Count | None
    split: str
    selected_on: str | None
    examples: Count
    loss: Finite
    accuracy: Fraction
    per_class_accuracy: dict[str, Fraction | None]
    confusion_matrix: list[list[Count]]
    average: bool = False
    tta: str | None = None
    tta_loss: Finite | None = None
    tta_accuracy: Fraction | None = None

    def __post_init__(self) -> None:
        classes = len(self.per_class_accuracy)
        if classes == 0 or [len(row) for row in self.confusion_matrix] != [classes] * classes:
            raise ValueError(f"expected a confusion matrix of the {classes} classes, found another shape")


def best_epoch(records: Iterable[EpochRecord], split: str) -> EpochRecord | None:
    """The epoch with the highest accuracy on `split`, the later one of equals; None if none was evaluated on it.

    The checkpoint that is kept as the best is of the same epoch (`jaxresnet.runs.checkpoint`).
    """
    evaluated = [
        (accuracy, record.epoch, record)
        for record in records
        if (accuracy := record.accuracy(split)) is not None
    ]
    return max(evaluated, key=lambda each: each[:2])[2] if evaluated else None


def evaluated_split(records: Iterable[EpochRecord]) -> str | None:
    """The split that was evaluated during training, "test" or "validation"; None if neither was."""
    records = list(records)
    return next(
        (split for split in ("test", "validation") if any(r.accuracy(split) is not None for r in records)),
        None,
    )


class EpochLog:
    """metrics.jsonl: a line for each finished epoch."""

    def __init__(self, path: Path):
        self._path = path

    def append(self, record: EpochRecord) -> None:
        """Add a line. It is on disk when this returns.

        Raises ValueError if a number is not finite, and OSError if the line cannot be written.
        """
        write_to_disk(self._path, "a", json.dumps(record.as_json(), allow_nan=False) + "\n")

    def read(self) -> list[EpochRecord]:
        """The records of all lines. An incomplete last line is ignored.

        Raises UserError with the number of the first line that is not an epoch's record.
        """
        return [
            parse_record(EpochRecord, line, f"{self._path}, line {number}")
            for number, line in enumerate(self._lines(), 1)
        ]

    def require(self, epochs: int) -> None:
        """Raise UserError if a record of the first `epochs` epochs is missing."""
        missing = sorted(set(range(1, epochs + 1)) - {record.epoch for record in self.read()})
        if missing:
            raise UserError(
                f"{self._path}: expected a line for each of the {epochs} epochs that the run has finished, found none "
                f"for {', '.join(map(str, missing))}: put the file back from a copy, or name another --workdir"
            )

    def cut(self, step: int) -> None:
        """Drop the lines of epochs that ended after `step`."""
        if self._path.exists():
            lines = zip(self._lines(), self.read(), strict=True)
            write_whole(self._path, "".join(f"{line}\n" for line, record in lines if record.step <= step))

    def _lines(self) -> list[str]:
        content = read_if_there(self._path) or b""
        return content.decode(errors="replace").split("\n")[:-1]


class StartLog:
    """environment.json: an entry for each start of a run."""

    def __init__(self, path: Path):
        self._path = path

    def read(self) -> list[Start]:
        """All starts so far. Raises UserError if the file holds something else."""
        return read_record(list[Start], self._path) or []

    def add(self, start: Start) -> None:
        """Add an entry for a start."""
        write_json(self._path, [to_json(each) for each in (*self.read(), start)])

    @contextlib.contextmanager
    def recorded(self, start: Start, began: float, peak: Callable[[], int | None]) -> Iterator[None]:
        """Add an entry for a start, and at its end or if it is stopped its seconds and the peak of memory.

        The seconds are those since `began`, a time of `time.monotonic`. `peak` tells the bytes.
        """

        def end() -> None:
            self.extend(seconds=round(time.monotonic() - began, 1), peak_device_bytes=peak())

        self.add(start)
        try:
            yield
        except Interrupted:
            end()
            raise
        end()

    def add_train_seconds(self, seconds: float) -> None:
        """Add to the seconds that the last start has trained. Raises OSError if they cannot be written."""
        if starts := self.read():
            self.extend(train_seconds=round((starts[-1].train_seconds or 0.0) + seconds, 3))

    def extend(self, **values: Any) -> None:
        """Set fields of the last start's entry, by name. Nothing is written if somebody removed the file meanwhile."""
        if starts := self.read():
            *earlier, start = starts
            write_json(
                self._path, [to_json(each) for each in (*earlier, dataclasses.replace(start, **values))]
            )


@dataclass(frozen=True)
class InitialWeights:
    """The network whose weights a run began with.

    `source` is the setting `init`, and `step` that of its checkpoint; None for weights from a file. `sha256` is of its
    weights, as a checkpoint's meta has it. `head` says whether the head was taken as well.
    """

    source: str
    step: Count | None
    sha256: str
    head: bool

    @property
    def place(self) -> str:
        """The source, with the step if it has one, in words."""
        return printable(self.source) + ("" if self.step is None else f", step {self.step:,}")


@dataclass(frozen=True)
class RunRecord:
    """A run's id, the content of run.json. `initial` is where its first weights come from; None if they are random."""

    id: str
    initial: InitialWeights | None = None


def read_run(path: Path) -> RunRecord | None:
    """The content of a run.json; None if there is none. Raises UserError if the file holds something else."""
    return read_record(RunRecord, path)


def write_run(path: Path, record: RunRecord) -> None:
    """Write a run.json."""
    write_json(path, {name: value for name, value in to_json(record).items() if value is not None})


def read_evaluation(path: Path) -> EvaluationRecord | None:
    """The evaluation in a file; None if there is no such file. Raises UserError if it holds something else."""
    return read_record(EvaluationRecord, path)


def write_evaluation(path: Path, record: EvaluationRecord, *, named: bool = False) -> None:
    """Write an evaluation completely or not at all; if a user `named` the file, as `write_named` does.

    Raises ValueError if a number is not finite, and OSError if the file cannot be written.
    """
    write = write_named if named else write_whole
    fields = {field.name: field.default for field in dataclasses.fields(record)}
    values = {name: value for name, value in dataclasses.asdict(record).items() if value != fields[name]}
    write(path, json_text(values))
