"""Checkpoints of other versions."""

import json
from pathlib import Path

import pytest
from helpers import assert_same_state, at_step

from jaxresnet.errors import UserError
from jaxresnet.learning.state import TrainState
from jaxresnet.runs.checkpoint import Checkpoints
from jaxresnet.runs.integrity import DamagedCheckpointError, text_checksum


def write_format(checkpoint: Path, number: int | None, *, checksum: bool = True) -> None:
    """Have a checkpoint say that it is of this format, with the `checksum` of that or the one that was there."""
    path = checkpoint / "meta" / "metadata"
    meta = json.loads(path.read_text())
    assert meta.pop("format") == 2
    if checksum:
        del meta["checksums"]["format"]
    if number is not None:
        meta["format"] = number
        if checksum:
            meta["checksums"]["format"] = text_checksum(number)
    path.write_text(json.dumps(meta))


def test_a_format_that_was_flipped_is_damage(
    checkpoints: Checkpoints, tmp_path: Path, template: TrainState, state: TrainState
):
    for step in (1, 2):
        checkpoints.save(at_step(state, step))
    checkpoints.wait()
    write_format(tmp_path / "2", 3, checksum=False)
    with pytest.raises(DamagedCheckpointError, match="its format does not have the checksum there"):
        checkpoints.restore(2, template)
    assert_same_state(checkpoints.restore_latest(template, lambda _: None), at_step(state, 1))


def test_a_checkpoint_of_a_later_version_is_refused_and_kept(
    checkpoints: Checkpoints, tmp_path: Path, template: TrainState, state: TrainState
):
    for step in (1, 2):
        checkpoints.save(at_step(state, step))
    checkpoints.wait()
    write_format(tmp_path / "2", 3)
    refusal = r"checkpoint 2 in \S+ has format 3: expected at most 2; .* later version of jaxresnet"
    with pytest.raises(UserError, match=refusal) as caught:
        checkpoints.restore_latest(template, print)
    assert not isinstance(caught.value, DamagedCheckpointError)
    assert len(str(caught.value).splitlines()) == 1
    assert checkpoints.saved_steps() == [1, 2]


def test_a_checkpoint_of_the_first_version_is_restored(
    checkpoints: Checkpoints, tmp_path: Path, template: TrainState, state: TrainState
):
    checkpoints.save(at_step(state, 2))
    checkpoints.wait()
    write_format(tmp_path / "2", None)  # it wrote no number
    assert_same_state(checkpoints.restore_latest(template, print), at_step(state, 2))


def test_a_meta_without_checksums_is_damage(
    checkpoints: Checkpoints, tmp_path: Path, template: TrainState, state: TrainState
):
    checkpoints.save(at_step(state, 2))
    checkpoints.wait()
    path = tmp_path / "2" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    for checksums in ({**meta["checksums"], "weights": 5}, {"shapes": meta["checksums"]["shapes"]}):
        path.write_text(json.dumps(meta | {"checksums": checksums}))
        with pytest.raises(DamagedCheckpointError, match=r"checkpoint 2 in .* is damaged: "):
            checkpoints.restore(2, template)
