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
from helpers import mesh_of, plan_of, timeless_records

from jaxresnet import session
from jaxresnet.config.schema import Config
from jaxresnet.errors import Interrupted
from jaxresnet.fit import fit
from jaxresnet.learning.learner import make_learner
from jaxresnet.learning.state import TrainState, state_template
from jaxresnet.machine.devices import replicated
from jaxresnet.runs.checkpoint import Checkpoints
from jaxresnet.runs.groups import read_histories


def final_state(workdir: Path, config: Config) -> TrainState:
    template = state_template(make_learner(plan_of(config)), replicated(mesh_of(4)))
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return jax.device_get(checkpoints.restore(checkpoints.saved_steps()[-1], template))


def assert_same_run(workdir: Path, expected: Path, config: Config) -> None:
    assert timeless_records(workdir) == timeless_records(expected)
    assert (workdir / "evaluation.json").read_text() == (expected / "evaluation.json").read_text()
    jax.tree.map(np.testing.assert_array_equal, final_state(workdir, config), final_state(expected, config))


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
