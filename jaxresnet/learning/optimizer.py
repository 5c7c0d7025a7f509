"""SGD with momentum, decoupled or coupled weight decay, and the learning-rate schedule."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxresnet.plan import Plan


class Rates(NamedTuple):
    """The numbers of an optimiser and its schedule: floats, or float32 [] within the train step.

    They are inputs of the train step and not constants in it, so that one compiled program serves runs with other
    rates. After `warmup_steps`, the learning rate falls for `decay_steps` steps, which are infinitely many if it is
    constant. `decay_angle` is pi / `decay_steps`, in radians.
    """

    learning_rate: float | jax.Array
    momentum: float | jax.Array
    weight_decay: float | jax.Array
    warmup_steps: float | jax.Array
    decay_steps: float | jax.Array
    decay_angle: float | jax.Array
    clip_norm: float | jax.Array
    ema_decay: float | jax.Array


def make_rates(plan: Plan) -> Rates:
    """The numbers of a plan's optimiser."""
    settings = plan.config.optimizer
    constant = settings.schedule == "constant"
    steps = math.inf if constant else float(plan.schedule_steps - plan.warmup_steps)
    return Rates(
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        warmup_steps=float(plan.warmup_steps),
        decay_steps=steps,
        # In float32, and in this order: so XLA computes it where the number of steps is a constant.
        decay_angle=float(np.float32(math.pi) * (np.float32(1) / np.float32(steps))),
        clip_norm=settings.clip_norm,
        ema_decay=settings.ema_decay,
    )


def learning_rate(plan: Plan, rates: Rates, step: jax.typing.ArrayLike) -> jax.Array:
    """The learning rate of a step (0 is the first), float32 [], with the plan's kind of schedule.

    It rises along a straight line and reaches `rates.learning_rate` at the step `rates.warmup_steps`. From there it
    falls at every step, along half a cosine wave or a straight line, and is 0 after `rates.decay_steps` more.
    The functions of optax take no arrays as numbers of steps.
    """
    warmup = jnp.minimum((step + 1) / (rates.warmup_steps + 1), 1)
    decayed = jnp.clip(step - rates.warmup_steps, 0, rates.decay_steps)
    if plan.config.optimizer.schedule == "linear":
        remaining = 1 - decayed / rates.decay_steps
    else:
        remaining = 0.5 * (1 + jnp.cos(rates.decay_angle * decayed))
    return rates.learning_rate * warmup * remaining


def make_optimizer(plan: Plan, rates: Rates) -> optax.GradientTransformation:
    """SGD with the buffer b <- momentum * b + g, as in PyTorch (no dampening).

    Decoupled weight decay: theta <- theta - lr * (b + decay * theta), where g is the gradient of the loss. Coupled:
    theta <- theta - lr * b, where g is the gradient of the loss plus decay * theta, as in the paper's Equation 1. At
    momentum 0.9 the coupled decay is about ten times as strong. With Nesterov momentum, g + momentum * b takes the
    place of b. The gradient of the loss is clipped before all else.
    """
    settings = plan.config.optimizer
    momentum = optax.trace(decay=rates.momentum, nesterov=settings.nesterov)
    decay = optax.add_decayed_weights(
        rates.weight_decay, mask=None if settings.decayed == "all" else is_kernel
    )
    clip = [optax.clip_by_global_norm(rates.clip_norm)] if settings.clip_norm else []
    order = (momentum, decay) if settings.decoupled else (decay, momentum)
    return optax.chain(
        *clip, *order, optax.scale_by_learning_rate(lambda step: learning_rate(plan, rates, step))
    )


def is_kernel(params: Any) -> Any:
    """For each leaf of a network's parameters, whether it is a kernel."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def moving_average(average: Any, new: Any, rates: Rates, step: jax.Array) -> Any:
    """The exponential moving average of a tree after `step` steps (1 is the first), with `new` added.

    Its decay is at most (1 + step) / (10 + step), so that the first steps do not weigh on it for long, as in
    TensorFlow's ExponentialMovingAverage.
    """
    decay = jnp.minimum(rates.ema_decay, (1 + step) / (10 + step))
    return optax.incremental_update(new, average, 1 - decay)
