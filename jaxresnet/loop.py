"""A whole training run: `fit` reads as one line of named stages, each a function below it."""

import itertools
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh

from jaxresnet.batch import Batch
from jaxresnet.checkpoint import Checkpoints
from jaxresnet.config import Config
from jaxresnet.data import Split, import_tensorflow, load_splits, train_batches
from jaxresnet.errors import Interrupted, UserError
from jaxresnet.inference import EvalStep, evaluate, evaluation_record, jit_eval_step, state_template
from jaxresnet.metrics import Metrics
from jaxresnet.optimizer import make_schedule
from jaxresnet.progress import Reporter
from jaxresnet.runtime import (
    Background,
    StopSignal,
    check_batch_size,
    check_memory,
    describe_environment,
    peak_device_bytes,
    quiet_libraries,
    replicated,
    shard_batch,
    start_devices,
    telling_of_memory,
    use_compilation_cache,
)
from jaxresnet.step import TrainState, make_init, make_train_step
from jaxresnet.workdir import Workdir, write_json

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
CompiledSteps = tuple[TrainStep, EvalStep, float]

STEPS_IN_FLIGHT = 2
"""Steps handed to the device and not yet known to be done: one runs, one waits. More would only delay
signals and errors."""


def fit(config: Config, workdir: Path, device: str = "auto") -> dict[str, Any]:
    """Train as `config` says in the folder `workdir`, going on from its newest checkpoint if it has one.

    Returns the content of evaluation.json: the last step's evaluation on the test split. A run that is
    finished already is only reported. Raises UserError for what the user can mend, Interrupted after a
    SIGINT or SIGTERM has saved.
    """
    quiet_libraries()
    run = Workdir(workdir)
    run.check(config)
    evaluation = run.finished(config)
    if evaluation is None:
        with StopSignal() as stop:
            mesh = start_devices(device, config.cpu_devices)
            check_batch_size(config.batch_size, mesh.devices.size)
            use_compilation_cache()
            print(headline(config, mesh), flush=True)
            for note in schedule_notes(config, run.config()):
                print(note, flush=True)
            # Beside each other, because none of the three keeps two cores busy.
            steps = Background(lambda: compile_steps(config, mesh))
            Background(import_tensorflow)
            names = {"train", "test", config.evaluation.split}
            splits = stop.run(lambda: load_splits(config.data, names), "loading the data")
            with run.open(config), telling_of_memory(config.batch_size, mesh):
                evaluation = Session(config, run, mesh, splits, steps, stop).run_to_end()
    print(closing_lines(config, run, evaluation), flush=True)
    return evaluation


def headline(config: Config, mesh: Mesh) -> str:
    """The first line of a run: on what it computes, how, and how much."""
    devices = list(mesh.devices.flat)
    return (
        f"jaxresnet on {devices[0].platform}: {len(devices)} x {devices[0].device_kind}, {config.precision}; "
        f"{config.data.name}, {config.epochs} epochs of {config.train_examples:,} images, "
        f"{config.total_steps:,} steps of {config.batch_size}"
    )


def schedule_notes(config: Config, saved: Config | None) -> list[str]:
    """What may surprise about a cosine schedule: its end moved by resuming, or before the run's."""
    if config.optimizer.schedule == "constant":
        return []
    notes = []
    if saved is not None and saved.schedule_steps != config.schedule_steps:
        notes.append(
            f"note: the learning rate now falls to 0 at step {config.schedule_steps:,}, "
            f"no longer at {saved.schedule_steps:,}, because schedule_epochs = 0 follows --epochs"
        )
    if config.schedule_steps < config.total_steps:
        notes.append(f"note: the learning rate is 0 from step {config.schedule_steps:,} on (schedule_epochs)")
    return notes


def closing_lines(config: Config, run: Workdir, evaluation: dict[str, Any]) -> str:
    """The last lines of a run: its accuracies, each under its honest name."""
    lines = [f"last step {evaluation['step']:,}: test accuracy {evaluation['accuracy']:.2%}"]
    split = config.evaluation.split
    key = f"{split}_accuracy"
    evaluated = [record for record in run.metrics() if key in record]
    if evaluated:
        best = max(evaluated, key=lambda record: (record[key], record["epoch"]))  # the later one, as orbax
        note = " (chosen on the test set, so optimistic)" if split == "test" else ""
        lines.append(f"best epoch {best['epoch']}: {split} accuracy {best[key]:.2%}{note}")
    lines.append(f"evaluate with: python -m jaxresnet.evaluate --workdir {run.path}")
    lines.append(f"see it with: python -m jaxresnet.report --workdir {run.path}")
    return "\n".join(lines)


def first_epoch(config: Config, state: TrainState) -> int:
    """The epoch (0 is the first) that `state` is in.

    At an epoch's last step, the sums tell whether its evaluation is still to come: they start anew after it.
    """
    step = int(state.step)
    epoch = step * config.batch_size // config.train_examples
    while config.steps(epoch + 1) <= step:
        epoch += 1
    pending = state.metrics.count > 0 and config.steps(epoch) == step
    return epoch - 1 if pending else epoch


