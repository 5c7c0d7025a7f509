"""What a run prints on the console: its first and last lines, and a live bar or plain lines between them."""

import contextlib
import datetime
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from jaxresnet.config.schema import Config
from jaxresnet.data.resolution import size_text
from jaxresnet.machine.signals import Stop
from jaxresnet.plan import Plan
from jaxresnet.reporting.events import Events
from jaxresnet.runs.records import SPLITS, EpochRecord, EvaluationRecord, best_epoch

if TYPE_CHECKING:
    from jax.sharding import Mesh

PLAIN_SECONDS = 30.0
"""Seconds between lines if the output is not a terminal."""

LIVE_SECONDS = 0.5
"""Seconds between updates of the bar."""


WIDE_COLUMNS = 72
"""Columns of a terminal from which on there is room for a bar and the step beside the figures."""


def short_time(seconds: float) -> str:
    """A time in its two largest units.

    >>> short_time(42), short_time(3725), short_time(203_000)
    ('42 s', '1 h 2 min', '2 d 8 h')
    """
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86_400
    if minutes < 1:
        return f"{seconds:.0f} s"
    if hours < 1:
        return f"{int(minutes)} min {int(seconds % 60)} s"
    if days < 1:
        return f"{int(hours)} h {int(minutes % 60)} min"
    return f"{int(days)} d {int(hours % 24)} h"


