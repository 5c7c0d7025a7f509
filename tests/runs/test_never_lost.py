"""A checkpoint is never lost: not while it is replaced, not because it cannot be read. And it is of its run alone."""

import errno
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from helpers import assert_same_state, at_step, largest_file

from jaxresnet.errors import UserError
from jaxresnet.learning.state import TrainState
from jaxresnet.runs import checkpoint
from jaxresnet.runs.checkpoint import Checkpoints
from jaxresnet.runs.integrity import DamagedCheckpointError
from jaxresnet.runs.records import Identity

OURS = Identity("ours", {"optimizer.learning_rate": 0.1, "model.stage_blocks": [1, 1]})


@pytest.fixture(scope="module")
def changed(state: TrainState) -> TrainState:
    """A state that differs from `state`, at the same step."""
    return at_step(jax.tree.map(lambda leaf: leaf * 2, state), 2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, state: TrainState) -> Path:
    """Checkpoints of the steps 1 and 2 of the run OURS, the first one the best; only to be read."""
    directory = tmp_path_factory.mktemp("saved")
    with Checkpoints(directory, OURS) as checkpoints:
        checkpoints.save(at_step(state, 1), accuracy=0.5)
        checkpoints.save(at_step(state, 2), accuracy=0.25)
    return directory


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    """A copy of these checkpoints."""
    return shutil.copytree(saved, tmp_path / "copy")


def contents(directory: Path) -> set[Path]:
    return {path.relative_to(directory) for path in directory.rglob("*")}


