"""Stopping and going on at awkward moments, in one process: no bit is lost, and no epoch doubled."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import assert_same_run, at_step, final_state, mesh_of, plan_of, timeless_records

from jaxresnet import fit as fit_module
from jaxresnet import session
from jaxresnet.config.schema import Config
from jaxresnet.data.sources import open_source
from jaxresnet.data.splits import load_split
from jaxresnet.errors import Interrupted, UserError
from jaxresnet.fit import check_records, fit
from jaxresnet.learning.learner import make_learner
from jaxresnet.learning.metrics import Metrics
from jaxresnet.learning.state import TrainState
from jaxresnet.runs.checkpoint import Checkpoints
from jaxresnet.runs.groups import read_histories
from jaxresnet.runs.integrity import checksum
from jaxresnet.runs.records import InitialWeights, read_evaluation
from jaxresnet.runs.workdir import Workdir
from jaxresnet.trained.evaluation import evaluate_whole
from jaxresnet.trained.load import load_run


def stop_during(monkeypatch: pytest.MonkeyPatch, session_method: str, call: int) -> None:
    """Have the signal come while `session_method` runs for the `call`-th time."""
    original: Callable[..., Any]
    original, calls = getattr(session.Session, session_method), 0

    def method(self: session.Session, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            self.saving.stop.number = signal.SIGTERM
        return original(self, *args)

    monkeypatch.setattr(session.Session, session_method, method)


@pytest.mark.parametrize(
    ("method", "call", "saved"),
    [
        ("train", 1, 1),
        ("train", 2, 13),
        ("evaluate", 1, 12),  # trained and saved, but not evaluated: the next start does that
        ("evaluate", 2, 24),
    ],
)
def test_stopping_and_going_on_changes_no_bit(
    tmp_path: Path,
    finished: Path,
    short_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    method: str,
    call: int,
    saved: int,
):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_during(patch, method, call)
        with pytest.raises(
            Interrupted, match=f"saved at step {saved} .*run the same command again"
        ) as caught:
            fit(short_config, workdir)
    assert caught.value.exit_code == 143
    assert len(timeless_records(workdir)) == (call - 1)
    fit(short_config, workdir)
    assert f"resuming at step {saved}" in capsys.readouterr().out
    assert_same_run(workdir, finished, short_config)
    assert_time_of_both_starts(workdir)
    # Where nothing was left to train in an epoch, no rate is recorded.
    known = [record.images_per_second is not None for record in Workdir(workdir).epochs.read()]
    assert known == ([True, True] if method == "train" else [call != 1, call != 2])


EVERY_PART: dict[str, Any] = {
    "label_smoothing": 0.1,
    "model.dirac": True,
    "augment.horizontal_flip": True,
    "augment.alternating_flip": True,
    "augment.padding": "reflect",
    "augment.cutout": 8,
    "augment.random_erasing": 0.5,
    "augment.trivial_augment": True,
    "augment.mixup": 0.2,
    "augment.cutmix": 1.0,
    "optimizer.nesterov": True,
    "optimizer.decayed": "kernels",
    "optimizer.clip_norm": 1.0,
    "optimizer.schedule": "linear",
    "optimizer.warmup": 0.25,
    "optimizer.ema_decay": 0.9,
}


def test_a_run_with_every_part_of_a_recipe_goes_on_bit_for_bit(
    tmp_path: Path,
    finished: Path,
    short_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Also when the network has gone that it began with."""
    source = shutil.copytree(finished, tmp_path / "source")
    config, whole, workdir = short_config.replace(EVERY_PART), tmp_path / "whole", tmp_path / "run"
    config = config.replace({"init": str(source), "freeze_stages": 1})
    fit(config, whole)
    begins = f"begins with the weights of {source}, step 24: the whole network (the same 10 classes)"
    assert begins in capsys.readouterr().out
    with monkeypatch.context() as patch:
        stop_during(patch, "train", 2)
        with pytest.raises(Interrupted):
            fit(config, workdir)
    shutil.rmtree(source)
    fit(config, workdir)
    assert_same_run(workdir, whole, config)

    taken = load_run(finished, mesh=mesh_of(1)).variables
    assert Workdir(workdir).initial_weights() == InitialWeights(str(source), 24, checksum(taken), head=True)
    state, record = final_state(workdir, config), Workdir(workdir).epochs.read()[-1]
    assert state.average is not None
    for name in ("stem_conv", "stage0_block0"):
        jax.tree.map(np.testing.assert_array_equal, state.params[name], taken["params"][name])
    assert (state.params["head"]["kernel"] != taken["params"]["head"]["kernel"]).all()
    of_average = read_evaluation(Workdir(workdir).evaluation_path("latest", average=True))
    assert of_average is not None
    assert of_average.average
    assert (of_average.accuracy, of_average.loss) == (record.test_average_accuracy, record.test_average_loss)
    assert of_average.loss != record.test_loss
    loaded = load_run(workdir, average=True, mesh=mesh_of(1))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded.variables), state.average)
    split = load_split(open_source(config.data), "test")
    again = evaluate_whole(make_learner(loaded.plan), loaded.variables, split, 120, mesh_of(1))
    assert again.accuracy == of_average.accuracy
    assert again.loss == pytest.approx(of_average.loss, rel=1e-5)


