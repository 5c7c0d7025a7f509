"""The train state: its parts as they are saved, and its shapes without its arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import initial_state, mesh_of, plan_of

from jaxresnet.config.schema import Config
from jaxresnet.learning.learner import Learner, make_learner, random_key
from jaxresnet.learning.state import ITEMS, TrainState, dropout_key, state_template
from jaxresnet.machine.devices import replicated


@pytest.fixture(scope="module")
def state(tiny_learner: Learner) -> TrainState:
    return initial_state(tiny_learner)


@pytest.mark.parametrize("with_average", [False, True])
def test_the_state_comes_back_from_its_items(state: TrainState, with_average: bool):
    if with_average:
        state = state.replace(average=jax.tree.map(lambda leaf: leaf / 2, state.variables))
    items = state.items()
    assert items.keys() == ITEMS.keys() - (set() if with_average else {"average"})
    assert items["weights"] == state.variables
    assert items["rest"].keys() == {"opt_state", "step", "metrics"}
    back = TrainState.from_items(items)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)
    assert (back.average is not None) == with_average


def test_every_field_is_an_item():
    names = [name for names in ITEMS.values() for name in names]
    assert sorted(names) == sorted(TrainState.__dataclass_fields__)


def test_the_state_begins_from_the_seed_alone(tiny_config: Config, state: TrainState):
    again, other = (
        initial_state(make_learner(plan_of(tiny_config, {"seed": seed, "epochs": 5}))) for seed in (0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert not np.array_equal(other.params["head"]["kernel"], state.params["head"]["kernel"])
    assert int(state.step) == state.metrics.count == 0
    assert state.average is None


def test_the_template_has_shapes_and_a_place_in_place_of_arrays(tiny_learner: Learner, state: TrainState):
    sharding = replicated(mesh_of(4))
    template = state_template(tiny_learner, sharding)
    assert jax.tree.structure(template) == jax.tree.structure(state)
    for shape, leaf in zip(jax.tree.leaves(template), jax.tree.leaves(state), strict=True):
        assert isinstance(shape, jax.ShapeDtypeStruct)
        assert (shape.shape, shape.dtype, shape.sharding) == (leaf.shape, leaf.dtype, sharding)


def test_each_step_and_seed_has_its_own_dropout_key():
    keys = [
        jax.random.key_data(dropout_key(random_key(seed), jnp.int32(step)))
        for seed, step in [(0, 0), (0, 1), (1, 0), (1, 1)]
    ]
    assert len({tuple(key.tolist()) for key in keys}) == 4
