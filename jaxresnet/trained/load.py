"""Loading a trained network, from the folder of its run or from a weights file."""

import functools
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxresnet.config.schema import Config
from jaxresnet.data.info import DatasetInfo
from jaxresnet.errors import UserError
from jaxresnet.learning.learner import make_learner
from jaxresnet.learning.state import Variables, state_template
from jaxresnet.learning.step import Predict, make_predict
from jaxresnet.machine.devices import local_mesh, replicated
from jaxresnet.network.resnet import build_model
from jaxresnet.plan import Plan
from jaxresnet.runs.checkpoint import Checkpoints
from jaxresnet.runs.integrity import DamagedCheckpointError
from jaxresnet.runs.workdir import Workdir
from jaxresnet.trained.weights import load_weights, require_usable


@dataclass(frozen=True)
class TrainedNetwork:
    """The weights of a network with the plan of its training, ready to predict.

    `checkpoint` is "latest", "best", the number of a step or the name of a file. `step` is None for weights from a
    file. `selected_on` names the split that served to choose the checkpoint among others; None for all but the best.
    """

    plan: Plan
    variables: Variables
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

    @functools.cached_property
    def predict(self) -> Predict:
        """The function (variables, uint8 images [B, H, W, C]) -> float32 logits [B, classes].

        It is pure and not jitted. It raises TypeError for another dtype, and ValueError for images of another shape.
        """
        return make_predict(build_model(self.plan), self.info)


def load_run(
    workdir: Path | str, checkpoint: str = "latest", mesh: Mesh | None = None, *, average: bool = False
) -> TrainedNetwork:
    """Load a checkpoint from the folder of a training run: "latest", "best" or the number of a step.

    With `average`, the weights are the average that the run keeps (`optimizer.ema_decay`). The arrays are put on every
    device of `mesh`, by default all devices of this process. The folder is only read. Raises UserError if the run or
    the checkpoint does not exist or is damaged, or the run keeps no average.
    """
    mesh = mesh or local_mesh()
    folder = Workdir(workdir)
    plan = folder.require_plan()
    if average and not plan.config.optimizer.ema_decay:
        raise UserError(f"the run in {workdir} keeps no average of its weights: optimizer.ema_decay is 0")
    missing = UserError(f"no checkpoint in {workdir} yet: it appears after the run's first epoch")
    if not folder.checkpoints.is_dir():
        raise missing
    template = state_template(make_learner(plan), replicated(mesh)).variables
    with Checkpoints(folder.checkpoints, folder.identity(plan.config), read_only=True) as checkpoints:
        saved = checkpoints.saved_steps()
        if not saved:
            raise missing
        step = _chosen_step(checkpoint, saved, checkpoints.best_step(), folder.path)
        try:
            variables = checkpoints.restore_variables(step, template, average=average)
        except DamagedCheckpointError as error:
            others = ", ".join(str(other) for other in saved if other != step) or "none"
            raise UserError(f"{error}; other checkpoints to evaluate: {others}") from None
    require_usable(variables, f"checkpoint {step} in {folder.checkpoints}: ")
    selected_on = plan.config.evaluation.split if checkpoint == "best" else None
    return TrainedNetwork(plan, variables, checkpoint, step, selected_on)


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
    plan, variables = load_weights(path, plan)
    variables = jax.device_put(variables, replicated(mesh or local_mesh()))
    return TrainedNetwork(plan, variables, Path(path).name, None, None)