def test_a_run_without_an_average_has_none_to_load(finished: Path):
    assert not Workdir(finished).evaluation_path("latest", average=True).exists()
    with pytest.raises(UserError, match="keeps no average of its weights"):
        load_run(finished, average=True)


def assert_time_of_both_starts(workdir: Path) -> None:
    """The training time of a run is that of all its starts; the epochs' lines have their last process's alone."""
    [history] = read_histories([workdir])
    first, second = [start.train_seconds for start in history.starts]
    assert first is not None
    assert second is not None
    assert history.seconds == pytest.approx(first + second)
    by_epoch = sum(epoch.seconds for epoch in history.epochs)
    assert history.seconds >= by_epoch - 0.1
    assert replace(history, starts=[]).seconds == by_epoch  # as of version 0.1
    untrained = [replace(start, train_seconds=None) for start in history.starts]
    assert replace(history, starts=[*history.starts, untrained[0]]).seconds == history.seconds
    for start in history.starts:  # also of the one that was stopped
        assert start.seconds is not None
        assert start.compile_seconds is not None
        assert start.train_seconds is not None
        assert start.seconds >= start.compile_seconds + start.train_seconds - 0.2


def test_a_crash_between_the_line_and_the_checkpoint_doubles_no_epoch(
    tmp_path: Path, finished: Path, short_config: Config
):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "checkpoints" / "24")
    (workdir / "evaluation.json").unlink()
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "st')  # and a torn line
    fit(short_config, workdir)
    assert_same_run(workdir, finished, short_config)


def test_a_run_killed_before_its_last_evaluation_only_evaluates(
    tmp_path: Path, finished: Path, short_config: Config, monkeypatch: pytest.MonkeyPatch
):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    (workdir / "evaluation.json").unlink()
    monkeypatch.setattr(session.Session, "train", None)
    fit(short_config, workdir)
    assert_same_run(workdir, finished, short_config)


def test_a_longer_run_goes_on_from_a_finished_one(tmp_path: Path, short_config: Config):
    def constant(epochs: int) -> Config:
        return short_config.replace({"epochs": epochs, "optimizer.schedule": "constant"})

    fit(constant(1), tmp_path / "extended")
    fit(constant(2), tmp_path / "extended")
    fit(constant(2), tmp_path / "at_once")
    assert_same_run(tmp_path / "extended", tmp_path / "at_once", constant(2))


def test_a_run_of_the_first_version_goes_on(
    tmp_path: Path, finished: Path, short_config: Config, capsys: pytest.CaptureFixture[str]
):
    """It wrote no dataset.json, and no number of a checkpoint's format."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "checkpoints" / "24")
    (workdir / "evaluation.json").unlink()
    (workdir / "dataset.json").unlink()
    meta = workdir / "checkpoints" / "12" / "meta" / "metadata"
    content = json.loads(meta.read_text())
    del content["format"], content["checksums"]["format"]
    meta.write_text(json.dumps(content))
    fit(short_config, workdir)
    assert "resuming at step 12" in capsys.readouterr().out
    assert_same_run(workdir, finished, short_config)
    assert (workdir / "dataset.json").read_bytes() == (finished / "dataset.json").read_bytes()


def never_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is compiled; `Session.train` and `Session.evaluate` must not be used, or be replaced."""
    compiled = session.CompiledSteps(None, None, 0.0)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(fit_module, "compile_steps", lambda *_: compiled)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            lambda run: shutil.rmtree(run / "checkpoints"),
            r"checkpoints is missing, but metrics.jsonl has 2 epochs",
        ),
        (
            lambda run: (run / "metrics.jsonl").unlink(),
            r"metrics.jsonl: expected a line for .* found none for 1, 2",
        ),
    ],
)
def test_a_part_of_the_folder_that_is_missing_is_told_and_nothing_emptied(
    tmp_path: Path,
    finished: Path,
    short_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], Any],
    told: str,
):
    workdir = shutil.copytree(finished, tmp_path / "run")
    damage(workdir)
    never_compile(monkeypatch)
    before = {path.relative_to(workdir) for path in (workdir / "checkpoints").rglob("*")}
    lines = timeless_records(workdir)
    with pytest.raises(UserError, match=told) as caught:
        fit(short_config.replace({"epochs": 5}), workdir)
    assert caught.value.exit_code == 1
    assert len(str(caught.value).splitlines()) == 1
    assert timeless_records(workdir) == lines
    assert {path.relative_to(workdir) for path in (workdir / "checkpoints").rglob("*")} == before
    assert Workdir(workdir).require_config().epochs == 2


