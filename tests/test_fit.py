"""A training run in one process: what it writes, what it refuses, and what it does with other splits."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from helpers import mesh_of, plan_of, timeless_records

from jaxresnet import fit as fit_module
from jaxresnet import session
from jaxresnet.config.schema import Config
from jaxresnet.data.batches import Batch
from jaxresnet.errors import UserError
from jaxresnet.fit import first_epoch, fit, with_devices
from jaxresnet.learning.metrics import Metrics
from jaxresnet.learning.optimizer import learning_rate, make_rates
from jaxresnet.learning.state import TrainState
from jaxresnet.machine.devices import device_batches
from jaxresnet.machine.signals import Stop
from jaxresnet.runs.checkpoint import Checkpoints
from jaxresnet.runs.workdir import Workdir
from jaxresnet.trained import evaluation


def test_a_run_leaves_what_is_promised(finished: Path, short_config: Config):
    plan, (first, last) = plan_of(short_config), timeless_records(finished)
    assert (first["epoch"], first["step"], last["epoch"], last["step"]) == (1, 12, 2, 24)
    keys = {"epoch", "step", "learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy"}
    assert set(first) == keys
    clock = set(json.loads((finished / "metrics.jsonl").read_text().splitlines()[0])) - keys
    assert clock == {"seconds", "images_per_second"}
    assert first["learning_rate"] == float(learning_rate(plan, make_rates(plan), 11))
    assert all(math.isfinite(value) for record in (first, last) for value in record.values())
    assert 0 <= first["train_accuracy"] <= 1

    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert evaluation["accuracy"] == last["test_accuracy"]
    assert evaluation["loss"] == last["test_loss"]
    assert (evaluation["examples"], evaluation["step"], evaluation["split"]) == (355, 24, "test")
    assert (evaluation["checkpoint"], evaluation["selected_on"]) == ("latest", None)
    confusion = np.array(evaluation["confusion_matrix"])
    assert confusion.sum() == 355
    assert confusion.trace() / 355 == evaluation["accuracy"]
    np.testing.assert_allclose(
        list(evaluation["per_class_accuracy"].values()), confusion.diagonal() / confusion.sum(1)
    )
    # The number of CPU devices, which the configuration left open, is kept for the next start.
    assert Workdir(finished).require_plan() == plan_of(short_config, {"cpu_devices": 4})
    assert json.loads((finished / "dataset.json").read_text())["class_names"] == list("0123456789")
    (environment,) = json.loads((finished / "environment.json").read_text())
    assert environment["devices"] == ["cpu"] * 4
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["seconds"] > environment["compile_seconds"] > 0
    assert environment["peak_device_bytes"] is None  # not counted on a CPU
    assert list((finished / "tensorboard").glob("events*"))


def test_a_finished_run_is_reported_and_not_touched(
    finished: Path, short_config: Config, capsys: pytest.CaptureFixture[str]
):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    evaluation = fit(short_config, finished)
    assert f"test accuracy {evaluation.accuracy:.2%}" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_another_configuration_is_refused_with_the_differing_keys(finished: Path, short_config: Config):
    with pytest.raises(UserError, match=r"seed was 0, is 1") as caught:
        fit(short_config.replace({"seed": 1}), finished)
    assert caught.value.exit_code == 2


def test_an_unrelated_folder_is_refused(tmp_path: Path, short_config: Config):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"neither empty nor a run") as caught:
        fit(short_config, tmp_path)
    assert caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_batch_that_the_devices_cannot_share_is_refused(tmp_path: Path, short_config: Config):
    with pytest.raises(
        UserError, match="multiple of the 4 devices, found 30; the nearest is 28 and 32"
    ) as caught:
        fit(short_config.replace({"batch_size": 30}), tmp_path / "run")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_moved_during_the_run_is_not_made_anew(
    tmp_path: Path, short_config: Config, monkeypatch: pytest.MonkeyPatch
):
    workdir, moved = tmp_path / "run", tmp_path / "moved"
    original = session.Session.train

    def move(self: session.Session, epoch: int, state: TrainState, batches: Iterator[Batch]) -> Any:
        if epoch == 1:
            self.saving.checkpoints.wait()
            workdir.rename(moved)
        return original(self, epoch, state, batches)

    monkeypatch.setattr(session.Session, "train", move)
    with pytest.raises(
        UserError, match=r"run was moved or removed during the run: .*; put it back, then run"
    ):
        fit(short_config, workdir)
    assert not workdir.exists()
    assert [record["epoch"] for record in timeless_records(moved)] == [1]
    with Checkpoints(moved / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.saved_steps() == [12]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(
    tmp_path: Path, short_config: Config, monkeypatch: pytest.MonkeyPatch
):
    workdir, calls = tmp_path / "run", 0
    original = session.Session.train

    def poison(self: session.Session, epoch: int, state: TrainState, batches: Iterator[Batch]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            bias = state.params["head"]["bias"]
            params = state.params | {"head": state.params["head"] | {"bias": bias * np.nan}}
            state = state.replace(params=params)
        return original(self, epoch, state, batches)

    monkeypatch.setattr(session.Session, "train", poison)
    with pytest.raises(
        UserError, match=r"epoch 2, step 13 is not finite.*last good checkpoint is step 12"
    ) as caught:
        fit(short_config, workdir)
    assert caught.value.exit_code == 1
    assert len(timeless_records(workdir)) == 1
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.saved_steps() == [12]
        assert checkpoints.best_step() == 12


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({}, "learning_rate 0.05 is too high"),
        ({"optimizer.weight_decay": 39.0}, "learning_rate 0.05 is too high"),
        ({"optimizer.weight_decay": 41.0}, "weight_decay 41 is too high"),
        ({"optimizer.weight_decay": 1e30}, "weight_decay 1e+30 is too high"),
        ({"optimizer.learning_rate": 1e6}, "learning_rate 1e+06 is too high"),
    ],
)
def test_the_likely_cause_of_a_loss_that_is_not_finite(settings: dict[str, Any], cause: str):
    checkpoints: Any = SimpleNamespace(wait=lambda: None, saved_steps=list)
    learner: Any = SimpleNamespace(plan=plan_of(settings=settings))
    folder: Any = None
    error = session.Saving(learner, folder, checkpoints, Stop()).not_finite("the loss")
    assert f"most likely optimizer.{cause} for this run" in str(error)


def test_the_other_processes_leave_it_to_the_first_to_tell_of_a_loss_that_is_not_finite():
    told = UserError("process 0 of 2 ended: the loss is not finite: expected a number")
    peers: Any = SimpleNamespace(first=False, barrier=Mock(side_effect=told))
    nothing: Any = None
    with pytest.raises(UserError) as caught:
        session.Saving(nothing, nothing, nothing, Stop(), peers).not_finite("the loss")
    assert caught.value is told


@pytest.mark.parametrize("split", ["validation", "none"])
def test_other_evaluation_splits(
    tmp_path: Path, short_config: Config, capsys: pytest.CaptureFixture[str], split: str
):
    settings = {"epochs": 1, "data.validation_examples": 242, "evaluation.split": split}
    evaluation = fit(short_config.replace(settings), tmp_path)
    assert (evaluation.split, evaluation.examples) == ("test", 355)
    (record,) = timeless_records(tmp_path)
    assert record["step"] == 10
    assert ("validation_accuracy" in record) == (split == "validation")
    assert "test_accuracy" not in record
    assert ("best epoch 1: validation accuracy" in capsys.readouterr().out) == (split == "validation")


def test_a_batch_larger_than_the_evaluated_split(tmp_path: Path, short_config: Config):
    settings = {
        "epochs": 1,
        "batch_size": 400,
        "data.validation_examples": 30,
        "evaluation.split": "validation",
    }
    evaluation = fit(short_config.replace(settings), tmp_path)
    assert np.array(evaluation.confusion_matrix).sum() == 355
    (record,) = timeless_records(tmp_path)
    assert record["validation_accuracy"] * 30 == pytest.approx(round(record["validation_accuracy"] * 30))


def test_each_step_is_traced_once(tmp_path: Path, short_config: Config, monkeypatch: pytest.MonkeyPatch):
    traces = {"train": 0, "eval": 0}

    def count(module: Any, make: str, name: str) -> None:
        original = getattr(module, make)

        def make_counted(*given: Any) -> Callable[..., Any]:
            function = original(*given)

            def wrapper(*args: Any) -> Any:
                traces[name] += 1
                return function(*args)

            return wrapper

        monkeypatch.setattr(module, make, make_counted)

    count(fit_module, "make_train_step", "train")
    count(evaluation, "make_eval_step", "eval")
    fit(short_config, tmp_path)
    assert traces == {"train": 1, "eval": 1}


def test_first_epoch():
    plan = plan_of()  # epochs end at 390, 781, ...

    def epoch(step: int, count: int) -> int:
        metrics = Metrics(np.float32(0), np.full((1, 1), count), np.int32(0))
        return first_epoch(plan, TrainState(np.int32(step), {}, {}, {}, metrics))

    assert [epoch(0, 0), epoch(1, 128), epoch(389, 1), epoch(390, 1), epoch(390, 0)] == [0, 0, 0, 0, 1]
    assert [epoch(391, 128), epoch(780, 1), epoch(781, 9), epoch(781, 0)] == [1, 1, 1, 2]
    assert [epoch(15_625, 1), epoch(15_625, 0)] == [39, 40]


def test_batches_are_sent_ahead_in_order():
    taken = []

    def source() -> Iterator[Batch]:
        for k in range(5):
            taken.append(k)
            yield Batch(np.full((4, 2, 2, 3), k, np.uint8), np.zeros(4, np.int32), np.ones(4, bool))

    batches = device_batches(source(), mesh_of(4))
    assert taken == [0, 1]
    assert int(next(batches).image[0, 0, 0, 0]) == 0
    assert taken == [0, 1, 2]
    assert [int(batch.image[0, 0, 0, 0]) for batch in batches] == [1, 2, 3, 4]


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_the_devices_that_a_run_has_are_recorded(asked: int):
    """XLA_FLAGS may give it another number than was asked for."""
    plan = plan_of(Config().replace({"data.name": "digits", "cpu_devices": asked}))
    assert with_devices(plan, mesh_of(2)).config.cpu_devices == 2
