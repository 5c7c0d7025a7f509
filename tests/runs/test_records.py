"""The records of a run: written whole, read as what they are, and named where they are something else."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers import largest_file, plan_of

from jaxresnet.config.files import dump_config
from jaxresnet.config.schema import Config
from jaxresnet.errors import UserError
from jaxresnet.runs.files import write_json
from jaxresnet.runs.records import (
    EpochRecord,
    EvaluationRecord,
    best_epoch,
    evaluated_split,
    write_evaluation,
)
from jaxresnet.runs.workdir import Workdir

LINE = (
    '{"epoch": 1, "step": 10, "learning_rate": 0.1, "train_loss": 2.5, "train_accuracy": 0.25, '
    '"seconds": 1.5, "images_per_second": 80.0}'
)
EVALUATION = EvaluationRecord(
    checkpoint="latest",
    step=20,
    split="test",
    selected_on=None,
    examples=4,
    loss=0.5,
    accuracy=0.75,
    per_class_accuracy={"cat": 0.75, "dog": None},
    confusion_matrix=[[3, 1], [0, 0]],
)


def epoch(number: int, **values: Any) -> EpochRecord:
    """The record of an epoch of ten steps."""
    record: dict[str, Any] = {
        "epoch": number,
        "step": 10 * number,
        "learning_rate": 0.1,
        "train_loss": 2.5,
        "train_accuracy": 0.25,
        "seconds": 1.5,
        "images_per_second": 80.0,
    }
    return EpochRecord(**record | values)


def test_lines_are_added_read_and_cut(tmp_path: Path):
    log, file = Workdir(tmp_path).epochs, tmp_path / "metrics.jsonl"
    assert log.read() == []
    for number in (1, 2, 3):
        log.append(epoch(number))
    with file.open("a") as lines:
        lines.write('{"epoch": 4')
    assert log.read() == [epoch(1), epoch(2), epoch(3)]
    log.cut(20)
    assert file.read_text().count("\n") == 2
    log.append(epoch(3, test_loss=1.0, test_accuracy=0.5))
    assert log.read() == [epoch(1), epoch(2), epoch(3, test_loss=1.0, test_accuracy=0.5)]
    with pytest.raises(ValueError, match="JSON compliant"):
        log.append(epoch(4, train_loss=float("nan")))


def test_a_line_leaves_out_what_was_not_evaluated(tmp_path: Path):
    log = Workdir(tmp_path).epochs
    log.append(epoch(1))
    log.append(epoch(2, validation_loss=1.0, validation_accuracy=0.5))
    first, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert first == LINE
    assert list(json.loads(second))[5:] == [
        "validation_loss",
        "validation_accuracy",
        "seconds",
        "images_per_second",
    ]


def test_cutting_keeps_the_lines_of_other_versions_as_they_are(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    line = LINE.replace("{", '{"extra": [1, 2],  ')
    file.write_text(f"{line}\n{LINE.replace('10,', '20,')}\n")
    assert Workdir(tmp_path).epochs.read() == [epoch(1), epoch(1, step=20)]
    Workdir(tmp_path).epochs.cut(10)
    assert file.read_text() == f"{line}\n"


def test_a_line_that_the_disk_refuses_is_told_and_cut_on_resuming(tmp_path: Path):
    run, plan = Workdir(tmp_path / "run"), plan_of()
    with run.open(plan):
        run.epochs.append(epoch(1))
    size = (tmp_path / "run" / "metrics.jsonl").stat().st_size + 10
    assert size > 100
    with (
        pytest.raises(UserError, match=r"cannot write \S+/metrics.jsonl: File too large; .*intact") as caught,
        run.open(plan),
        largest_file(size),
    ):
        run.epochs.append(epoch(2))
    assert caught.value.exit_code == 1
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size == size  # a part of a line
    with run.open(plan):
        run.epochs.cut(10)
        run.epochs.append(epoch(2))
    assert run.epochs.read() == [epoch(1), epoch(2)]


DEEP = "[" * 100_000

OTHERS = ["{", "[1]", "null", "\xff", "{}", '{"a": 1}', "5", '"text"', DEEP, '{"epoch": ' * 100_000]
"""What no file of a run's holds."""


def short(content: str) -> str:
    return content[:12]


