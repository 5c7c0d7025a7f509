"""SGD with momentum, decoupled or coupled weight decay, and the learning-rate schedule."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxresnet.plan import Plan


class Rates(NamedTuple):
    """The numbers of an optimiser and its schedule: floats, or float32 [] within the train step.

    They are inputs of the train step and not constants in it, so that one compiled program serves runs with other
    rates. `schedule_steps` is the number of steps until the cosine reaches 0, and infinite for a constant learning
    rate. `schedule_angle` is pi / `schedule_steps`, in radians.
    """

    learning_rate: float | jax.Array
    momentum: float | jax.Array
    weight_decay: float | jax.Array
    schedule_steps: float | jax.Array
    schedule_angle: float | jax.Array


def make_rates(plan: Plan) -> Rates:
    """The numbers of a plan's optimiser."""
    settings = plan.config.optimizer
    steps = math.inf if settings.schedule == "constant" else float(plan.schedule_steps)
    return Rates(
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        schedule_steps=steps,
        # In float32, and in this order: so XLA computes it where the number of steps is a constant.
        schedule_angle=float(np.float32(math.pi) * (np.float32(1) / np.float32(steps))),
    )


def learning_rate(rates: Rates, step: jax.typing.ArrayLike) -> jax.Array:
    """The learning rate of a step (0 is the first), float32 [].

    The cosine falls at every step, from `rates.learning_rate` to 0 at `rates.schedule_steps`, and then stays 0. It is
    optax.cosine_decay_schedule, which takes no array as its number of steps.
    """
    angle = rates.schedule_angle * jnp.minimum(step, rates.schedule_steps)
    return rates.learning_rate * (0.5 * (1 + jnp.cos(angle)))


def make_optimizer(plan: Plan, rates: Rates) -> optax.GradientTransformation:
    """SGD with the buffer b <- momentum * b + g, as in PyTorch (no dampening).

    Decoupled weight decay: theta <- theta - lr * (b + decay * theta), where g is the gradient of the loss. Coupled:
    theta <- theta - lr * b, where g is the gradient of the loss plus decay * theta, as in the paper's Equation 1. At
    momentum 0.9 the coupled decay is about ten times as strong. It applies to all parameters, including biases and
    BatchNorm's.
    """
    momentum = optax.trace(decay=rates.momentum)
    decay = optax.add_decayed_weights(rates.weight_decay)
    order = (momentum, decay) if plan.config.optimizer.decoupled else (decay, momentum)
    return optax.chain(*order, optax.scale_by_learning_rate(lambda step: learning_rate(rates, step)))
