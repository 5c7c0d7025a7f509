"""The train state, which a run carries from step to step, and how it is initialised."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxresnet.learning.learner import Learner, random_key
from jaxresnet.learning.metrics import Metrics
from jaxresnet.learning.optimizer import make_optimizer, make_rates

Variables = dict[str, Any]
"""What a prediction needs: {"params": tree, "batch_stats": tree}, all leaves float32."""

ITEMS = {
    "weights": ("params", "batch_stats"),
    "average": ("average",),
    "rest": ("opt_state", "step", "metrics"),
}
"""The items of a checkpoint and their fields of the state: what a prediction needs, which is the weights or their
average, and what only training needs."""

# Each random stream of a run is derived from the run's key and one of these numbers.
_INIT, _DROPOUT = 0, 1


class TrainState(struct.PyTreeNode):
    """Everything that a run carries from step to step. Training from a saved state gives the same bits.

    `step` int32 []: the number of steps taken. `metrics`: the sums of the current epoch. `average`: an average of the
    weights over the steps, as Variables, or None if none is kept. The leaves of `params` and `batch_stats` are float32.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    metrics: Metrics
    average: Variables | None = None

    @property
    def variables(self) -> Variables:
        """The part that a prediction needs."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def items(self) -> dict[str, dict[str, Any]]:
        """The state divided into the items of ITEMS: item to field to value. What is None is left out."""
        items = {
            item: {name: value for name in names if (value := getattr(self, name)) is not None}
            for item, names in ITEMS.items()
        }
        return {item: fields for item, fields in items.items() if fields}

    @classmethod
    def from_items(cls, items: dict[str, dict[str, Any]]) -> "TrainState":
        """The state of which `items` returned this."""
        return cls(**{name: value for item in items.values() for name, value in item.items()})


def dropout_key(key: jax.Array, step: jax.typing.ArrayLike) -> jax.Array:
    """The random key [] of a step's dropout, from the run's `key` [] and `step`, the steps taken, int32 []."""
    return jax.random.fold_in(jax.random.fold_in(key, _DROPOUT), step)


def make_init(learner: Learner) -> Callable[[jax.Array], TrainState]:
    """A function that makes the state before the first step, from the run's random key [] alone."""
    info = learner.plan.info
    optimizer = make_optimizer(learner.plan, make_rates(learner.plan))

    def init(key: jax.Array) -> TrainState:
        images = jnp.zeros((1, *info.image_shape))
        variables = learner.model.init(jax.random.fold_in(key, _INIT), images, train=False)
        averaged = learner.plan.config.optimizer.ema_decay > 0
        return TrainState(
            step=jnp.int32(0),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=optimizer.init(learner.divide(dict(variables["params"]))[0]),
            metrics=Metrics.empty(info.classes),
            average={"params": variables["params"], "batch_stats": variables["batch_stats"]}
            if averaged
            else None,
        )

    return init


def state_template(learner: Learner, sharding: jax.sharding.Sharding | None = None) -> TrainState:
    """The train state with a jax.ShapeDtypeStruct of that sharding in place of each array. Nothing is computed."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(make_init(learner), random_key(0)),
    )
