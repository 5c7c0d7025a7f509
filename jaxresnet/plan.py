"""A configuration together with its data set: what follows from both, and every check that needs both."""

import math
from dataclasses import dataclass
from pathlib import Path

from jaxresnet.config.files import load_config, naming
from jaxresnet.config.schema import LARGEST_IMAGE, Config
from jaxresnet.data.info import DatasetInfo
from jaxresnet.data.resolution import Phase, Size, phases_of, problems_of
from jaxresnet.data.sources import SOURCES, open_source
from jaxresnet.errors import UserError

MAX_STEPS = 2**31 - 1
"""The step counter is an int32."""


@dataclass(frozen=True)
class Plan:
    """A configuration and the facts of its data set, checked to fit together. `resolve` makes it.

    Batch k holds the positions [k B, (k+1) B) of the examples of all epochs, one epoch after the other; B is the batch
    size. So an epoch can end in the middle of a batch.
    """

    config: Config
    info: DatasetInfo

    @property
    def train_examples(self) -> int:
        """Number of training examples without the hold-out."""
        return self.info.train_examples - self.config.data.validation_examples

    def end_step(self, epochs: int) -> int:
        """Number of steps in the first `epochs` epochs: floor(epochs * examples / batch size)."""
        return epochs * self.train_examples // self.config.batch_size

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole run."""
        return self.end_step(self.config.epochs)

    @property
    def schedule_steps(self) -> int:
        """Number of steps until the learning-rate schedule ends, its warm-up included."""
        return self.end_step(self.config.optimizer.schedule_epochs or self.config.epochs)

    @property
    def warmup_steps(self) -> int:
        """Number of steps in which the learning rate rises, fewer than `schedule_steps`."""
        return int(self.config.optimizer.warmup * self.schedule_steps)

    @property
    def phases(self) -> list[Phase]:
        """The phases of the run, one for each size of its images; the last one is at the data's own size."""
        return phases_of(self.config.resolution, self.total_steps, self.info.image_shape[:2])

    def size_at(self, step: int) -> Size:
        """The size of the images after `step` steps, in the batch of the next one; at the end, that of the last."""
        return next((phase.size for phase in self.phases if step < phase.end), self.phases[-1].size)

    def pixels(self, start: int, end: int) -> int:
        """Pixels that the steps from `start` to before `end` take, of one example in each: what the work grows with."""
        within = [
            (max(start, phase.start), min(end, phase.end), math.prod(phase.size)) for phase in self.phases
        ]
        return sum(max(0, last - first) * area for first, last, area in within)

    def with_config(self, config: Config) -> "Plan":
        """The plan of another configuration on the same data set. Raises what `resolve` raises."""
        return resolve(config, self.info)


def resolve(config: Config, info: DatasetInfo) -> Plan:
    """The plan of `config` on the data set that `info` describes.

    Raises UserError (exit code 2) if the two do not fit: one line per problem.
    """
    plan = Plan(config, info)
    if problems := _problems(plan):
        raise UserError("\n".join(problems), 2)
    return plan


def load_plan(path: Path, directory: str = "") -> Plan:
    """The plan of a TOML file of settings and of the data set that it names, which is in `directory` if that is given.

    The data is read if its facts are not known in advance. Raises UserError (exit code 2) as `load_config`,
    `open_source` and `resolve` do.
    """
    config = load_config(path)
    data = config.replace({"data.dir": directory or config.data.dir}).data
    with naming(path):
        return resolve(config, open_source(data).info)


def _problems(plan: Plan) -> list[str]:
    config, info = plan.config, plan.info
    size, total_stride = min(info.image_shape[:2]), math.prod(config.model.stage_strides)
    problems = []
    if config.freeze_stages and not config.init:
        problems.append(
            f"freeze_stages: needs init, the network to take the weights from, found {config.freeze_stages} without it"
        )
    if config.freeze_stages > (stages := len(config.model.stage_blocks)):
        problems.append(
            f"freeze_stages: expected at most the {stages} stages of the network, found {config.freeze_stages}"
        )
    if sides := [side for side in info.image_shape[:2] if side % total_stride]:
        fitting = -(-size // total_stride) * total_stride
        possible = info.name not in SOURCES and fitting <= LARGEST_IMAGE
        hint = f"; data.image_size {fitting} would fit" if possible else ""
        problems.append(
            f"model.stage_strides: expected a product that divides the image size {sides[0]}, "
            f"found {total_stride}{hint}"
        )
    problems += problems_of(config.resolution, info.image_shape[:2], total_stride)
    if config.augment.crop_padding >= size:
        problems.append(
            f"augment.crop_padding: expected less than the image size {size}, "
            f"found {config.augment.crop_padding}"
        )
    if config.augment.cutout > size:
        problems.append(
            f"augment.cutout: expected at most the image size {size}, found {config.augment.cutout}"
        )
    held_out, batch_size = config.data.validation_examples, config.batch_size
    if held_out >= info.train_examples:
        problems.append(
            f"data.validation_examples: expected fewer than the {info.train_examples} training "
            f"examples of {info.name}, found {held_out}"
        )
    elif batch_size > plan.train_examples:
        problems.append(
            f"batch_size: expected at most the {plan.train_examples} training examples, found {batch_size}"
        )
    elif plan.total_steps > MAX_STEPS:
        most = MAX_STEPS * batch_size // plan.train_examples
        problems.append(f"epochs: expected at most {most} (2^31 - 1 steps), found {config.epochs}")
    return problems