def device_batches(batches: Iterator[Batch], mesh: Mesh, ahead: int = 2) -> Iterator[Batch]:
    """The same batches on the devices, `ahead` of them under way while the one before is being used.

    The first ones are under way when this returns.
    """
    waiting = deque(shard_batch(mesh, batch) for batch in itertools.islice(batches, ahead))

    def stream() -> Iterator[Batch]:
        for batch in batches:
            waiting.append(shard_batch(mesh, batch))
            yield waiting.popleft()
        yield from waiting

    return stream()


def compile_steps(config: Config, mesh: Mesh) -> CompiledSteps:
    """The two steps of a run, each traced and compiled once, here, and the seconds that took.

    Nothing else of the loop is jitted but the initialisation.
    """
    began = time.monotonic()
    state = state_template(config, mesh)
    image = (config.batch_size, *config.dataset.image_shape)
    zeros = Batch(np.zeros(image, np.uint8), np.zeros(image[0], np.int32), np.ones(image[0], bool))
    batch = shard_batch(mesh, zeros)
    train_step = jax.jit(make_train_step(config), donate_argnums=0, out_shardings=replicated(mesh))
    compiled = train_step.lower(state, batch).compile()
    check_memory(config.batch_size, mesh, compiled)
    eval_step = jit_eval_step(config, mesh).lower(state.variables, state.metrics, batch).compile()
    return compiled, eval_step, round(time.monotonic() - began, 1)


