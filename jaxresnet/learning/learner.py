"""Everything that a run learns with, built once from its plan."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from jaxresnet.learning.losses import LOSSES, Loss
from jaxresnet.learning.optimizer import Rates, make_rates
from jaxresnet.network.blocks import Convolution
from jaxresnet.network.resnet import ResNet, build_model, frozen_modules
from jaxresnet.plan import Plan


@dataclass(frozen=True)
class Learner:
    """A plan and what is built from it: network and loss. It holds no arrays."""

    plan: Plan
    model: ResNet
    loss: Loss

    def divide(self, tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The part of "params" or "batch_stats" that is trained, and the part that `freeze_stages` keeps as it is."""
        frozen = frozen_modules(self.plan)
        parts: tuple[dict[str, Any], dict[str, Any]] = {}, {}
        for name, module in tree.items():
            parts[name in frozen][name] = module
        return parts


class Hyperparameters(NamedTuple):
    """The inputs of the train step that stay the same during a run: its random key [], and the optimiser's rates.

    Runs that differ only in these share one compiled program.
    """

    key: jax.Array
    rates: Rates


def make_learner(plan: Plan, convolution: Convolution | None = None) -> Learner:
    """The learner of a plan. `convolution` is passed on to `jaxresnet.network.resnet.build_model`."""
    return Learner(plan, build_model(plan, convolution), LOSSES[plan.config.loss])


def make_hyperparameters(plan: Plan) -> Hyperparameters:
    """The hyperparameters of a plan: those of its seed and its optimiser."""
    return Hyperparameters(random_key(plan.config.seed), make_rates(plan))


def random_key(seed: int) -> jax.Array:
    """The random key [] of a run's seed, from which all of its random numbers on the device are derived."""
    return jax.random.key(seed, impl="threefry2x32")
