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
from jaxresnet.learning.optimizer import learning_rate, make_optimizer, make_rates, moving_average
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


@pytest.mark.parametrize("decoupled", [True, False])
def test_nesterov_looks_one_step_ahead(decoupled: bool):
    """PyTorch's form: buffer = momentum * buffer + g, and the step takes g + momentum * buffer."""
    plan = optimized(
        learning_rate=RATE,
        weight_decay=DECAY,
        momentum=MOMENTUM,
        schedule="constant",
        decoupled=decoupled,
        nesterov=True,
    )
    w, buffer, expected = -1.0, 0.0, []
    for _ in range(10):
        g = 3 * (w - 2) + (0 if decoupled else DECAY * w)
        buffer = MOMENTUM * buffer + g
        w -= RATE * (g + MOMENTUM * buffer + (DECAY * w if decoupled else 0))
        expected.append(w)
    np.testing.assert_allclose(train(plan, -1.0, lambda w: 3 * (w - 2), 10), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("clip_norm", "expected"), [(0.0, (3.0, 4.0)), (10.0, (3.0, 4.0)), (1.0, (0.6, 0.8))]
)
def test_a_long_gradient_is_scaled_to_the_norm_over_all_parameters(
    clip_norm: float, expected: tuple[float, float]
):
    plan = optimized(
        learning_rate=1.0, weight_decay=0.0, momentum=0.0, schedule="constant", clip_norm=clip_norm
    )
    optimizer = make_optimizer(plan, make_rates(plan))
    gradient = {"a": jnp.float32(3), "b": jnp.float32(4)}
    updates: Any = optimizer.update(gradient, optimizer.init(gradient), gradient)[0]
    np.testing.assert_allclose([-updates["a"], -updates["b"]], expected, rtol=1e-6)


def test_kernels_alone_decay_where_asked(tiny_learner: Learner):
    params = jax.tree.map(jnp.ones_like, initial_state(tiny_learner).params)
    plan = optimized(learning_rate=0.5, weight_decay=0.5, schedule="constant", decayed="kernels")
    optimizer = make_optimizer(plan, make_rates(plan))
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
        name = jax.tree_util.keystr(path)
        assert np.unique(leaf).tolist() == ([-0.25] if name.endswith("['kernel']") else [0.0]), name


def test_the_average_forgets_its_first_steps_quickly():
    rates, average = make_rates(optimized(ema_decay=0.5)), 10.0
    decays = [2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5]
    found: Any = {"w": jnp.float32(10)}
    for step, decay in enumerate(decays, 1):
        average = decay * average + (1 - decay) * step
        found = moving_average(found, {"w": jnp.float32(step)}, rates, jnp.int32(step))
        assert float(found["w"]) == pytest.approx(average, rel=1e-6)


def test_all_parameters_decay(tiny_learner: Learner):
    params = jax.tree.map(jnp.ones_like, initial_state(tiny_learner).params)
    plan = optimized(learning_rate=0.5, weight_decay=0.5, schedule="constant")
    optimizer = make_optimizer(plan, make_rates(plan))
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_array_equal(leaf, np.full(leaf.shape, -0.25, np.float32))


def rate_at(plan: Plan, step: int) -> float:
    return float(learning_rate(plan, make_rates(plan), step))


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


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_warm_up_and_then_down_to_zero(schedule: str):
    """Ten epochs of ten steps, of which two rise."""
    settings = {
        "epochs": 10,
        "batch_size": 5_000,
        "optimizer.learning_rate": 0.2,
        "optimizer.warmup": 0.2,
    }
    plan = plan_of(settings=settings | {"optimizer.schedule": schedule, "optimizer.schedule_epochs": 0})
    assert (plan.warmup_steps, plan.schedule_steps) == (20, 100)
    rising = [rate_at(plan, step) for step in range(21)]
    np.testing.assert_allclose(rising, 0.2 * np.arange(1, 22) / 21, rtol=1e-6)
    for step, share in [(40, 1 / 4), (60, 1 / 2), (99, 79 / 80), (100, 1), (150, 1)]:
        remaining = 1 - share if schedule == "linear" else (1 + math.cos(math.pi * share)) / 2
        assert rate_at(plan, step) == pytest.approx(0.2 * remaining, abs=1e-8)


def test_a_constant_rate_can_warm_up():
    settings = {"batch_size": 5_000, "optimizer.schedule": "constant", "optimizer.warmup": 0.0015}
    plan = plan_of(settings=settings)
    found = [rate_at(plan, step) for step in (0, 1, 2, 3, 4, 10**6)]
    np.testing.assert_allclose(found, 0.05 * np.array([0.25, 0.5, 0.75, 1, 1, 1]), rtol=1e-6)


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
