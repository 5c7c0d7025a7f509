"""Everything that a run learns with, built once from its plan."""

from dataclasses import dataclass

import optax

from jaxresnet.learning.losses import LOSSES, Loss
from jaxresnet.learning.optimizer import make_optimizer, make_schedule
from jaxresnet.network.blocks import Convolution
from jaxresnet.network.resnet import ResNet, build_model
from jaxresnet.plan import Plan


@dataclass(frozen=True)
class Learner:
    """A plan and what is built from it: network, loss, learning rate by step, optimiser. It holds no arrays."""

    plan: Plan
    model: ResNet
    loss: Loss
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation


def make_learner(plan: Plan, convolution: Convolution | None = None) -> Learner:
    """The learner of a plan. `convolution` is passed on to `jaxresnet.network.resnet.build_model`."""
    schedule = make_schedule(plan)
    return Learner(
        plan=plan,
        model=build_model(plan, convolution),
        loss=LOSSES[plan.config.loss],
        schedule=schedule,
        optimizer=make_optimizer(plan, schedule),
    )
