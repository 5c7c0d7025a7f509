"""The part of a run that one process does: train, evaluate, log and save, epoch by epoch, to the end or a stop."""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

import jax
from jax.sharding import Mesh

from jaxresnet.data.batches import Batch
from jaxresnet.data.resolution import size_text
from jaxresnet.data.splits import Split
from jaxresnet.errors import UserError
from jaxresnet.learning.learner import Learner
from jaxresnet.learning.metrics import Metrics
from jaxresnet.learning.optimizer import learning_rate, make_rates
from jaxresnet.learning.state import TrainState
from jaxresnet.learning.step import EvalStep
from jaxresnet.machine.devices import replicate
from jaxresnet.machine.hosts.peers import SAVE, Peers
from jaxresnet.machine.signals import Stop
from jaxresnet.programs import TrainPrograms
from jaxresnet.reporting.progress import Reporter
from jaxresnet.runs.checkpoint import Checkpoints
from jaxresnet.runs.records import EpochRecord, EvaluationRecord, best_epoch, write_evaluation
from jaxresnet.runs.workdir import Workdir
from jaxresnet.trained.evaluation import evaluate, evaluation_record

STEPS_IN_FLIGHT = 2
"""Steps that the device has been given and that are not known to be done: one runs, one waits. More would only delay
the reaction to signals and errors."""


class CompiledSteps(NamedTuple):
    """The two steps of a run, compiled for its batch size, and the `seconds` that it took to compile them.

    `train` is compiled for the first size of images, and later for others.
    """

    train: TrainPrograms
    evaluate: EvalStep
    seconds: float


class Evaluated(NamedTuple):
    """The sums over a split: of the weights, and of their average if the run keeps one."""

    weights: Metrics
    average: Metrics | None = None

    def values(self, split: str) -> dict[str, float]:
        """Losses and accuracies, as the fields of an EpochRecord."""
        sums = {split: self.weights} | ({f"{split}_average": self.average} if self.average else {})
        losses = {f"{name}_loss": metrics.loss for name, metrics in sums.items()}
        return losses | {f"{name}_accuracy": metrics.accuracy for name, metrics in sums.items()}


@dataclass(frozen=True)
class Saving:
    """Saves a run's checkpoints, and ends it early: after a request to stop, or when a number is not finite."""

    learner: Learner
    folder: Workdir
    checkpoints: Checkpoints
    stop: Stop
    peers: Peers = field(default_factory=Peers)

    def asked(self, to_save: bool = False) -> int:
        """What all processes do now: go on (0), save (SAVE: process 0 wishes it), or stop with this exit code."""
        wish = SAVE if to_save and self.peers.first else 0
        agreed = self.peers.agreed(128 + self.stop.number if self.stop.number else wish)
        if agreed > SAVE:
            self.stop.number = agreed - 128
        return agreed

    def save(self, epoch: int, state: TrainState) -> None:
        """Save in the middle of an epoch. Raises UserError instead if a loss or gradient was not finite."""
        self.require_finite(epoch, jax.device_get(state.metrics))
        self.folder.require_in_place()
        self.checkpoints.save(state)

    def save_and_stop(self, epoch: int, state: TrainState) -> NoReturn:
        """Save, wait for it, and raise Interrupted. Raises UserError if a loss or gradient was not finite."""
        self.save(epoch, state)
        self.checkpoints.wait()
        self.peers.barrier()
        raise self.stop.interrupted(
            f"interrupted: saved at step {int(state.step):,} in {self.folder.path}; "
            "run the same command again to resume"
        )

    def is_best(self, record: EpochRecord) -> bool:
        """Whether an epoch, whose record is written, was evaluated and is the best one so far."""
        split = self.learner.plan.config.evaluation.split
        if split == "none" or record.accuracy(split) is None:
            return False
        best = best_epoch(self.folder.epochs.read(), split)
        return best is not None and best.epoch == record.epoch

    def require_finite(self, epoch: int, metrics: Metrics) -> None:
        """Raise UserError if a step of the epoch had a loss or gradient that was not finite."""
        if step := int(metrics.nonfinite_step):
            raise self.not_finite(f"the loss or its gradient at epoch {epoch + 1}, step {step:,}")

    def not_finite(self, what: str) -> UserError:
        """The error that ends a run because `what` is not finite. It names the last good checkpoint."""
        if not self.peers.first:
            self.peers.barrier()  # until process 0, where it is the same, has said more and left
        self.checkpoints.wait()
        saved = self.checkpoints.saved_steps()
        kept = (
            f"the last good checkpoint is step {saved[-1]:,}" if saved else "no checkpoint was saved before"
        )
        settings = self.learner.plan.config.optimizer
        cause = f"learning_rate {settings.learning_rate:g}"
        if settings.weight_decay > max(settings.learning_rate, 2 / settings.learning_rate):
            cause = f"weight_decay {settings.weight_decay:g}"  # each step makes the weights larger
        return UserError(
            f"{what} is not finite: expected a number; most likely optimizer.{cause} is too high for this run, "
            f"so lower it in a new --workdir ({kept})"
        )


