"""The train step and the evaluation step: pure functions of state and batch.

Nothing here is jitted, prints, or reads clocks or flags; `jaxresnet.loop` compiles what it runs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxresnet.batch import Batch
from jaxresnet.config import Config
from jaxresnet.metrics import LOSSES, Metrics
from jaxresnet.model import build_model
from jaxresnet.optimizer import make_optimizer

Variables = dict[str, Any]
"""What predicting takes: {"params": tree, "batch_stats": tree}, all leaves float32."""

# What each random stream of a run is derived with from the run's seed.
_INIT, _DROPOUT = 0, 1


@struct.dataclass
class TrainState:
    """All that a run carries from step to step; saving it and starting from it changes no bit.

    `step` int32 [], the steps taken; `metrics`, the sums of the epoch under way; the trees are float32.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    metrics: Metrics

    @property
    def variables(self) -> Variables:
        """The part that predicting takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def _stream(config: Config, salt: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), salt)


def make_init(config: Config) -> Callable[[], TrainState]:
    """A function that makes the state before the first step, from the seed alone."""
    model, optimizer = build_model(config), make_optimizer(config)

    def init() -> TrainState:
        images = jnp.zeros((1, *config.dataset.image_shape))
        variables = model.init(_stream(config, _INIT), images, train=False)
        return TrainState(
            step=jnp.int32(0),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=optimizer.init(variables["params"]),
            metrics=Metrics.empty(len(config.dataset.class_names)),
        )

    return init


def preprocess(config: Config, images: jax.Array) -> jax.Array:
    """uint8 [B, H, W, C] to float32, scaled to 0..1 and normalised by the training split's mean and std.

    Raises TypeError for another dtype: values of 0..1 would be taken for black.
    """
    if images.dtype != jnp.uint8:
        raise TypeError(f"expected uint8 images, found {images.dtype}")
    mean, std = jnp.asarray(config.dataset.mean), jnp.asarray(config.dataset.std)
    return (images.astype(jnp.float32) / 255 - mean[None, None, None]) / std[None, None, None]


def make_train_step(config: Config) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A function (state, batch) -> (next state, the epoch's metrics so far).

    The metrics stand beside the state, too, so that they can be read while the state is already
    donated to the next step.
    """
    model, optimizer, loss_function = build_model(config), make_optimizer(config), LOSSES[config.loss]

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        images = preprocess(config, batch.image)
        targets = jax.nn.one_hot(batch.label, len(config.dataset.class_names))
        dropout = jax.random.fold_in(_stream(config, _DROPOUT), state.step)

        def mean_loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Any]]:
            logits, updates = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout},
            )
            losses = loss_function(logits, targets)
            return jnp.mean(losses), (logits, losses, updates["batch_stats"])

        gradient = jax.value_and_grad(mean_loss, has_aux=True)
        (loss, (logits, losses, batch_stats)), gradients = gradient(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics = state.metrics.add(logits, targets, losses, batch.mask)
        step = state.step + 1
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradients))
        first_bad = jnp.where(finite | (metrics.nonfinite_step > 0), metrics.nonfinite_step, step)
        metrics = metrics.replace(nonfinite_step=first_bad)
        state = TrainState(
            step=step,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            metrics=metrics,
        )
        return state, metrics

    return train_step


def make_predict(config: Config) -> Callable[[Variables, jax.Array], jax.Array]:
    """A function (variables, uint8 images [B, H, W, C]) -> logits, float32 [B, classes].

    Normalisation is part of it, so that training, evaluation and whatever else predicts cannot drift apart.
    """
    model = build_model(config)

    def predict(variables: Variables, images: jax.Array) -> jax.Array:
        return model.apply(variables, preprocess(config, images), train=False)

    return predict


def make_eval_step(config: Config) -> Callable[[Variables, Metrics, Batch], Metrics]:
    """A function (variables, sums so far, batch) -> sums with the batch added."""
    predict, loss_function = make_predict(config), LOSSES[config.loss]

    def eval_step(variables: Variables, metrics: Metrics, batch: Batch) -> Metrics:
        logits = predict(variables, batch.image)
        targets = jax.nn.one_hot(batch.label, len(config.dataset.class_names))
        return metrics.add(logits, targets, loss_function(logits, targets), batch.mask)

    return eval_step
