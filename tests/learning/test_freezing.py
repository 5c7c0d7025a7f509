"""What `freeze_stages` keeps as it is, and how the rest is trained."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import initial_state, jitted_train_step, plan_of

from jaxresnet.config.schema import Config
from jaxresnet.data.batches import Batch
from jaxresnet.data.splits import Split
from jaxresnet.learning.learner import Learner, make_learner
from jaxresnet.learning.optimizer import make_optimizer, make_rates
from jaxresnet.learning.state import TrainState
from jaxresnet.learning.step import make_predict

STEM = {"stem_conv", "stem_norm"}
RATE, DECAY = 0.1, 0.5


@pytest.fixture(scope="module")
def first(tiny_learner: Learner) -> TrainState:
    """The state before the first step, with an average, and with statistics that no batch has."""
    state = initial_state(tiny_learner)
    shifted = jax.tree.map(lambda leaf: leaf + 0.3, state.batch_stats)
    return state.replace(batch_stats=shifted, average={"params": state.params, "batch_stats": shifted})


def learner_and_state(
    config: Config, first: TrainState, settings: dict[str, Any]
) -> tuple[Learner, TrainState]:
    """A learner that freezes, and its first state, of the same weights."""
    common = {
        "init": "a trained network",
        "model.dropout_rate": 0.0,
        "optimizer.learning_rate": RATE,
        "optimizer.weight_decay": DECAY,
        "optimizer.schedule": "constant",
        "optimizer.ema_decay": 0.9,
    }
    learner = make_learner(plan_of(config, common | settings))
    optimizer = make_optimizer(learner.plan, make_rates(learner.plan))
    return learner, first.replace(opt_state=optimizer.init(learner.divide(first.params)[0]))


def batch_of(split: Split) -> Batch:
    return Batch(split.images[:8], split.labels[:8], np.ones(8, bool))


def unchanged(before: dict, after: dict) -> set[str]:
    """The modules of which no leaf has changed a bit. It fails unless all others have changed in every leaf."""
    same = {}
    for name, module in before.items():
        pairs = zip(jax.tree.leaves(module), jax.tree.leaves(after[name]), strict=True)
        [same[name]] = {np.array_equal(old, new) for old, new in pairs}
    return {name for name, each in same.items() if each}


def assert_only_the_rest_moved(first: TrainState, state: TrainState, frozen: set[str]) -> None:
    """`frozen` are exactly the modules that kept their weights and statistics, and up to rounding their averages."""
    assert unchanged(first.params, state.params) == frozen
    assert unchanged(first.batch_stats, state.batch_stats) == frozen - {"stem_conv"}
    assert first.average is not None
    assert state.average is not None
    for name in frozen:
        pairs = zip(
            jax.tree.leaves(first.average["params"][name]),
            jax.tree.leaves(state.average["params"][name]),
            strict=True,
        )
        for old, new in pairs:
            np.testing.assert_allclose(new, old, rtol=1e-6)
    # There is no momentum that could move them later.
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    names = {key.key for path, _ in leaves for key in path if isinstance(key, jax.tree_util.DictKey)}
    assert names & set(first.params) == set(first.params) - frozen


def test_what_is_frozen_keeps_every_bit_and_the_rest_moves(
    tiny_config: Config, digits: Split, first: TrainState
):
    """Also with coupled decay, which would go through the momentum."""
    settings = {"freeze_stages": 1, "optimizer.decoupled": False, "optimizer.clip_norm": 1.0}
    learner, state = learner_and_state(tiny_config, first, settings)
    step = jitted_train_step(learner)
    for _ in range(3):
        state, _ = step(state, batch_of(digits))
    assert_only_the_rest_moved(first, state, STEM | {"stage0_block0"})


def test_a_head_alone_descends_its_gradient_on_the_features_of_a_prediction(
    tiny_config: Config, digits: Split, first: TrainState
):
    """With all stages frozen, and no dropout, a step sees what an evaluation sees: the running statistics."""
    learner, state = learner_and_state(tiny_config, first, {"freeze_stages": 2})
    predict, batch = make_predict(learner.model, learner.plan.info), batch_of(digits)

    def loss(head: dict) -> jax.Array:
        logits = predict(first.variables | {"params": first.params | {"head": head}}, batch.image)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(8), batch.label])

    value, gradient = jax.jit(jax.value_and_grad(loss))(first.params["head"])
    state, metrics = jitted_train_step(learner)(state, batch)
    assert metrics.loss == pytest.approx(float(value), rel=1e-5)
    assert_only_the_rest_moved(first, state, set(first.params) - {"head"})
    for name, theta in first.params["head"].items():
        expected = theta - RATE * (gradient[name] + DECAY * theta)
        np.testing.assert_allclose(state.params["head"][name], expected, rtol=1e-5, atol=1e-7)
