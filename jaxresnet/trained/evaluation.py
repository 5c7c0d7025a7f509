"""Evaluating a network: sums over a split on the devices of a mesh, and the record that is made of them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxresnet.data.batches import evaluation_batches
from jaxresnet.data.splits import Split
from jaxresnet.errors import UserError
from jaxresnet.learning.learner import Learner
from jaxresnet.learning.metrics import Metrics
from jaxresnet.learning.state import Variables
from jaxresnet.learning.step import EvalStep, Views, make_eval_step, make_predict
from jaxresnet.learning.targets import soft_targets
from jaxresnet.machine.devices import replicate, replicated, shard_batch
from jaxresnet.plan import Plan
from jaxresnet.runs.records import EvaluationRecord


def jit_eval_step(learner: Learner, mesh: Mesh, views: Views = "none") -> Any:
    """The jitted evaluation step: an EvalStep that returns the whole sums on every device of `mesh`."""
    eval_step = make_eval_step(learner.model, learner.plan.info, learner.loss, views)
    return jax.jit(eval_step, out_shardings=replicated(mesh))


def evaluate(
    eval_step: EvalStep,
    variables: Variables,
    split: Split,
    batch_size: int,
    mesh: Mesh,
    stop: Callable[[], bool] = lambda: False,
) -> Metrics | None:
    """Sums over every example of `split`, each counted once; None if `stop()` returned true before the end.

    `batch_size` must be a multiple of the number of devices. A compiled `eval_step` takes only the batch size that it
    was compiled for. The sums are NumPy arrays.
    """
    classes = variables["params"]["head"]["bias"].shape[0]
    metrics = replicate(mesh, Metrics.empty(classes))
    previous = metrics
    for batch in evaluation_batches(split, batch_size):
        if stop():
            return None
        # At most one step runs while the next batch is prepared, so that `stop` is asked often.
        jax.block_until_ready(previous)
        previous, metrics = metrics, eval_step(variables, metrics, shard_batch(mesh, batch))
    return jax.device_get(metrics)


def evaluate_whole(
    learner: Learner,
    variables: Variables,
    split: Split,
    batch_size: int,
    mesh: Mesh,
    views: Views = "none",
) -> Metrics:
    """Sums over every example of `split`, in batches of `fitting_batch_size(batch_size, split, mesh)`.

    With `views`, the logits are means over several views of each image. Raises UserError if the loss is not finite.
    """
    eval_step, fitting = jit_eval_step(learner, mesh, views), fitting_batch_size(batch_size, split, mesh)
    metrics = evaluate(eval_step, variables, split, fitting, mesh)
    assert metrics is not None  # nothing stops it
    _require_finite(metrics.loss)
    return metrics


def _require_finite(values: float | np.ndarray) -> None:
    """Raise UserError if an evaluation's loss or logits are not finite."""
    if not np.isfinite(values).all():
        raise UserError(
            "the evaluation gives numbers that are not finite: expected other weights, because these are too large"
        )


def predict_split(
    learner: Learner, variables: Variables, split: Split, batch_size: int, mesh: Mesh
) -> np.ndarray:
    """Logits float32 [N, C] of every example of `split`, in its order.

    They are computed in batches of `fitting_batch_size(batch_size, split, mesh)`. Raises UserError if one is not
    finite.
    """
    predict = jax.jit(make_predict(learner.model, learner.plan.info), out_shardings=replicated(mesh))
    logits = np.concatenate(
        [
            np.asarray(predict(variables, shard_batch(mesh, batch).image))[batch.mask]
            for batch in evaluation_batches(split, fitting_batch_size(batch_size, split, mesh))
        ]
    )
    _require_finite(logits)
    return logits


def metrics_of_logits(learner: Learner, logits: np.ndarray, labels: np.ndarray) -> Metrics:
    """The sums over examples, from their logits float32 [N, C] and labels int32 [N]."""
    losses = learner.loss(jax.numpy.asarray(logits), soft_targets(jax.numpy.asarray(labels), logits.shape[1]))
    empty = Metrics.empty(logits.shape[1])
    return jax.device_get(empty.add(logits, labels, losses, np.ones(len(labels), bool)))


def fitting_batch_size(batch_size: int, split: Split, mesh: Mesh) -> int:
    """The smaller of `batch_size` and the split's size, rounded up to a multiple of the number of devices."""
    devices = mesh.devices.size
    return -(-min(batch_size, len(split.labels)) // devices) * devices


def evaluation_record(
    plan: Plan, metrics: Metrics, checkpoint: str, step: int | None, selected_on: str | None
) -> EvaluationRecord:
    """The record of an evaluation on the test split, from its sums. EvaluationRecord describes the other arguments."""
    return EvaluationRecord(
        checkpoint=checkpoint,
        step=step,
        split="test",
        selected_on=selected_on,
        examples=metrics.count,
        loss=metrics.loss,
        accuracy=metrics.accuracy,
        per_class_accuracy=dict(zip(plan.info.class_names, metrics.per_class_accuracy, strict=True)),
        confusion_matrix=metrics.confusion.tolist(),
    )