class Reporter:
    """Shows the progress of one run, and writes its TensorBoard events to `tensorboard`, unless that is None.

    A context manager. `epochs` and `steps` are the run's length, and `start` is the step that it goes on from. Raises
    OSError if the events cannot be written, or the output: not after a request by `stop`, because a run that stops must
    save, also if its terminal has closed or the reader of its output has gone.
    """

    def __init__(self, tensorboard: Path | None, epochs: int, steps: int, start: int, stop: Stop):
        self._epochs, self._steps, self._stop = epochs, steps, stop
        self._events = Events(tensorboard, start) if tensorboard else None
        console = Console(file=sys.stdout, highlight=False)
        # Not to the last column: the terminal would show the ^C of a Ctrl-C in the next line, and rich erase that one.
        console.width -= 3
        self._wide = console.width >= WIDE_COLUMNS
        self._bar = None
        if console.is_terminal:
            bar = [BarColumn(bar_width=None)] if self._wide else []
            self._bar = Progress(
                TextColumn("{task.description}"),
                *bar,
                TextColumn("{task.fields[figures]}"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=steps, completed=start, figures="")
        self._interval = LIVE_SECONDS if self._bar else PLAIN_SECONDS
        self._due = time.monotonic() + self._interval

    def __enter__(self) -> "Reporter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._output():
            if self._bar:
                self._bar.stop()
        if self._events:
            self._events.close()

    @contextlib.contextmanager
    def _output(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            if not self._stop.requested:
                raise

    def message(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        with self._output():
            if self._bar:
                self._bar.console.print(text, markup=False, soft_wrap=True)
            else:
                print(text, flush=True)

    def due(self) -> bool:
        """Whether it is time to call `step`. Not at every step, because reading metrics from the device takes time."""
        return time.monotonic() >= self._due

    def step(
        self,
        epoch: int,
        step: int,
        loss: float,
        accuracy: float,
        images_per_second: float,
        seconds_left: float,
    ) -> None:
        """Show the epoch's loss and accuracy (0 to 1) so far, after `step` steps of the run. `epoch` counts from 1."""
        self._due = time.monotonic() + self._interval
        where = f"epoch {epoch}/{self._epochs}"
        if self._bar:
            figures = f"loss {loss:.3f}  {accuracy:.1%}  {images_per_second:,.0f}/s  {short_time(seconds_left)} left"
            description = f"{where}  step {step:,}" if self._wide else where
            self._bar.update(self._task, completed=step, description=description, figures=figures)
        else:
            left = datetime.timedelta(seconds=round(seconds_left))
            figures = (
                f"loss {loss:.4f}  accuracy {accuracy:.2%}  {images_per_second:,.0f} images/s  {left} left"
            )
            self.message(f"{where}  step {step:,}/{self._steps:,}  {figures}")

    def evaluating(self, epoch: int) -> None:
        """Show that the evaluation after `epoch` is in progress."""
        if self._bar:
            self._bar.update(self._task, description=f"epoch {epoch}/{self._epochs}  evaluating")

    def epoch(self, record: EpochRecord) -> None:
        """Show the record of a finished epoch, and write it as events."""
        self.message(epoch_line(record, self._epochs))
        scalars = {key: value for key, value in record.as_json().items() if key not in ("epoch", "step")}
        if self._events:
            self._events.add(record.step, scalars)
        self._due = time.monotonic() + self._interval


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """The line that tells of a finished epoch of `epochs`."""
    parts = [f"epoch {record.epoch}/{epochs}"]
    for split in SPLITS:
        if (loss := record.loss(split)) is not None:
            parts.append(f"{split} loss {loss:.4f} accuracy {record.accuracy(split):.2%}")
        if split != "train" and (average := record.accuracy(f"{split}_average")) is not None:
            parts.append(f"of the average {average:.2%}")
    parts.append(f"rate {record.learning_rate:.4g}")
    if record.images_per_second is not None:
        parts.append(f"{record.images_per_second:,.0f} images/s")
    return "  ".join(parts)


def headline(plan: Plan, mesh: "Mesh") -> str:
    """The first line of a run: its devices, precision, data and number of steps."""
    config, devices = plan.config, list(mesh.devices.flat)
    processes = len({device.process_index for device in devices})
    several = f" in {processes} processes" if processes > 1 else ""
    return (
        f"jaxresnet on {devices[0].platform}: {len(devices)} x {devices[0].device_kind}{several}, {config.precision}; "
        f"{plan.info.name}, {config.epochs} epochs of {plan.train_examples:,} images, "
        f"{plan.total_steps:,} steps of {config.batch_size}"
    )


def size_notes(plan: Plan, saved: Config | None) -> list[str]:
    """The sizes of the training images and the steps after which they change, if they do.

    `saved` is as for `schedule_notes`. If it had other steps, a note says so.
    """
    ends = {phase.end: size_text(phase.size) for phase in plan.phases}
    if len(ends) == 1:
        return []
    *parts, last = [f"{size} to step {end:,}" for end, size in ends.items()]
    notes = [f"training images: {', '.join(parts)}, then {last}"]
    before = [phase.end for phase in Plan(saved, plan.info).phases] if saved else [*ends]
    if before[:-1] != [*ends][:-1]:
        were = " and ".join(f"{end:,}" for end in before[:-1]) or "none"
        notes.append(f"note: the steps at which their size changes follow --epochs; they were: {were}")
    return notes


def schedule_notes(plan: Plan, saved: Config | None) -> list[str]:
    """Notes for the user if a schedule that falls now ends at another step than before, or ends before the run.

    Also if the warm-up does not end before the run. `saved` is the configuration that the run has had so far, or None
    if it has not begun.
    """
    config, notes = plan.config, []
    if plan.warmup_steps >= plan.total_steps:
        notes.append(
            f"note: the learning rate rises to step {plan.warmup_steps:,}, to the end of the run or beyond: "
            "optimizer.warmup is a share of schedule_epochs"
        )
    if config.optimizer.schedule == "constant":
        return notes
    before = Plan(saved, plan.info).schedule_steps if saved else plan.schedule_steps
    if before != plan.schedule_steps:
        notes.append(
            f"note: the learning rate now falls to 0 at step {plan.schedule_steps:,}, "
            f"no longer at {before:,}, because schedule_epochs = 0 follows --epochs"
        )
    if plan.schedule_steps < plan.total_steps:
        notes.append(f"note: the learning rate is 0 from step {plan.schedule_steps:,} on (schedule_epochs)")
    return notes


def closing_lines(
    plan: Plan, workdir: Path, records: Sequence[EpochRecord], evaluation: EvaluationRecord
) -> str:
    """The last lines of a run: its accuracies, each with how it was chosen, and the commands to look at it."""
    lines = [f"last step {evaluation.step:,}: test accuracy {evaluation.accuracy:.2%}"]
    split = plan.config.evaluation.split
    best = best_epoch(records, split) if split != "none" else None
    if best:
        note = " (chosen on the test set, so optimistic)" if split == "test" else ""
        lines.append(f"best epoch {best.epoch}: {split} accuracy {best.accuracy(split):.2%}{note}")
    for doing, command in (("evaluate", "evaluate"), ("see it", "report")):
        arguments = ["python", "-m", f"jaxresnet.{command}", str(workdir)]
        lines.append(f"{doing} with: {shlex.join(arguments)}")
    return "\n".join(lines)
