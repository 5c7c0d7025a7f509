"""The optimiser's arithmetic, by value."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import initial_state, plan_of

from jaxresnet.learning.learner import Learner
from jaxresnet.learning.optimizer import learning_rate, make_optimizer, make_rates
from jaxresnet.plan import Plan


def optimized(**settings: object) -> Plan:
    """The paper's plan with other settings of its optimiser."""
    return plan_of(settings={f"optimizer.{name}": value for name, value in settings.items()})


def train(plan: Plan, theta: float, gradient: Callable[[Any], Any], steps: int) -> list[float]:
    """The values of one parameter after each step."""
    optimizer, params = make_optimizer(plan, make_rates(plan)), {"w": jnp.asarray([theta], jnp.float32)}
    state, path = optimizer.init(params), []
    for _ in range(steps):
        updates, state = optimizer.update(jax.tree.map(gradient, params), state, params)
        params: Any = optax.apply_updates(params, updates)
        path.append(float(params["w"][0]))
    return path


RATE, DECAY, MOMENTUM = 0.05, 0.01, 0.9


@pytest.mark.parametrize("decoupled", [True, False])
def test_decay_alone_shrinks_the_weights(decoupled: bool):
    plan = optimized(
        learning_rate=RATE, weight_decay=DECAY, momentum=MOMENTUM, schedule="constant", decoupled=decoupled
    )
    first, second = train(plan, 1.0, jnp.zeros_like, 2)
    assert first == pytest.approx(1 - RATE * DECAY, rel=1e-6)
    shrunk = 1 - second / first
    if decoupled:
        assert shrunk == pytest.approx(RATE * DECAY, rel=1e-3)
    else:
        # The buffer holds momentum * decay * 1 + decay * first.
        assert shrunk == pytest.approx(RATE * DECAY * (1 + MOMENTUM), rel=1e-3)


@pytest.mark.parametrize("decoupled", [True, False])
def test_ten_steps_of_a_quadratic(decoupled: bool):
    """Loss 3/2 (w - 2)^2, against the recurrences written out in Python floats."""
    plan = optimized(
        learning_rate=RATE, weight_decay=DECAY, momentum=MOMENTUM, schedule="constant", decoupled=decoupled
    )
    w, buffer, expected = -1.0, 0.0, []
    for _ in range(10):
        g = 3 * (w - 2)
        buffer = MOMENTUM * buffer + (g if decoupled else g + DECAY * w)
        w -= RATE * (buffer + (DECAY * w if decoupled else 0))
        expected.append(w)
    np.testing.assert_allclose(train(plan, -1.0, lambda w: 3 * (w - 2), 10), expected, rtol=1e-5)


def test_all_parameters_decay(tiny_learner: Learner):
    params = jax.tree.map(jnp.ones_like, initial_state(tiny_learner).params)
    plan = optimized(learning_rate=0.5, weight_decay=0.5, schedule="constant")
    optimizer = make_optimizer(plan, make_rates(plan))
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_array_equal(leaf, np.full(leaf.shape, -0.25, np.float32))


def rate_at(plan: Plan, step: int) -> float:
    return float(learning_rate(make_rates(plan), step))


def test_cosine_schedule():
    """The paper's: 0.05 over 200 epochs of 390.625 steps, of which it trains 40."""
    for step, expected in [
        (0, 0.05),
        (15_624, 0.05 * (1 + math.cos(math.pi * 15_624 / 78_125)) / 2),
        (78_125 // 2, 0.025),
        (78_125, 0.0),
        (100_000, 0.0),
    ]:
        assert rate_at(plan_of(), step) == pytest.approx(expected, abs=1e-6)
    assert rate_at(plan_of(), 15_624) == pytest.approx(0.0452, abs=1e-4)


def test_the_cosine_is_optaxs_to_rounding():
    plan = plan_of()
    expected = optax.cosine_decay_schedule(0.05, plan.schedule_steps)
    steps = np.arange(0, 90_000, 997)
    found = [rate_at(plan, int(step)) for step in steps]
    np.testing.assert_allclose(
        found, [float(jnp.asarray(expected(int(step)))) for step in steps], rtol=3e-7, atol=1e-8
    )


def test_schedule_epochs_zero_follows_the_run():
    plan = plan_of(settings={"epochs": 10, "optimizer.schedule_epochs": 0})
    assert rate_at(plan, plan.total_steps) == pytest.approx(0, abs=1e-9)
    assert rate_at(plan, plan.total_steps // 2) == pytest.approx(0.025, abs=1e-4)


def test_constant_schedule():
    assert rate_at(optimized(schedule="constant"), 10**6) == pytest.approx(0.05)


def test_the_optimiser_follows_the_schedule():
    plan = plan_of(
        settings={
            "epochs": 1,
            "batch_size": 12_500,
            "optimizer.schedule_epochs": 1,
            "optimizer.weight_decay": 0,
            "optimizer.momentum": 0,
        }
    )
    path = train(plan, 0.0, jnp.ones_like, 4)
    rates = [0.05 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    np.testing.assert_allclose(path, -np.cumsum(rates), rtol=1e-5)
