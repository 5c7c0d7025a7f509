"""What is timed: functions in turns, contenders on equal batches, and the ceiling that rates are compared with."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxresnet.data.batches import Batch, zero_batch
from jaxresnet.plan import Plan

Repeated = Callable[[int], None]
"""A function of a number that does something that often and returns when it is done."""


def in_turns(functions: Mapping[str, Repeated], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds per step of each function in each round; a round of one takes about `seconds`, at least a step."""
    steps = {}
    for name, function in functions.items():
        function(1)
        began = time.perf_counter()
        function(1)
        steps[name] = max(1, round(seconds / (time.perf_counter() - began)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            function(1)  # untimed: after the others' turns it waits for memory, which steps in a row do not
            began = time.perf_counter()
            function(steps[name])
            times[name].append((time.perf_counter() - began) / steps[name])
    return times


def matrix_product(dtype: Any, device: Any, size: int) -> tuple[Repeated, float]:
    """A product of two square matrices on one device, and its floating-point operations."""
    matrix = jax.device_put(jnp.ones((size, size), dtype), device)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST))

    def run(steps: int) -> None:
        results = [product(matrix, matrix) for _ in range(steps)]
        jax.block_until_ready(results)

    return run, 2.0 * size**3


class Contender(NamedTuple):
    """One way to compute a step; `train(n)` and `evaluate(n)` take n steps and wait for them."""

    name: str
    train: Repeated
    evaluate: Repeated
    facts: dict[str, Any]


def random_batch(plan: Plan) -> Batch:
    """A batch of NumPy arrays, the same one each time."""
    random, batch = np.random.default_rng(0), zero_batch(plan.config, plan.info.image_shape)
    images = random.integers(0, 256, batch.image.shape, np.uint8)
    labels = random.integers(0, plan.info.classes, batch.label.shape).astype(np.int32)
    return batch._replace(image=images, label=labels)
