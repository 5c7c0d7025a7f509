"""Checkpoints: exact, kept as promised, and never silently wrong."""

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same_state, at_step, largest_file, mesh_of

from jaxresnet.errors import UserError
from jaxresnet.learning.learner import Learner, make_learner
from jaxresnet.learning.state import TrainState, state_template
from jaxresnet.machine.devices import replicated
from jaxresnet.runs.checkpoint import Checkpoints
from jaxresnet.runs.integrity import DamagedCheckpointError

Damage = Callable[[Path], Any]


@pytest.mark.parametrize("devices", [1, 4])
def test_restoring_gives_the_same_bits_on_any_number_of_devices(
    tmp_path: Path, tiny_learner: Learner, state: TrainState, devices: int
):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(state, 7), accuracy=0.5)
    template = state_template(tiny_learner, replicated(mesh_of(devices)))
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(7, template)
        variables = checkpoints.restore_variables(7, template.variables)
    assert_same_state(restored, at_step(state, 7))
    assert len(restored.step.sharding.device_set) == devices
    jax.tree.map(np.testing.assert_array_equal, variables, jax.device_get(state.variables))


def test_the_latest_two_and_the_best_are_kept(checkpoints: Checkpoints, state: TrainState):
    for step, accuracy in [(1, 0.3), (2, 0.6), (3, None), (4, float("nan")), (5, 0.5), (6, 0.4), (7, None)]:
        checkpoints.save(at_step(state, step), accuracy)
    checkpoints.wait()
    assert checkpoints.saved_steps() == [2, 6, 7]
    assert checkpoints.best_step() == 2


def test_a_checkpoint_saved_before_its_evaluation_is_replaced(
    checkpoints: Checkpoints, template: TrainState, state: TrainState
):
    checkpoints.save(at_step(state, 3))
    changed = at_step(jax.tree.map(lambda leaf: leaf * 2, state), 3)
    checkpoints.save(changed, accuracy=0.7)
    checkpoints.wait()
    assert checkpoints.saved_steps() == [3]
    assert checkpoints.best_step() == 3
    assert_same_state(checkpoints.restore(3, template), changed)


def test_it_is_replaced_while_it_is_still_being_written(checkpoints: Checkpoints, state: TrainState):
    large = at_step(state.replace(params=state.params | {"large": jnp.ones((4, 2**20))}), 3)
    for accuracy in (None, 0.1, None, 0.7):
        checkpoints.save(large, accuracy)
    checkpoints.wait()
    assert checkpoints.saved_steps() == [3]
    assert checkpoints.best_step() == 3


@pytest.mark.parametrize("size", [0, 1000])
def test_a_save_that_the_disk_refuses_is_told_in_a_line_and_loses_nothing(
    tmp_path: Path,
    template: TrainState,
    state: TrainState,
    capfd: pytest.CaptureFixture[str],
    size: int,
):
    def save_both(directory: Path) -> None:
        with Checkpoints(directory) as checkpoints:
            checkpoints.save(at_step(state, 1), accuracy=0.5)
        with largest_file(size), Checkpoints(directory) as checkpoints:
            checkpoints.save(at_step(state, 2), accuracy=0.6)
            checkpoints.wait()

    refusal = r"cannot save .*: File too large; earlier checkpoints are intact \(steps: 1\)"
    with pytest.raises(UserError, match=refusal) as caught:
        save_both(tmp_path / "full")
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr().err == ""
    # Elsewhere, because writes of the save that failed may still be under way in this process.
    ignore = shutil.ignore_patterns("*-tmp")
    shutil.copytree(tmp_path / "full", tmp_path / "space", ignore=ignore)
    with Checkpoints(tmp_path / "space") as checkpoints:
        assert_same_state(checkpoints.restore_latest(template, print), at_step(state, 1))
        checkpoints.save(at_step(state, 2), accuracy=0.6)
        checkpoints.wait()
        assert checkpoints.saved_steps() == [1, 2]
        assert_same_state(checkpoints.restore(2, template), at_step(state, 2))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, Path.unlink])
def test_damage_to_any_file_is_harmless_or_noticed(
    checkpoints: Checkpoints,
    tmp_path: Path,
    template: TrainState,
    state: TrainState,
    caplog: pytest.LogCaptureFixture,
    damage: Damage,
):
    checkpoints.save(at_step(state, 2), accuracy=0.1)
    checkpoints.wait()
    noticed = []
    for path in [path for path in (tmp_path / "2").rglob("*") if path.is_file()]:
        content = path.read_bytes()
        damage(path)
        try:
            assert_same_state(
                checkpoints.restore(2, template), at_step(state, 2)
            )  # orbax reads not all of its files
        except DamagedCheckpointError as error:
            noticed.append(path.relative_to(tmp_path).parts[1] * ("checkpoint 2" in str(error)))
        path.write_bytes(content)
    assert {"weights", "rest", "meta"} <= set(noticed)
    gc.collect()
    assert caplog.text == ""  # the error is enough


