"""Nothing that is read as data runs as a program: a pickle's payload stays where it is."""

import contextlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import pytest
from helpers import at_step, initial_state, mesh_of

from jaxresnet.config.files import load_config
from jaxresnet.errors import UserError
from jaxresnet.learning.learner import Learner
from jaxresnet.learning.state import state_template
from jaxresnet.machine.devices import replicated
from jaxresnet.plan import Plan
from jaxresnet.runs.checkpoint import Checkpoints
from jaxresnet.runs.workdir import Workdir
from jaxresnet.trained.weights import load_weights


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    return tmp_path / "the payload ran"


@pytest.fixture
def payload(proof: Path) -> bytes:
    payload = pickle.dumps(Payload(proof))
    pickle.loads(payload)
    assert proof.is_dir()  # it would
    proof.rmdir()
    return payload


def read_facts(path: Path) -> Plan:
    """The plan of the default configuration with the facts of the data set at `path`."""
    (path.parent / "config.toml").write_text("")
    return Workdir(path.parent).require_plan()


def test_configuration_weights_and_records(tmp_path: Path, proof: Path, payload: bytes):
    readers: dict[str, Callable[[Path], Any]] = {
        "config.toml": load_config,
        "weights.safetensors": load_weights,
        "run/config.toml": lambda path: Workdir(path.parent).config(),
        "run/metrics.jsonl": lambda path: Workdir(path.parent).epochs.read(),
        "run/evaluation.json": lambda path: Workdir(path.parent).evaluation(),
        "run/environment.json": lambda path: Workdir(path.parent).starts.read(),
        "run/dataset.json": read_facts,
    }
    for name, read in readers.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(payload + b"\n")
        with pytest.raises(UserError, match=path.name):
            read(path)
    assert not proof.exists()


def test_every_file_of_a_checkpoint(tmp_path: Path, proof: Path, payload: bytes, tiny_learner: Learner):
    state = at_step(initial_state(tiny_learner), 7)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state, accuracy=0.5)
    template = state_template(tiny_learner, replicated(mesh_of(1)))
    files = [path for path in (tmp_path / "checkpoints" / "7").rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        path.write_bytes(payload)
        with (
            contextlib.suppress(UserError),
            Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints,
        ):
            # a file that is of no account
            chex.assert_trees_all_equal(checkpoints.restore(7, template), state)
        path.write_bytes(content)
    assert not proof.exists()
