"""SGD with momentum, decoupled or coupled weight decay, and the learning-rate schedule."""

import optax

from jaxresnet.plan import Plan


def make_schedule(plan: Plan) -> optax.Schedule:
    """The learning rate as a function of the step (0 is the first step).

    The cosine falls at every step, from `learning_rate` to 0 at `plan.schedule_steps`, and then stays 0.
    """
    rate = plan.config.optimizer.learning_rate
    if plan.config.optimizer.schedule == "constant":
        return optax.constant_schedule(rate)
    return optax.cosine_decay_schedule(rate, decay_steps=plan.schedule_steps)


def make_optimizer(plan: Plan, schedule: optax.Schedule) -> optax.GradientTransformation:
    """SGD with the buffer b <- momentum * b + g, as in PyTorch (no dampening).

    Decoupled weight decay: theta <- theta - lr * (b + decay * theta), where g is the gradient of the loss. Coupled:
    theta <- theta - lr * b, where g is the gradient of the loss plus decay * theta, as in the paper's Equation 1. At
    momentum 0.9 the coupled decay is about ten times as strong. It applies to all parameters, including biases and
    BatchNorm's.
    """
    settings = plan.config.optimizer
    momentum = optax.trace(decay=settings.momentum)
    decay = optax.add_decayed_weights(settings.weight_decay)
    order = (momentum, decay) if settings.decoupled else (decay, momentum)
    return optax.chain(*order, optax.scale_by_learning_rate(schedule))