@pytest.mark.parametrize(
    ("settings", "epochs", "newest", "told"),
    [
        ({}, [1, 2, 3, 4], 24, None),  # killed while the checkpoint of the third epoch was saved
        ({}, [1, 2, 3, 4, 5], 24, "newest checkpoint is of step 24, .* 3 later epochs, expected at most 2"),
        ({"checkpoint.every_epochs": 2}, [1, 2, 3, 4, 5, 6], 24, None),
        ({}, [1, 2, 3, 4, 5], 36, None),  # a newer one was damaged
        ({}, [1, 3], 36, "expected a line for each of the 2 epochs .* found none for 2:"),
        ({}, [2], 24, "found none for 1: put the file back"),
        ({}, [1, 2, 2], 24, None),
    ],
)
def test_records_that_do_not_fit_the_checkpoint(
    tmp_path: Path,
    finished: Path,
    short_config: Config,
    settings: dict[str, Any],
    epochs: list[int],
    newest: int,
    told: str | None,
):
    """The run is to go on after its second epoch."""
    run, record = Workdir(tmp_path / "run"), Workdir(finished).epochs.read()[0]
    with run.open(plan_of(short_config, settings)):
        for epoch in epochs:
            run.epochs.append(replace(record, epoch=epoch, step=12 * epoch))
        if told is None:
            check_records(run, newest, finished=2)
        else:
            with pytest.raises(UserError, match=told):
                check_records(run, newest, finished=2)


def test_a_finished_run_that_lacks_a_line_is_told(tmp_path: Path, finished: Path, short_config: Config):
    workdir = shutil.copytree(finished, tmp_path / "run")
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text(lines[1])
    with pytest.raises(UserError, match="found none for 1"):
        fit(short_config, workdir)


def test_the_best_epochs_checkpoint_is_kept_whenever_checkpoints_are_due(
    tmp_path: Path, short_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Also if the run is killed in between. Of equal accuracies the later one counts."""
    never_compile(monkeypatch)
    right = {12: 3, 24: 7, 36: 7, 48: 6, 60: 5}
    killed = []

    def train(
        self: session.Session, epoch: int, state: TrainState, _: Any
    ) -> tuple[TrainState, float, float]:
        step = self.learner.plan.end_step(epoch + 1)
        if step == 48 and not killed:
            killed.append(step)
            raise RuntimeError("killed")
        return at_step(state.replace(metrics=counts(5)), step), 1.0, 1.0

    def evaluate(_: session.Session, state: TrainState, *__: Any) -> session.Evaluated:
        return session.Evaluated(counts(right[int(state.step)]))

    monkeypatch.setattr(session.Session, "train", train)
    monkeypatch.setattr(session.Session, "evaluate", evaluate)
    config = short_config.replace({"epochs": 5, "checkpoint.every_epochs": 5})
    with pytest.raises(RuntimeError, match="killed"):
        fit(config, tmp_path)
    fit(config, tmp_path)
    out = capsys.readouterr().out
    assert "resuming at step 36" in out
    assert "best epoch 3: test accuracy 70.00%" in out
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.best_step() == 36
    assert [record["epoch"] for record in timeless_records(tmp_path)] == [1, 2, 3, 4, 5]


def counts(right: int) -> Metrics:
    """The sums over ten examples, of which that many are classified correctly."""
    confusion = np.zeros((10, 10), np.int32)
    confusion[0, :2] = right, 10 - right
    return Metrics(np.float32(1), confusion, np.int32(0))