@dataclass(frozen=True)
class Session:
    """The part of a run that one process does, epoch by epoch."""

    learner: Learner
    mesh: Mesh
    splits: dict[str, Split]
    compiled: CompiledSteps
    saving: Saving
    reporter: Reporter

    def run_epoch(
        self, epoch: int, state: TrainState, batches: Iterator[Batch]
    ) -> tuple[TrainState, Evaluated | None]:
        """Train, evaluate, log and save an epoch (0 is the first). Returns the state and the evaluation or None.

        The line in metrics.jsonl is on disk before the checkpoint is. A crash in between leaves one line too many,
        which the next start removes. It never leaves one too few.
        """
        plan, config = self.learner.plan, self.learner.plan.config
        state, seconds, images_per_second = self.train(epoch, state, batches)
        train = jax.device_get(state.metrics)
        self.saving.require_finite(epoch, train)
        evaluated = self.evaluate_epoch(epoch, state)
        record = EpochRecord(
            epoch=epoch + 1,
            step=int(state.step),
            learning_rate=float(learning_rate(plan, make_rates(plan), int(state.step) - 1)),
            train_loss=train.loss,
            train_accuracy=train.accuracy,
            seconds=seconds,
            images_per_second=images_per_second,
            **(evaluated.values(config.evaluation.split) if evaluated else {}),
        )
        self.saving.folder.require_in_place()
        self.saving.folder.epochs.append(record)
        self.reporter.epoch(record)
        empty = replicate(self.mesh, Metrics.empty(self.learner.plan.info.classes))
        state = state.replace(metrics=empty)
        due = epoch + 1 == config.epochs or (epoch + 1) % config.checkpoint.every_epochs == 0
        if due or self.saving.is_best(record):
            self.saving.checkpoints.save(state, evaluated.weights.accuracy if evaluated else None)
        return state, evaluated

    def train(
        self, epoch: int, state: TrainState, batches: Iterator[Batch]
    ) -> tuple[TrainState, float, float | None]:
        """Train to the end of the epoch.

        Returns the state there, the seconds this process took for its part of the epoch, and its images per second,
        None if no step was left.
        """
        plan, config, first = self.learner.plan, self.learner.plan.config, int(state.step)
        end, phases = plan.end_step(epoch + 1), plan.phases
        self.compiled.train.begin(phase.size for phase in phases if phase.end > first)
        began = noted = time.monotonic()
        in_flight: deque[Metrics] = deque()
        for step in range(first + 1, end + 1):
            batch = next(batches)
            if any(phase.start == step - 1 for phase in phases[1:]):
                self.reporter.message(
                    f"from step {step:,} on, images have {size_text(plan.size_at(step - 1))}"
                )
            waited = wait_for_program(self, epoch, state, batch, noted)
            began, noted = began + waited, noted + waited
            state, metrics = self.compiled.train(state, batch)
            in_flight.append(metrics)
            if len(in_flight) > STEPS_IN_FLIGHT:
                metrics = jax.block_until_ready(in_flight.popleft())
                if self.saving.peers.first and self.reporter.due():
                    self.report(epoch, first, step - STEPS_IN_FLIGHT, metrics, time.monotonic() - began)
            minutes, elapsed = config.checkpoint.every_minutes, time.monotonic() - noted
            if asked := self.saving.asked(to_save=bool(minutes) and elapsed > 60 * minutes):
                self.saving.folder.starts.add_train_seconds(elapsed)
                if asked > SAVE:
                    self.saving.save_and_stop(epoch, state)
                self.saving.save(epoch, state)
                noted = time.monotonic()
        jax.block_until_ready(state)
        self.saving.folder.starts.add_train_seconds(time.monotonic() - noted)
        seconds, images = time.monotonic() - began, (end - first) * config.batch_size
        return state, round(seconds, 3), round(images / seconds, 1) if images else None

    def report(self, epoch: int, first: int, step: int, metrics: Metrics, seconds: float) -> None:
        """Show the epoch's metrics after `step`; this process has trained for `seconds` since the step `first`.

        Raises UserError if a loss or gradient was not finite.
        """
        metrics, plan = jax.device_get(metrics), self.learner.plan
        self.saving.require_finite(epoch, metrics)
        rate = plan.config.batch_size * (step - first) / seconds
        # A step's time grows with the pixels of its images.
        left = seconds * plan.pixels(step, plan.total_steps) / plan.pixels(first, step)
        self.reporter.step(epoch + 1, step, metrics.loss, metrics.accuracy, rate, left)

    def evaluate_epoch(self, epoch: int, state: TrainState) -> Evaluated | None:
        """Evaluate after an epoch if that is due. Returns the sums, or None."""
        config, number = self.learner.plan.config, epoch + 1
        split = config.evaluation.split
        if split == "none" or not (number == config.epochs or number % config.evaluation.every_epochs == 0):
            return None
        self.reporter.evaluating(number)
        return self.evaluate(state, split, lambda: self.saving.save_and_stop(epoch, state))

    def evaluate(self, state: TrainState, split: str, stopped: Callable[[], NoReturn]) -> Evaluated:
        """Sums over a split. Calls `stopped` if the run is asked to stop meanwhile.

        Raises UserError if a loss is not finite.
        """
        batch_size = self.learner.plan.config.batch_size
        found = []
        for variables in (state.variables, state.average):
            if variables is None:
                continue
            metrics = evaluate(
                self.compiled.evaluate,
                variables,
                self.splits[split],
                batch_size,
                self.mesh,
                stop=lambda: self.saving.asked() > SAVE,
            )
            if metrics is None:
                stopped()
            if not math.isfinite(metrics.loss):
                raise self.saving.not_finite(f"the loss on the {split} split after step {int(state.step):,}")
            found.append(metrics)
        return Evaluated(*found)