@pytest.fixture
def links_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links are refused before anything is read. Here they serve to make a file unreadable."""
    monkeypatch.setattr(checkpoint, "require_plain", lambda _: None)


def make_unreadable(path: Path) -> None:
    """Reading the file fails, though it is there, for root as well. Needs the fixture `links_allowed`."""
    path.rename(path.with_name("kept"))
    path.symlink_to(path.name)


def make_readable(path: Path) -> None:
    path.with_name("kept").replace(path)


@pytest.mark.parametrize("size", [0, 1000])
def test_a_replacement_that_the_disk_refuses_leaves_the_old_one(
    tmp_path: Path, template: TrainState, state: TrainState, changed: TrainState, size: int
):
    def replace(directory: Path) -> None:
        with Checkpoints(directory) as checkpoints:
            checkpoints.save(at_step(state, 2))
        with largest_file(size), Checkpoints(directory) as checkpoints:
            checkpoints.save(changed, accuracy=0.5)
            checkpoints.wait()

    with pytest.raises(UserError, match=r"File too large; earlier checkpoints are intact \(steps: 2\)"):
        replace(tmp_path / "full")
    with Checkpoints(tmp_path / "full", read_only=True) as checkpoints:
        assert_same_state(checkpoints.restore_latest(template, pytest.fail), at_step(state, 2))


@pytest.mark.parametrize("complete", [False, True])
def test_a_kill_while_a_checkpoint_is_replaced(
    directory: Path,
    tmp_path: Path,
    template: TrainState,
    state: TrainState,
    changed: TrainState,
    complete: bool,
):
    (directory / "2").rename(directory / "2.replaced")
    new = "2" if complete else "2.orbax-checkpoint-tmp"
    with Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(changed)
    (tmp_path / "new" / "2").rename(directory / new)
    before = contents(directory)
    if complete:
        with Checkpoints(directory, read_only=True) as checkpoints:
            assert_same_state(checkpoints.restore_latest(template, pytest.fail), changed)
    else:
        with pytest.raises(UserError, match=r"checkpoint 2 in .* is being replaced: wait a moment"):
            Checkpoints(directory, read_only=True)
    assert contents(directory) == before
    with Checkpoints(directory) as checkpoints:
        expected = changed if complete else at_step(state, 2)
        assert_same_state(checkpoints.restore_latest(template, pytest.fail), expected)
        assert not list(directory.glob("*.replaced"))


@pytest.mark.usefixtures("links_allowed")
@pytest.mark.parametrize("name", ["meta/metadata", "rest/manifest.ocdbt", "weights/d/*"])
def test_what_cannot_be_read_is_not_damaged(
    directory: Path, template: TrainState, state: TrainState, name: str
):
    (path,) = (directory / "2").glob(name)
    make_unreadable(path)
    before = contents(directory)
    refusal = rf"cannot read {path}: Too many levels of symbolic links; nothing was removed: mend that"
    with Checkpoints(directory, OURS) as checkpoints:
        with pytest.raises(UserError, match=refusal) as caught:
            checkpoints.restore_latest(template, pytest.fail)
        assert not isinstance(caught.value, DamagedCheckpointError)
        assert len(str(caught.value).splitlines()) == 1
    assert contents(directory) == before
    make_readable(path)
    with Checkpoints(directory, OURS) as checkpoints:
        assert_same_state(checkpoints.restore_latest(template, pytest.fail), at_step(state, 2))


@pytest.mark.usefixtures("links_allowed")
def test_a_damaged_one_stays_if_the_one_before_cannot_be_read(directory: Path, template: TrainState):
    (directory / "2" / "meta" / "metadata").write_text("{")
    make_unreadable(directory / "1" / "meta" / "metadata")
    with Checkpoints(directory, OURS) as checkpoints:
        with pytest.raises(UserError, match=r"cannot read .*/1/meta/metadata"):
            checkpoints.restore_latest(template, pytest.fail)
        assert checkpoints.saved_steps() == [1, 2]


@pytest.mark.parametrize(
    ("error", "times", "told"),
    [
        (OSError(errno.EIO, "Input/output error"), 1, None),
        (OSError(errno.EIO, "Input/output error"), 2, "Input/output error; nothing was removed"),
        (MemoryError("bad allocation"), 2, "bad allocation; nothing was removed"),
        (ValueError("RESOURCE_EXHAUSTED: out of memory"), 2, "out of memory; nothing was removed"),
        (ValueError("DATA_LOSS: no such [os_error_code='5']"), 2, "nothing was removed"),
    ],
)
def test_a_failure_of_the_machine_is_not_damage(
    directory: Path,
    template: TrainState,
    state: TrainState,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    times: int,
    told: str | None,
):
    with Checkpoints(directory, OURS) as checkpoints:
        restore: Callable[..., Any] = checkpoints._manager.restore
        failures = times * [error]

        def failing(*args: Any, **kwargs: Any) -> Any:
            if failures:
                raise failures.pop()
            return restore(*args, **kwargs)

        monkeypatch.setattr(checkpoints._manager, "restore", failing)
        if told:
            with pytest.raises(UserError, match=f"cannot read checkpoint 2 in .*{told}") as caught:
                checkpoints.restore_latest(template, pytest.fail)
            assert not isinstance(caught.value, DamagedCheckpointError)
        else:
            assert_same_state(checkpoints.restore_latest(template, pytest.fail), at_step(state, 2))
        assert checkpoints.saved_steps() == [1, 2]


def test_a_checkpoint_that_has_gone_meanwhile_is_not_damaged(directory: Path, template: TrainState):
    with Checkpoints(directory, read_only=True) as checkpoints:
        shutil.rmtree(directory / "2")
        with pytest.raises(UserError, match="/2 is no longer there: it was replaced or removed meanwhile"):
            checkpoints.restore_variables(2, template.variables)


@pytest.mark.usefixtures("links_allowed")
@pytest.mark.parametrize("read_only", [False, True])
def test_an_accuracy_that_cannot_be_read_is_kept(directory: Path, read_only: bool):
    path = directory / "1" / "metrics" / "metrics"
    make_unreadable(path)
    with pytest.raises(UserError, match=f"cannot read {path}: Too many levels") as caught:
        Checkpoints(directory, OURS, read_only=read_only)
    assert not isinstance(caught.value, DamagedCheckpointError)
    make_readable(path)
    with Checkpoints(directory, OURS, read_only=True) as checkpoints:
        assert checkpoints.best_step() == 1


@pytest.mark.parametrize(("recorded", "best"), [({1: 0.5, 2: 0.25}, 1), ({2: 0.25}, 2), ({1: math.nan}, 2)])
def test_a_damaged_accuracy_is_taken_from_the_records(
    directory: Path, template: TrainState, recorded: dict[int, float], best: int
):
    path = directory / "1" / "metrics" / "metrics"
    path.write_text('{"accuracy": "0.9"}')  # no number
    told: list[str] = []
    for reports in (1, 0):
        told.clear()
        with Checkpoints(directory, OURS, recorded=recorded) as checkpoints:
            checkpoints.restore_latest(template, told.append)
            assert checkpoints.best_step() == best
        assert len(told) == reports


def test_swapped_checkpoints_are_noticed(directory: Path, template: TrainState):
    (directory / "2").rename(directory / "1.other")
    (directory / "1").rename(directory / "2")
    (directory / "1.other").rename(directory / "1")
    before = contents(directory)
    with Checkpoints(directory) as checkpoints:
        refusal = r"checkpoint 2 in \S+ was saved at step 1: .* rename it back"
        with pytest.raises(UserError, match=refusal) as caught:
            checkpoints.restore_latest(template, pytest.fail)
        assert not isinstance(caught.value, DamagedCheckpointError)
        with pytest.raises(UserError, match=r"checkpoint 1 in \S+ was saved at step 2"):
            checkpoints.restore_variables(1, template.variables)
    assert contents(directory) == before


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            Identity("ours", OURS.settings | {"optimizer.learning_rate": 0.2}),
            "optimizer.learning_rate was 0.1, config.toml says 0.2",
        ),
        (Identity("theirs", OURS.settings), "expected the id theirs of run.json, found ours"),
        (Identity(None, OURS.settings), None),
        (Identity("ours", OURS.settings | {"model.new": True}), None),  # a later version's setting
    ],
)
def test_another_runs_checkpoint_is_refused_and_kept(
    saved: Path, template: TrainState, state: TrainState, other: Identity, told: str | None
):
    with Checkpoints(saved, other, read_only=True) as checkpoints:
        if told is None:
            assert_same_state(checkpoints.restore_latest(template, pytest.fail), at_step(state, 2))
            return
        for restore in (
            lambda: checkpoints.restore_latest(template, pytest.fail),
            lambda: checkpoints.restore_variables(2, template.variables),
        ):
            with pytest.raises(UserError, match=f"checkpoint 2 in .* is of another run: {told}") as caught:
                restore()
            assert not isinstance(caught.value, DamagedCheckpointError)
            assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("key", ["identity", "step"])
def test_an_identity_that_was_changed_is_damage(directory: Path, template: TrainState, key: str):
    path = directory / "2" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    meta.pop("identity") if key == "identity" else meta["identity"].update(step=3)
    path.write_text(json.dumps(meta))
    with (
        Checkpoints(directory, OURS) as checkpoints,
        pytest.raises(DamagedCheckpointError, match="its identity does not have the checksum there"),
    ):
        checkpoints.restore(2, template)