@pytest.mark.parametrize("content", OTHERS, ids=short)
def test_a_file_that_holds_something_else_is_named_in_one_line(tmp_path: Path, content: str):
    run, written = Workdir(tmp_path), content.encode("latin1")
    (tmp_path / "evaluation.json").write_bytes(written)
    (tmp_path / "metrics.jsonl").write_bytes(LINE.encode() + b"\n" + written + b"\n")
    (tmp_path / "environment.json").write_bytes(written)
    for read, place in (
        (run.evaluation, "evaluation.json"),
        (run.epochs.read, "metrics.jsonl, line 2"),
        (run.starts.read, "environment.json"),
    ):
        with pytest.raises(UserError, match=rf"{place}: expected .*: mend or remove it") as caught:
            read()
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 400
        assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"train_accuracy": 25.0}, "train_accuracy: Input should be less than or equal to 1"),
        ({"step": "10"}, "step: Input should be a valid integer"),
        ({"train_loss": None}, "train_loss: Input should be a valid number"),
        ({"epoch": 10**400}, "epoch: Input should be less than or equal to 2147483647"),
        ({"step": -1}, "step: Input should be greater than or equal to 0"),
    ],
)
def test_a_lines_wrong_value_is_named(tmp_path: Path, change: dict[str, Any], problem: str):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(json.loads(LINE) | change) + "\n")
    with pytest.raises(UserError, match=r"metrics.jsonl, line 1: expected an epoch's record") as caught:
        Workdir(tmp_path).epochs.read()
    assert problem in str(caught.value)


def test_a_line_that_is_not_finite_is_refused(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(LINE.replace("2.5", "NaN") + "\n")
    with pytest.raises(UserError, match="train_loss: Input should be a finite number"):
        Workdir(tmp_path).epochs.read()


def test_an_evaluation_is_read_as_it_was_written(tmp_path: Path):
    run = Workdir(tmp_path)
    assert run.evaluation() is None
    write_evaluation(run.evaluation_path("latest"), EVALUATION)
    assert run.evaluation() == EVALUATION
    assert list(json.loads((tmp_path / "evaluation.json").read_text())) == [
        "checkpoint",
        "step",
        "split",
        "selected_on",
        "examples",
        "loss",
        "accuracy",
        "per_class_accuracy",
        "confusion_matrix",
    ]
    assert run.evaluation_path("best").name == "evaluation_best.json"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"confusion_matrix": [[1]]}, "expected a confusion matrix of the 2 classes, found another shape"),
        (
            {"confusion_matrix": [[1, 1], [1]]},
            "expected a confusion matrix of the 2 classes, found another shape",
        ),
        (
            {"confusion_matrix": [[1, 1], [1, 2**63]]},
            "confusion_matrix.1.1: Input should be less than or equal to",
        ),
        ({"per_class_accuracy": {}, "confusion_matrix": []}, "expected a confusion matrix of the 0 classes"),
    ],
)
def test_an_evaluation_of_another_shape_is_named(tmp_path: Path, change: dict[str, Any], problem: str):
    path = Workdir(tmp_path).evaluation_path("latest")
    path.write_text(json.dumps(dataclasses.asdict(EVALUATION) | change))
    with pytest.raises(
        UserError, match=r"evaluation.json: expected an evaluation, found something else"
    ) as caught:
        Workdir(tmp_path).evaluation()
    assert problem in str(caught.value)


def test_a_run_is_finished_when_its_last_epoch_is_evaluated(tmp_path: Path):
    run = Workdir(tmp_path)
    (tmp_path / "config.toml").write_text(dump_config(Config()))
    write_evaluation(run.evaluation_path("latest"), EVALUATION)
    assert run.finished(1) is None
    run.epochs.append(epoch(1))
    assert run.finished(1) is None  # the evaluation is of step 20
    run.epochs.append(epoch(2))
    assert run.finished(2) == EVALUATION
    assert run.finished(3) is None


def test_a_run_with_an_average_is_finished_when_that_is_evaluated_too(tmp_path: Path):
    run = Workdir(tmp_path)
    (tmp_path / "config.toml").write_text(dump_config(Config().replace({"optimizer.ema_decay": 0.9})))
    run.epochs.append(epoch(1))
    run.epochs.append(epoch(2))
    write_evaluation(run.evaluation_path("latest"), EVALUATION)
    assert run.finished(2) is None
    average = run.evaluation_path("latest", average=True)
    write_evaluation(average, dataclasses.replace(EVALUATION, step=10))
    assert run.finished(2) is None
    write_evaluation(average, EVALUATION)
    assert run.finished(2) == EVALUATION


def test_the_best_epoch_is_the_later_of_equals():
    records = [
        epoch(1, test_accuracy=0.5),
        epoch(2, test_accuracy=0.75),
        epoch(3, test_accuracy=0.75),
        epoch(4),
    ]
    assert best_epoch(records, "test") == records[2]
    assert best_epoch(records, "validation") is None
    assert evaluated_split(records) == "test"
    assert evaluated_split(records[3:]) is None
    both = epoch(5, validation_accuracy=1.0)
    assert evaluated_split([both]) == "validation"
    assert (both.accuracy("validation"), both.accuracy("train"), both.loss("test")) == (1.0, 0.25, None)
    assert math.isclose(both.loss("train") or 0, 2.5)


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("inf")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_log_of_starts_that_somebody_removed_ends_no_run(tmp_path: Path):
    starts = Workdir(tmp_path).starts
    starts.add_train_seconds(3.0)
    starts.extend(seconds=5.0)
    assert starts.read() == []