def wait_for_program(session: Session, epoch: int, state: TrainState, batch: Batch, noted: float) -> float:
    """Wait until the program for the next `batch` after `state` is compiled. Returns the seconds that this took.

    On a request to stop meanwhile, saves and stops; the time of training is recorded up to the moment `noted`.
    """
    size, began, train = batch.image.shape[1:3], time.monotonic(), session.compiled.train
    if train.ready(size):
        return 0.0
    session.reporter.message(f"waiting for the step on {size_text(size)} to be compiled")
    if session.saving.peers.count > 1:  # other processes may not wait here, and a stop needs all of them
        train.of(size)
    while not train.ready(size, 0.05):
        if session.saving.stop.requested:
            session.saving.folder.starts.add_train_seconds(began - noted)
            session.saving.save_and_stop(epoch, state)
    return time.monotonic() - began


def evaluate_end(session: Session, state: TrainState, last: Evaluated | None) -> EvaluationRecord:
    """Evaluate the last step on the test split, and write evaluation.json. Returns its content.

    If the last epoch was evaluated on the test split, that evaluation, `last`, is used. That of the average, if there
    is one, goes into a file of its own.
    """

    def stopped() -> NoReturn:
        raise session.saving.stop.interrupted(
            "interrupted before the last evaluation: all steps are saved; run the same command again"
        )

    plan, folder = session.learner.plan, session.saving.folder
    evaluated = last if plan.config.evaluation.split == "test" else None
    evaluated = evaluated or session.evaluate(state, "test", stopped)
    record = evaluation_record(plan, evaluated.weights, "latest", int(state.step), selected_on=None)
    if not session.saving.peers.first:
        return record
    folder.require_in_place()
    if evaluated.average:
        of_average = evaluation_record(plan, evaluated.average, "latest", int(state.step), selected_on=None)
        of_average = dataclasses.replace(of_average, average=True)
        write_evaluation(folder.evaluation_path("latest", average=True), of_average)
    write_evaluation(folder.evaluation_path("latest"), record)
    return record
