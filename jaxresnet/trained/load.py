"""Loading a trained network, from the folder of its run, from a weights file, or by the name of a shipped one."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxresnet.config.schema import Config
from jaxresnet.data.info import DatasetInfo
from jaxresnet.errors import UserError
from jaxresnet.learning.learner import make_learner
from jaxresnet.learning.state import Variables, state_template
from jaxresnet.learning.step import Predict, check_images, make_predict
from jaxresnet.machine.devices import local_mesh, replicated, shard_batch
from jaxresnet.network.cpu_convolution import convolution_for
from jaxresnet.network.resnet import ResNet, build_model
from jaxresnet.plan import Plan
from jaxresnet.runs.integrity import DamagedCheckpointError
from jaxresnet.runs.workdir import Workdir
from jaxresnet.trained.shipped import find_network
from jaxresnet.trained.weights import load_weights, require_usable

_softmax = jax.jit(jax.nn.softmax)
"""Jitted, because its five operations alone would be compiled one by one, which takes a third of a second."""


@dataclass(frozen=True)
class TrainedNetwork:
    """The weights of a network with the plan of its training, ready to predict.

    `variables` lie on every device of `mesh`. `checkpoint` is "latest", "best", the number of a step or the name of a
    file. `step` is None for weights from a file. `selected_on` names the split that served to choose the checkpoint
    among others; None for all but the best.
    """

    plan: Plan
    variables: Variables
    mesh: Mesh
    checkpoint: str
    step: int | None
    selected_on: str | None

    @property
    def config(self) -> Config:
        """The configuration that it was trained with."""
        return self.plan.config

    @property
    def info(self) -> DatasetInfo:
        """The facts of the data that it was trained on: image shape, class names, mean and std."""
        return self.plan.info

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return self.info.class_names

    @property
    def parameters(self) -> int:
        """The number of trainable parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))

    @functools.cached_property
    def module(self) -> ResNet:
        """The linen module, which takes normalised float images: `module.apply(variables, images, train=False)`."""
        return build_model(self.plan)

    @functools.cached_property
    def apply(self) -> Predict:
        """The function (variables, uint8 images [B, H, W, C]) -> float32 logits [B, classes].

        It is pure and not jitted: for `jax.jit`, `jax.grad` and `jax.export`. It raises what `predict` raises.
        """
        return make_predict(self.module, self.info)

    def predict(self, images: Any) -> jax.Array:
        """Logits, float32 [B, classes], of a batch of uint8 images [B, H, W, C], NumPy's or JAX's.

        They are computed at once, on all devices of the mesh, by a function that is compiled once for each B. Raises
        TypeError for another dtype, and ValueError for images of another shape than `info.image_shape`.
        """
        check_images(self.info, images)
        count, devices = len(images), self.mesh.devices.size
        fill = -count % devices
        images = np.pad(np.asarray(images), ((0, fill), (0, 0), (0, 0), (0, 0)))
        return self._jitted(self.variables, shard_batch(self.mesh, images))[:count]

    def probabilities(self, images: Any) -> jax.Array:
        """The probability of each class, float32 [B, classes], for a batch of images as `predict` takes them."""
        return _softmax(self.predict(images))

    @functools.cached_property
    def _jitted(self) -> Any:
        model = build_model(self.plan, convolution_for(self.mesh))
        return jax.jit(make_predict(model, self.info), out_shardings=replicated(self.mesh))


def load_network(
    name: Path | str,
    checkpoint: str | int | None = None,
    mesh: Mesh | None = None,
    *,
    average: bool = False,
    plan: Plan | None = None,
) -> TrainedNetwork:
    """Load what `name` means (`find_network`): the folder of a run, a weights file, or the name of shipped weights.

    `checkpoint` (by default the latest) and `average` choose among a run's weights, as `load_run` says. `plan` is that
    of a weights file, as `load_weights_file` says. Raises UserError as these two do, and with exit code 2 if an
    argument is given that the other kind takes.
    """
    path = find_network(name)
    if path.is_dir():
        if plan is not None:
            raise UserError(f"--config: expected with a file of weights, found with the run in {path}", 2)
        return load_run(path, "latest" if checkpoint is None else checkpoint, mesh, average=average)
    for argument, given in (("--checkpoint", checkpoint is not None), ("--average", average)):
        if given:
            raise UserError(f"{argument}: expected with the folder of a run, found with the file {path}", 2)
    return load_weights_file(path, mesh, plan)


def load_run(
    workdir: Path | str, checkpoint: str | int = "latest", mesh: Mesh | None = None, *, average: bool = False
) -> TrainedNetwork:
    """Load a checkpoint from the folder of a training run: "latest", "best" or the number of a step.

    With `average`, the weights are the average that the run keeps (`optimizer.ema_decay`). The arrays are put on every
    device of `mesh`, by default all devices of this process. The folder is only read. Raises UserError if the run or
    the checkpoint does not exist or is damaged, or the run keeps no average.
    """
    mesh, checkpoint = mesh or local_mesh(), str(checkpoint)
    folder = Workdir(workdir)
    plan = folder.require_plan()
    if average and not plan.config.optimizer.ema_decay:
        raise UserError(f"the run in {workdir} keeps no average of its weights: optimizer.ema_decay is 0")

    def missing() -> UserError:
        yet = "" if folder.epochs.read() else " yet: it appears after the run's first epoch"
        return UserError(f"no checkpoint in {workdir}{yet}")

    if not folder.checkpoints.is_dir():
        raise missing()
    template = state_template(make_learner(plan), replicated(mesh)).variables
    from jaxresnet.runs.checkpoint import Checkpoints  # loads orbax, which a weights file does not need

    with Checkpoints(folder.checkpoints, folder.identity(plan.config), read_only=True) as checkpoints:
        saved = checkpoints.saved_steps()
        if not saved:
            raise missing()
        step = _chosen_step(checkpoint, saved, checkpoints.best_step(), folder.path)
        try:
            variables = checkpoints.restore_variables(step, template, average=average)
        except DamagedCheckpointError as error:
            others = ", ".join(str(other) for other in saved if other != step) or "none"
            raise UserError(f"{error}; other checkpoints to evaluate: {others}") from None
    require_usable(variables, f"checkpoint {step} in {folder.checkpoints}: ")
    selected_on = plan.config.evaluation.split if checkpoint == "best" else None
    return TrainedNetwork(plan, variables, mesh, checkpoint, step, selected_on)


def _chosen_step(checkpoint: str, saved: list[int], best: int | None, workdir: Path) -> int:
    """The step that `checkpoint` names. Raises UserError if there is no such checkpoint."""
    if checkpoint == "latest":
        return saved[-1]
    if checkpoint == "best":
        if best is None:
            raise UserError(f"no checkpoint in {workdir} was evaluated: use --checkpoint latest")
        return best
    if checkpoint not in map(str, saved):
        raise UserError(
            f"no checkpoint {checkpoint} in {workdir}: expected latest, best, or one of the steps "
            + ", ".join(map(str, saved))
        )
    return int(checkpoint)


def load_weights_file(path: Path | str, mesh: Mesh | None = None, plan: Plan | None = None) -> TrainedNetwork:
    """Load the network in a safetensors file that `jaxresnet.trained.weights.save_weights` wrote.

    Its arrays are put on every device of `mesh`, by default all devices of this process. Raises UserError if the file
    cannot be read, or its weights do not fit the network that its metadata describes.
    """
    mesh = mesh or local_mesh()
    plan, variables = load_weights(path, plan)
    return TrainedNetwork(
        plan, jax.device_put(variables, replicated(mesh)), mesh, Path(path).name, None, None
    )
