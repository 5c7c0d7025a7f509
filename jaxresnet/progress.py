"""What a run shows: a live bar or plain lines on the console, and TensorBoard events."""

import contextlib
import datetime
import re
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

PLAIN_SECONDS = 30.0
"""Seconds between lines where the output is no terminal."""

_SPLIT_PREFIX = re.compile("^(train|validation|test)_")

LIVE_SECONDS = 0.5
"""Seconds between updates of the bar."""


class Events:
    """TensorBoard events of one run, in `folder`; those of a past that did not happen, after step `start`, are void.

    Not by tensorboardX.SummaryWriter, whose thread dies of a full disk, with a traceback, and then blocks the run.
    Raises OSError.
    """

    def __init__(self, folder: Path, start: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._writer.write_event(
            Event(wall_time=time.time(), step=start + 1, session_log=SessionLog(status=SessionLog.START))
        )

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Write values under their names, a split's prefix as a group: train_loss becomes train/loss."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in scalars.items():
            summary = scalar(_SPLIT_PREFIX.sub(r"\1/", name), value)
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Close the file; everything is written already."""
        with contextlib.suppress(OSError):  # `add` has raised it
            self._writer.close()


class Reporter:
    """Shows the progress of one run, and writes its TensorBoard events to `tensorboard`.

    A context manager. `steps` is the run's length, `start` the step it goes on from.
    """

    def __init__(self, tensorboard: Path, epochs: int, steps: int, start: int):
        self._epochs, self._steps = epochs, steps
        self._events = Events(tensorboard, start)
        console = Console(file=sys.stdout, highlight=False)
        self._bar = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
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
        if self._bar:
            self._bar.stop()
        self._events.close()

    def message(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar:
            self._bar.console.print(text, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def due(self) -> bool:
        """Whether `step` is to be called: figures cost a look at the device."""
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
        """Show the epoch's running loss and accuracy (0 to 1) after `step` steps."""
        self._due = time.monotonic() + self._interval
        left = datetime.timedelta(seconds=round(seconds_left))
        figures = f"loss {loss:.4f}  accuracy {accuracy:.2%}  {images_per_second:,.0f} images/s  {left} left"
        if self._bar:
            self._bar.update(
                self._task,
                completed=step,
                description=f"epoch {epoch}/{self._epochs}  step {step:,}/{self._steps:,}",
                figures=figures,
            )
        else:
            self.message(f"epoch {epoch}/{self._epochs}  step {step:,}/{self._steps:,}  {figures}")

    def evaluating(self, epoch: int) -> None:
        """Show that an evaluation is under way."""
        if self._bar:
            self._bar.update(self._task, description=f"epoch {epoch}/{self._epochs}  evaluating")

    def epoch(self, record: dict[str, Any]) -> None:
        """Show a finished epoch's line of metrics.jsonl and write it as events."""
        parts = [f"epoch {record['epoch']}/{self._epochs}"]
        for split in ("train", "validation", "test"):
            if f"{split}_loss" in record:
                loss, accuracy = record[f"{split}_loss"], record[f"{split}_accuracy"]
                parts.append(f"{split} loss {loss:.4f} accuracy {accuracy:.2%}")
        parts.append(f"rate {record['learning_rate']:.4g}")
        parts.append(f"{record['images_per_second']:,.0f} images/s")
        self.message("  ".join(parts))
        scalars = {key: value for key, value in record.items() if key not in ("epoch", "step")}
        self._events.add(record["step"], scalars)
        self._due = time.monotonic() + self._interval
