"""TensorBoard events of a run."""

import contextlib
import re
import time
from pathlib import Path
from typing import Any

_SPLIT_PREFIX = re.compile("^(train|validation|test)_")


def _messages() -> Any:
    """tensorboardX's messages. They are generated code, which a type checker cannot read."""
    from tensorboardX.proto import event_pb2

    return event_pb2


class Events:
    """TensorBoard events of one run, written to `folder`. Raises OSError if they cannot be written.

    `start` is the step that this process goes on from. A process that was killed may have written events after it, so
    TensorBoard is told to leave those out. tensorboardX.SummaryWriter is not used: on a full disk its thread ends with
    a traceback, and the run then waits for it forever.
    """

    def __init__(self, folder: Path, start: int):
        self._folder, self._messages = folder, _messages()
        self._begin(start)

    def _begin(self, start: int) -> None:
        """Begin a new file. By itself, tensorboardX would overwrite one that was begun in the same second."""
        from tensorboardX.event_file_writer import EventsWriter

        self._folder.mkdir(exist_ok=True)
        unique = f".{time.time_ns()}"
        self._writer = EventsWriter(str(self._folder / "events"), unique)
        (self._file,) = self._folder.glob(f"*{unique}")
        begin = self._messages.SessionLog(status=self._messages.SessionLog.START)
        self._write(start + 1, session_log=begin)

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Write values under their names. The prefix of a split becomes a group: train_loss becomes train/loss.

        If somebody has removed the file meanwhile, these and the later values go to a new one.
        """
        from tensorboardX.summary import scalar

        if not self._file.exists():
            self.close()
            self._begin(step - 1)
        for name, value in scalars.items():
            summary = scalar(_SPLIT_PREFIX.sub(r"\1/", name), value)
            self._write(step, summary=summary)
        self._writer.flush()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._messages.Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        """Close the file. `add` has already written everything."""
        with contextlib.suppress(OSError):  # `add` has raised it before
            self._writer.close()
