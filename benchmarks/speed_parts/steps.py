"""The train and the evaluation step, of JAX and of PyTorch, beside the rate at which the device multiplies matrices."""

import statistics
from collections import deque
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxresnet.data.resolution import Size
from jaxresnet.fit import compile_steps
from jaxresnet.learning.learner import make_learner, random_key
from jaxresnet.learning.metrics import Metrics
from jaxresnet.learning.state import make_init, state_template
from jaxresnet.machine.devices import on_cpu, replicated, shard_batch
from jaxresnet.network.blocks import Convolution
from jaxresnet.network.cpu_convolution import convolution_for
from jaxresnet.network.describe import describe, macs_of_phases
from jaxresnet.plan import Plan
from jaxresnet.session import STEPS_IN_FLIGHT
from speed_parts.timing import Contender, in_turns, matrix_product, random_batch


def jax_contender(
    plan: Plan, mesh: Mesh, convolution: Convolution | None, note: str = "", size: Size | None = None
) -> Contender:
    """The run's own two compiled steps, as many in flight as in a run; `note` is added to the name.

    It trains on images of `size`, by default the data's own, and evaluates those of that size.
    """
    learner = make_learner(plan, convolution)
    size = size or plan.size_at(plan.total_steps)
    compiled = compile_steps(learner, state_template(learner, replicated(mesh)), mesh, size)
    states = [jax.jit(make_init(learner), out_shardings=replicated(mesh))(random_key(plan.config.seed))]
    empty = jax.tree.map(jnp.copy, states[0].metrics)
    whole = shard_batch(mesh, random_batch(plan))
    batch = whole._replace(image=whole.image[:, : size[0], : size[1]])

    def train(steps: int) -> None:
        in_flight: deque[Metrics] = deque()
        for _ in range(steps):
            states[0], metrics = compiled.train(states[0], batch)
            in_flight.append(metrics)
            if len(in_flight) > STEPS_IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())
        jax.block_until_ready(states[0])

    def evaluate(steps: int) -> None:
        previous = metrics = empty
        for _ in range(steps):
            jax.block_until_ready(previous)
            previous, metrics = metrics, compiled.evaluate(states[0].variables, metrics, whole)
        jax.block_until_ready(metrics)

    program: Any = compiled.train.of(
        batch.image.shape[1:3]
    )  # a jax.stages.Compiled, with the hyperparameters put in
    memory = program.func.memory_analysis().temp_size_in_bytes
    facts = {"compile_seconds": compiled.seconds, "temporary_bytes": memory}
    return Contender(f"JAX {plan.config.precision}{note}", train, evaluate, facts)


def contenders(plan: Plan, precisions: list[str], mesh: Mesh) -> Iterator[Contender | str]:
    """All that work here; a line for each that does not."""
    if on_cpu(mesh):
        float32 = plan.with_config(plan.config.replace({"precision": "float32"}))
        yield jax_contender(float32, mesh, None, ", all convolutions by XLA")
    for precision in precisions:
        precise = plan.with_config(plan.config.replace({"precision": precision}))
        yield jax_contender(precise, mesh, convolution_for(mesh))
        for compiled in (False, True):
            try:
                from speed_parts.pytorch import pytorch_contender

                yield pytorch_contender(precise, compiled, "cpu" if on_cpu(mesh) else "cuda")
            except Exception as error:  # PyTorch missing, no C++ compiler, ...
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                yield f"PyTorch {precision}, {'compiled' if compiled else 'eager'}: {reason}"


def measure_steps(
    plan: Plan, precisions: list[str], mesh: Mesh, rounds: int, seconds: float
) -> dict[str, Any]:
    """Images per second of training and evaluating, and the ceiling, all in turns."""
    skipped: list[str] = []
    found: list[Contender] = []
    for contender in contenders(plan, precisions, mesh):
        skipped.append(contender) if isinstance(contender, str) else found.append(contender)
    product, operations = matrix_product(jnp.float32, mesh.devices.flat[0], 2048 if on_cpu(mesh) else 8192)
    macs = sum(layer.macs for layer in describe(plan))
    rows = []
    for what, passes in (("train", 3), ("evaluate", 1)):
        functions = {contender.name: getattr(contender, what) for contender in found}
        times = in_turns(functions | {"ceiling": product}, rounds, seconds)
        ceiling = operations / statistics.median(times["ceiling"])
        for contender in found:
            rates = [plan.config.batch_size / t for t in times[contender.name]]
            rate = statistics.median(rates)
            row = {"what": what, "name": contender.name, "images_per_second": rate}
            row |= {"lowest": min(rates), "highest": max(rates)}
            row["share_of_ceiling"] = rate * 2 * passes * macs / ceiling
            rows.append(row | contender.facts)
        rows.append({"what": what, "name": "float32 matrix product", "gflops_per_second": ceiling / 1e9})
    return {"rows": rows, "skipped": skipped}


SIDES = (16, 24, 32)
"""Pixels of the sides of square images."""


def measure_sizes(plan: Plan, mesh: Mesh, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Seconds of a train step on images of the SIDES, in turns, beside their multiply-accumulates."""
    schedule = {"resolution.sizes": SIDES[:-1], "resolution.shares": (0.3, 0.3)}
    plan = plan.with_config(plan.config.replace(schedule))
    convolution = convolution_for(mesh, small_maps=True)
    found = {side: jax_contender(plan, mesh, convolution, size=(side, side)) for side in SIDES}
    macs = macs_of_phases(plan)
    times = in_turns({str(side): each.train for side, each in found.items()}, rounds, seconds)
    medians = [statistics.median(times[str(side)]) for side in SIDES]
    return [
        {
            "side": side,
            "seconds": f"{median:.3f}",
            "range": f"{min(times[str(side)]):.3f} to {max(times[str(side)]):.3f}",
            "time": f"{median / medians[-1]:.3f}",
            "macs": f"{count / macs[-1]:.3f}",
            "memory": f"{found[side].facts['temporary_bytes'] / 2**20:,.0f}",
        }
        for side, median, count in zip(SIDES, medians, macs, strict=True)
    ]
