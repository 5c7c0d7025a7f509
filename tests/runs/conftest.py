"""A state with its template, and a folder of checkpoints."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers import initial_state, mesh_of

from jaxresnet.learning.learner import Learner
from jaxresnet.learning.state import TrainState, state_template
from jaxresnet.machine.devices import replicated
from jaxresnet.runs.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def state(tiny_learner: Learner) -> TrainState:
    """A state whose leaves all differ from their initial values."""
    state = initial_state(tiny_learner, replicated(mesh_of(4)))
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(1, leaf.dtype), state)


@pytest.fixture(scope="module")
def template(tiny_learner: Learner) -> TrainState:
    """What to restore, on four devices."""
    return state_template(tiny_learner, replicated(mesh_of(4)))


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpoints]:
    with Checkpoints(tmp_path) as checkpoints:
        yield checkpoints