@dataclass
class Session:
    """One process's part of a run, from its newest checkpoint to the end or an interruption."""

    config: Config
    run: Workdir
    mesh: Mesh
    splits: dict[str, Split]
    steps: Background[CompiledSteps]
    stop: StopSignal
    checkpoints: Checkpoints = field(init=False)
    reporter: Reporter = field(init=False)

    def run_to_end(self) -> dict[str, Any]:
        """Restore or start, train the epochs that are left, evaluate. Returns the final evaluation."""
        config = self.config
        began, command = time.monotonic(), ["python", *sys.orig_argv[1:]]
        self.run.add_environment(describe_environment(self.mesh, config.precision, command))
        with Checkpoints(self.run.checkpoints) as self.checkpoints:
            state = self.stop.run(self.restore_or_init, "preparing the network")
            start, pending = int(state.step), state.metrics.count > 0
            if start > config.total_steps:
                raise UserError(
                    f"epochs: the run is at step {start:,} already, expected more than {config.epochs} "
                    f"({config.total_steps:,} steps)",
                    2,
                )
            self.run.cut_metrics(start - 1 if pending else start)
            batches = self.stop.run(lambda: self.batches(start), "starting the input pipeline")
            train_step, eval_step, seconds = self.stop.wait(self.steps, "compiling")
            self.run.extend_environment(compile_seconds=seconds)
            print(f"compiled in {seconds} s", flush=True)
            last_evaluation = None
            with Reporter(self.run.tensorboard, config.epochs, config.total_steps, start) as self.reporter:
                for epoch in range(first_epoch(config, state), config.epochs):
                    state, timing = self.train_epoch(epoch, state, train_step, batches)
                    state, last_evaluation = self.close_epoch(epoch, state, timing, eval_step)
            self.checkpoints.wait()
            evaluation = self.evaluate_end(state, eval_step, last_evaluation)
        self.run.extend_environment(
            seconds=round(time.monotonic() - began, 1), peak_device_bytes=peak_device_bytes(self.mesh)
        )
        return evaluation

    def restore_or_init(self) -> TrainState:
        """The state of the newest intact checkpoint, else a new one."""
        template = state_template(self.config, self.mesh)
        state = self.checkpoints.restore_latest(template, report=lambda line: print(line, file=sys.stderr))
        if state is not None:
            print(f"resuming at step {int(state.step):,}", flush=True)
            return state
        # It runs once: unoptimised it compiles in a fraction of the time.
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        options = {"xla_backend_optimization_level": 0} if on_cpu else None
        init = jax.jit(make_init(self.config), out_shardings=replicated(self.mesh), compiler_options=options)
        return jax.block_until_ready(init())

    def batches(self, start: int) -> Iterator[Batch]:
        """The batches of the steps from `start` on."""
        return device_batches(train_batches(self.config, self.splits["train"], start), self.mesh)

    def train_epoch(
        self, epoch: int, state: TrainState, train_step: TrainStep, batches: Iterator[Batch]
    ) -> tuple[TrainState, dict[str, float]]:
        """Train to the epoch's end. Returns the state there and this process's clock values."""
        config = self.config
        first, end = int(state.step), config.steps(epoch + 1)
        began = saved = time.monotonic()
        in_flight: deque[Metrics] = deque()
        for step in range(first + 1, end + 1):
            state, metrics = train_step(state, next(batches))
            in_flight.append(metrics)
            if len(in_flight) > STEPS_IN_FLIGHT:
                metrics = jax.block_until_ready(in_flight.popleft())
                if self.reporter.due():
                    done = step - STEPS_IN_FLIGHT
                    self.report_step(epoch, done, metrics, done - first, time.monotonic() - began)
            if self.stop.number is not None:
                self.save_and_stop(epoch, state)
            minutes = config.checkpoint.every_minutes
            if minutes and time.monotonic() - saved > 60 * minutes:
                self.save(epoch, state)
                saved = time.monotonic()
        jax.block_until_ready(state)
        seconds = time.monotonic() - began
        images = (end - first) * config.batch_size
        rate = images / seconds if images else 0.0
        return state, {"seconds": round(seconds, 3), "images_per_second": round(rate, 1)}

    def report_step(self, epoch: int, step: int, metrics: Metrics, steps: int, seconds: float) -> None:
        """Show the epoch's metrics after `step`, the last of `steps` that took `seconds`."""
        metrics = jax.device_get(metrics)
        self.require_finite(epoch, metrics)
        seconds_left = (self.config.total_steps - step) * seconds / steps
        rate = steps * self.config.batch_size / seconds
        self.reporter.step(epoch + 1, step, metrics.loss, metrics.accuracy, rate, seconds_left)

    def close_epoch(
        self, epoch: int, state: TrainState, timing: dict[str, float], eval_step: EvalStep
    ) -> tuple[TrainState, Metrics | None]:
        """Evaluate, log and save a trained epoch.

        Returns the state with empty sums, and the evaluation if there was one. The line in metrics.jsonl
        is on disk before the checkpoint is: a crash in between leaves a line too many, which the next
        start cuts, never one too few.
        """
        config, number = self.config, epoch + 1
        train = jax.device_get(state.metrics)
        self.require_finite(epoch, train)
        step, last = int(state.step), number == config.epochs
        record = {
            "epoch": number,
            "step": step,
            "learning_rate": float(make_schedule(config)(step - 1)),
            "train_loss": train.loss,
            "train_accuracy": train.accuracy,
        }
        evaluation = None
        split = config.evaluation.split
        if split != "none" and (last or number % config.evaluation.every_epochs == 0):
            self.reporter.evaluating(number)
            evaluation = self.evaluate(state, eval_step, split)
            if evaluation is None:
                self.save_and_stop(epoch, state)
            record |= {f"{split}_loss": evaluation.loss, f"{split}_accuracy": evaluation.accuracy}
        self.run.append_metrics(record | timing)
        self.reporter.epoch(record | timing)
        empty = jax.device_put(Metrics.empty(len(config.dataset.class_names)), replicated(self.mesh))
        state = state.replace(metrics=empty)
        if last or number % config.checkpoint.every_epochs == 0:
            self.checkpoints.save(state, evaluation.accuracy if evaluation else None)
        return state, evaluation

    def evaluate(self, state: TrainState, eval_step: EvalStep, split: str) -> Metrics | None:
        """Sums over a split; None if a signal came."""
        metrics = evaluate(
            eval_step,
            state.variables,
            self.splits[split],
            self.config.batch_size,
            self.mesh,
            stop=lambda: self.stop.number is not None,
        )
        if metrics is not None and not math.isfinite(metrics.loss):
            raise self.not_finite(f"the loss on the {split} split after step {int(state.step):,}")
        return metrics

    def evaluate_end(
        self, state: TrainState, eval_step: EvalStep, last_evaluation: Metrics | None
    ) -> dict[str, Any]:
        """Write evaluation.json for the last step, from the last epoch's evaluation where that is the same."""
        metrics = last_evaluation if self.config.evaluation.split == "test" else None
        if metrics is None:
            metrics = self.evaluate(state, eval_step, "test")
        if metrics is None:
            raise Interrupted(
                "interrupted before the last evaluation: all steps are saved; run the same command again",
                self.stop.number,
            )
        record = evaluation_record(self.config, metrics, "latest", int(state.step), selected_on=None)
        write_json(self.run.evaluation_path("latest"), record)
        return record

    def save(self, epoch: int, state: TrainState) -> None:
        """Save in the middle of an epoch, unless the run has gone wrong."""
        self.require_finite(epoch, jax.device_get(state.metrics))
        self.checkpoints.save(state)

    def save_and_stop(self, epoch: int, state: TrainState) -> NoReturn:
        """Save and raise Interrupted."""
        self.save(epoch, state)
        self.checkpoints.wait()
        raise Interrupted(
            f"interrupted: saved at step {int(state.step):,} in {self.run.path}; "
            "run the same command again to resume",
            self.stop.number,
        )

    def require_finite(self, epoch: int, metrics: Metrics) -> None:
        """Raise UserError if a step of the epoch had a loss or gradient that was not finite."""
        if step := int(metrics.nonfinite_step):
            raise self.not_finite(f"the loss or its gradient at epoch {epoch + 1}, step {step:,}")

    def not_finite(self, what: str) -> UserError:
        """The error that ends a run which has gone wrong."""
        self.checkpoints.wait()
        steps = self.checkpoints.steps()
        kept = (
            f"the last good checkpoint is step {steps[-1]:,}" if steps else "no checkpoint was saved before"
        )
        rate = self.config.optimizer.learning_rate
        return UserError(
            f"{what} is not finite: expected a number; most likely optimizer.learning_rate {rate:g} is too high "
            f"for this run, so lower it in a new --workdir ({kept})"
        )