def test_after_damage_the_checkpoint_before_is_taken(
    checkpoints: Checkpoints, tmp_path: Path, template: TrainState, state: TrainState
):
    for step in (1, 2):
        checkpoints.save(at_step(state, step), accuracy=0.1 * step)
    checkpoints.wait()
    truncate(tmp_path / "2" / "meta" / "metadata")
    reports: list[str] = []
    assert_same_state(checkpoints.restore_latest(template, reports.append), at_step(state, 1))
    assert len(reports) == 1
    assert "checkpoint 2" in reports[0]
    assert "going back to checkpoint 1" in reports[0]
    assert checkpoints.saved_steps() == [1]
    checkpoints.save(at_step(state, 2), accuracy=0.2)
    checkpoints.wait()
    assert_same_state(checkpoints.restore(2, template), at_step(state, 2))


def change_a_digit(path: Path) -> None:
    path.write_text(path.read_text().replace("0.9", "0.8"))


@pytest.mark.parametrize(
    "damage", [flip_a_byte, truncate, change_a_digit, lambda path: path.write_bytes(b"\x80")]
)
def test_a_damaged_accuracy_is_told_and_loses_the_first_place(
    tmp_path: Path, template: TrainState, state: TrainState, damage: Damage
):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(state, 2), accuracy=0.9)
        checkpoints.save(at_step(state, 3), accuracy=0.1)
    damage(tmp_path / "2" / "metrics" / "metrics")
    with pytest.raises(DamagedCheckpointError, match=r"checkpoint 2 .* no accuracy in it"):
        Checkpoints(tmp_path, read_only=True)
    told: list[str] = []
    with Checkpoints(tmp_path) as checkpoints:
        assert_same_state(checkpoints.restore_latest(template, told.append), at_step(state, 3))
        assert checkpoints.best_step() == 3
        assert checkpoints.saved_steps() == [2, 3]
    assert len(told) == 1
    assert "checkpoint 2" in told[0]
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.best_step() == 3


def test_a_half_written_accuracy_of_a_save_under_way_is_no_damage(tmp_path: Path, state: TrainState):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(state, 2), accuracy=0.9)
    half = tmp_path / "3.orbax-checkpoint-tmp" / "metrics" / "metrics"
    half.parent.mkdir(parents=True)
    half.write_text("{")
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.saved_steps() == [2]
        assert checkpoints.best_step() == 2
    assert half.read_text() == "{"


def test_another_networks_checkpoint_is_refused(
    checkpoints: Checkpoints, tiny_learner: Learner, state: TrainState
):
    checkpoints.save(at_step(state, 1))
    checkpoints.wait()
    config = tiny_learner.plan.config.replace({"model.stage_channels": (4, 8)})
    wider = make_learner(tiny_learner.plan.with_config(config))
    with pytest.raises(
        UserError, match=r"of another network: at .*expected float32\[8\], found float32\[6\]"
    ):
        checkpoints.restore_latest(state_template(wider, replicated(mesh_of(4))), print)
    assert checkpoints.saved_steps() == [1]


def test_if_none_is_intact_nothing_is_deleted(
    checkpoints: Checkpoints, tmp_path: Path, template: TrainState, state: TrainState
):
    for step in (1, 2):
        checkpoints.save(at_step(state, step))
    checkpoints.wait()
    for step in (1, 2):
        truncate(tmp_path / str(step) / "meta" / "metadata")
    with pytest.raises(UserError, match=r"no checkpoint is intact: remove .* to start anew"):
        checkpoints.restore_latest(template, print)
    assert checkpoints.saved_steps() == [1, 2]


def test_no_checkpoint_is_no_state(checkpoints: Checkpoints, template: TrainState):
    assert checkpoints.restore_latest(template, print) is None


def test_read_only_changes_nothing(tmp_path: Path, template: TrainState, state: TrainState):
    with Checkpoints(tmp_path) as writer:
        for step in (1, 2):
            writer.save(at_step(state, step), accuracy=0.1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with Checkpoints(tmp_path, read_only=True) as reader:
        reader.restore_variables(2, template.variables)
        assert reader.best_step() == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
