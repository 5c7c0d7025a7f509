"""SGD with momentum, decoupled or coupled weight decay, and the learning-rate schedule."""

import optax

from jaxresnet.config import Config


def make_schedule(config: Config) -> optax.Schedule:
    """Learning rate by step (0 is the first step).

    The cosine falls at every step, from `learning_rate` to 0 at `config.schedule_steps`, and stays 0.
    """
    rate = config.optimizer.learning_rate
    if config.optimizer.schedule == "constant":
        return optax.constant_schedule(rate)
    return optax.cosine_decay_schedule(rate, decay_steps=config.schedule_steps)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """SGD with the buffer b <- momentum * b + g, as in PyTorch (no dampening).

    Decoupled: theta <- theta - lr * (b + decay * theta). Coupled: g is the gradient plus
    decay * theta, the gradient of the paper's Equation 1; at momentum 0.9 the decay then acts about
    ten times as strongly. All parameters decay, biases and BatchNorm's included.
    """
    settings = config.optimizer
    momentum = optax.trace(decay=settings.momentum)
    decay = optax.add_decayed_weights(settings.weight_decay)
    order = (momentum, decay) if settings.decoupled else (decay, momentum)
    return optax.chain(*order, optax.scale_by_learning_rate(make_schedule(config)))
