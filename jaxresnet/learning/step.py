"""The train step, the evaluation step and the prediction: pure functions of arrays.

They are not jitted here: the caller compiles them. They print nothing, and read no clock or flag.
"""

from collections.abc import Callable, Collection
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import optax

from jaxresnet.data.batches import Batch
from jaxresnet.data.info import DatasetInfo
from jaxresnet.data.resolution import Size
from jaxresnet.learning.learner import Hyperparameters, Learner
from jaxresnet.learning.losses import Loss
from jaxresnet.learning.metrics import Metrics
from jaxresnet.learning.optimizer import make_optimizer, moving_average
from jaxresnet.learning.state import TrainState, Variables, dropout_key
from jaxresnet.learning.targets import counted_labels, soft_targets, train_targets
from jaxresnet.network.resnet import ResNet

TrainStep = Callable[[Hyperparameters, TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Variables, Metrics, Batch], Metrics]
Predict = Callable[[Variables, Any], jax.Array]

Views = Literal["none", "flip", "six"]
"""Kinds of test-time augmentation; `views_of` explains them."""

VIEW_WEIGHTS: dict[str, tuple[float, ...]] = {"flip": (0.5, 0.5), "six": (0.25, 0.25, *[0.125] * 4)}
"""The weights of the views of each kind. The unshifted ones count twice as much, as in arXiv:2404.00498."""


def check_images(info: DatasetInfo, images: Any, sizes: Collection[Size] = ()) -> None:
    """Raise TypeError or ValueError unless `images` are uint8 [B, H, W, C] of the shape that `info` says.

    With `sizes`, their height and width must be among these. Float images of 0..1 would become almost black.
    """
    if images.dtype != jnp.uint8:
        raise TypeError(f"expected uint8 images, found {images.dtype}")
    *own, channels = info.image_shape
    shapes = [(*size, channels) for size in sizes or [own]]
    if tuple(images.shape[1:]) not in shapes:
        expected = " or ".join("x".join(map(str, shape)) for shape in shapes)
        raise ValueError(f"expected images [B, {expected}] as of {info.name}, found {list(images.shape)}")


def preprocess(info: DatasetInfo, images: Any, sizes: Collection[Size] = ()) -> jax.Array:
    """Scale uint8 images [B, H, W, C] to 0..1 and normalise them by the training split's mean and std, in float32.

    Raises what `check_images` raises.
    """
    check_images(info, images, sizes)
    mean, std = jnp.asarray(info.mean), jnp.asarray(info.std)
    return (images.astype(jnp.float32) / 255 - mean[None, None, None]) / std[None, None, None]


def _check_batch(batch: Batch) -> None:
    """Raise AssertionError if labels or mask have a wrong shape or dtype. They would be broadcast without an error."""
    size = batch.image.shape[0]
    chex.assert_shape([batch.label, batch.mask], (size,))
    chex.assert_type([batch.label, batch.mask], [jnp.int32, bool])


def make_train_step(learner: Learner) -> TrainStep:
    """A function (hyperparameters, state, batch) -> (next state, the epoch's metrics so far).

    The metrics are in the state, too. They are returned separately so that they can still be read after the state has
    been donated to the next step. The batch is checked when the function is traced: it raises AssertionError for labels
    or a mask of a wrong shape or dtype, and what `preprocess` raises. The images have the size of one of the plan's
    phases.
    """
    info, sizes = learner.plan.info, [phase.size for phase in learner.plan.phases]

    def train_step(
        hyperparameters: Hyperparameters, state: TrainState, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        _check_batch(batch)
        images = preprocess(info, batch.image, sizes)
        targets = train_targets(batch, info.classes, learner.plan.config.label_smoothing)
        dropout = dropout_key(hyperparameters.key, state.step)
        params, frozen = learner.divide(state.params)  # where no gradient is asked for, none is computed

        def mean_loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Any]]:
            logits, updates = learner.model.apply(
                {"params": params | frozen, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout},
            )
            losses = learner.loss(logits, targets)
            return jnp.mean(losses), (logits, losses, updates["batch_stats"])

        gradient = jax.value_and_grad(mean_loss, has_aux=True)
        (loss, (logits, losses, batch_stats)), gradients = gradient(params)
        optimizer = make_optimizer(learner.plan, hyperparameters.rates)
        updates, opt_state = optimizer.update(gradients, state.opt_state, params)
        step = state.step + 1
        metrics = state.metrics.add(logits, counted_labels(batch), losses, batch.mask)
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradients))
        metrics = _note_nonfinite(metrics, finite, step)
        params: Any = optax.apply_updates(params, updates)
        state = state.replace(
            step=step, params=params | frozen, batch_stats=batch_stats, opt_state=opt_state, metrics=metrics
        )
        if state.average is not None:
            average = moving_average(state.average, state.variables, hyperparameters.rates, step)
            state = state.replace(average=average)
        return state, metrics

    return train_step


def _note_nonfinite(metrics: Metrics, finite: jax.Array, step: jax.Array) -> Metrics:
    """The metrics with `step` as `nonfinite_step` if this step is the first that was not finite."""
    first = jnp.where(finite | (metrics.nonfinite_step > 0), metrics.nonfinite_step, step)
    return metrics.replace(nonfinite_step=first)


def make_predict(model: ResNet, info: DatasetInfo, views: Views = "none") -> Predict:
    """A function (variables, uint8 images [B, H, W, C]) -> logits, float32 [B, classes].

    It includes the normalisation, so that training, evaluation and every other use treat images alike. With `views`,
    the logits are the weighted mean of those of several views of each image. It is pure, so that it can be jitted and
    exported. It raises what `preprocess` raises.
    """

    def predict(variables: Variables, images: Any) -> jax.Array:
        def logits_of(view: jax.Array) -> jax.Array:
            logits = model.apply(variables, view, train=False)
            assert isinstance(logits, jax.Array)  # no collection is mutable
            return logits

        images = preprocess(info, images)
        if views == "none":
            return logits_of(images)
        # One after the other, so that the program holds the network once, and memory one view.
        logits = jax.lax.map(logits_of, jnp.stack(views_of(images, views)))
        weights = jnp.asarray(VIEW_WEIGHTS[views])
        return jnp.einsum("v,vbc->bc", weights, logits, precision=jax.lax.Precision.HIGHEST)

    return predict


def views_of(images: jax.Array, views: Views) -> list[jax.Array]:
    """Views of images [B, H, W, C], each of the same shape, with the weights VIEW_WEIGHTS[views].

    "flip": the image and its mirror image. "six": these, and the image shifted by one pixel up and to the left, and
    down and to the right, with the border reflected, each with its mirror image (Jordan 2024, arXiv:2404.00498).
    """
    shifted = []
    if views == "six":
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        shifted = [padded[:, 2:, 2:], padded[:, :-2, :-2]]
    return [view for each in (images, *shifted) for view in (each, each[:, :, ::-1])]


def make_eval_step(model: ResNet, info: DatasetInfo, loss: Loss, views: Views = "none") -> EvalStep:
    """A function (variables, sums so far, batch) -> sums with the batch added.

    It checks the batch as `make_train_step`'s does, and predicts as `make_predict`'s with these `views`.
    """
    predict = make_predict(model, info, views)

    def eval_step(variables: Variables, metrics: Metrics, batch: Batch) -> Metrics:
        _check_batch(batch)
        logits = predict(variables, batch.image)
        losses = loss(logits, soft_targets(batch.label, info.classes))
        return metrics.add(logits, batch.label, losses, batch.mask)

    return eval_step
