"""Trained networks: load one from its workdir, predict with it, evaluate it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxresnet.batch import Batch
from jaxresnet.checkpoint import Checkpoints, DamagedCheckpointError
from jaxresnet.config import Config
from jaxresnet.data import Split, evaluation_batches
from jaxresnet.errors import UserError
from jaxresnet.metrics import LOSSES, Metrics
from jaxresnet.runtime import quiet_libraries, replicated, shard_batch
from jaxresnet.step import TrainState, Variables, make_eval_step, make_init, make_predict
from jaxresnet.weights import load_weights
from jaxresnet.workdir import Workdir

EvalStep = Callable[[Variables, Metrics, Batch], Metrics]


@dataclass(frozen=True)
class TrainedRun:
    """A checkpoint of a run, ready to predict.

    `predict(variables, images)` maps uint8 [B, H, W, C] to float32 logits [B, classes]; it is pure and not
    jitted. `step` is None for weights from a file. `selected_on` names the split that chose the checkpoint
    among others: None for all but the best.
    """

    config: Config
    variables: Variables
    class_names: tuple[str, ...]
    predict: Callable[[Variables, jax.Array], jax.Array]
    checkpoint: str
    step: int | None
    selected_on: str | None


def state_template(config: Config, mesh: Mesh) -> TrainState:
    """The train state with a jax.ShapeDtypeStruct in place of each array; computes nothing."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(make_init(config)),
    )


def load_run(workdir: Path, mesh: Mesh, checkpoint: str = "latest") -> TrainedRun:
    """Load the checkpoint "latest", "best" or of a step's number from a training run's folder.

    The folder is only read. Raises UserError if the run or the checkpoint does not exist or is damaged.
    """
    quiet_libraries()
    run = Workdir(workdir)
    config = run.require_config()
    missing = UserError(f"no checkpoint in {workdir} yet: it appears after the run's first epoch")
    if not run.checkpoints.is_dir():
        raise missing
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise missing
        if checkpoint == "latest":
            step = steps[-1]
        elif checkpoint == "best":
            step = checkpoints.best_step()
            if step is None:
                raise UserError(f"no checkpoint in {workdir} was evaluated: use --checkpoint latest")
        else:
            if checkpoint not in map(str, steps):
                raise UserError(
                    f"no checkpoint {checkpoint} in {workdir}: expected latest, best, or one of the steps "
                    + ", ".join(map(str, steps))
                )
            step = int(checkpoint)
        try:
            variables = checkpoints.restore_variables(step, state_template(config, mesh).variables)
        except DamagedCheckpointError as error:
            others = ", ".join(str(other) for other in steps if other != step) or "none"
            raise UserError(f"{error}; other checkpoints to evaluate: {others}") from None
    return TrainedRun(
        config=config,
        variables=variables,
        class_names=config.dataset.class_names,
        predict=make_predict(config),
        checkpoint=checkpoint,
        step=step,
        selected_on=config.evaluation.split if checkpoint == "best" else None,
    )


def load_weights_file(path: Path, mesh: Mesh) -> TrainedRun:
    """Load the weights in a safetensors file that `jaxresnet.weights.save_weights` wrote.

    Raises UserError if it cannot be read or does not fit the network it describes.
    """
    quiet_libraries()
    config, variables = load_weights(path)
    return TrainedRun(
        config=config,
        variables=jax.device_put(variables, replicated(mesh)),
        class_names=config.dataset.class_names,
        predict=make_predict(config),
        checkpoint=path.name,
        step=None,
        selected_on=None,
    )


def jit_eval_step(config: Config, mesh: Mesh) -> EvalStep:
    """The jitted evaluation step, whose sums come back whole on every device."""
    return jax.jit(make_eval_step(config), out_shardings=replicated(mesh))


def evaluate(
    eval_step: EvalStep,
    variables: Variables,
    split: Split,
    batch_size: int,
    mesh: Mesh,
    stop: Callable[[], bool] = lambda: False,
) -> Metrics | None:
    """Sums over every example of `split`, each counted once; None if `stop()` came true on the way.

    `batch_size` is a multiple of the devices; a compiled `eval_step` takes no other than it was compiled for.
    """
    classes = variables["params"]["head"]["bias"].shape[0]
    metrics = jax.device_put(Metrics.empty(classes), replicated(mesh))
    previous = metrics
    for batch in evaluation_batches(split, batch_size):
        if stop():
            return None
        # One step may run while the next batch is made ready, no more: `stop` is to be heard in time.
        jax.block_until_ready(previous)
        previous, metrics = metrics, eval_step(variables, metrics, shard_batch(mesh, batch))
    return jax.device_get(metrics)


def predict_split(run: TrainedRun, split: Split, batch_size: int, mesh: Mesh) -> np.ndarray:
    """Logits float32 [N, C] of every example of `split`, in its order.

    `batch_size` is treated as by `fitting_batch_size`.
    """
    predict = jax.jit(run.predict, out_shardings=replicated(mesh))
    return np.concatenate(
        [
            np.asarray(predict(run.variables, shard_batch(mesh, batch).image))[batch.mask]
            for batch in evaluation_batches(split, fitting_batch_size(batch_size, split, mesh))
        ]
    )


def metrics_of_logits(config: Config, logits: np.ndarray, labels: np.ndarray) -> Metrics:
    """The sums over examples whose logits float32 [N, C] are known; labels are int32 [N]."""
    targets = jax.nn.one_hot(labels, logits.shape[1])
    losses = LOSSES[config.loss](logits, targets)
    empty = Metrics.empty(logits.shape[1])
    return jax.device_get(empty.add(logits, targets, losses, np.ones(len(labels), bool)))


def fitting_batch_size(batch_size: int, split: Split, mesh: Mesh) -> int:
    """`batch_size`, at most the split's size, rounded up to a multiple of the devices."""
    devices = mesh.devices.size
    return -(-min(batch_size, len(split.labels)) // devices) * devices


def evaluation_record(
    config: Config, metrics: Metrics, checkpoint: str, step: int | None, selected_on: str | None
) -> dict[str, Any]:
    """The content of evaluation.json for sums over the test split.

    Accuracies are fractions, the confusion matrix's rows are true classes.
    """
    names = config.dataset.class_names
    return {
        "checkpoint": checkpoint,
        "step": step,
        "split": "test",
        "selected_on": selected_on,
        "examples": metrics.count,
        "loss": metrics.loss,
        "accuracy": metrics.accuracy,
        "per_class_accuracy": dict(zip(names, metrics.per_class_accuracy, strict=True)),
        "confusion_matrix": metrics.confusion.tolist(),
    }
