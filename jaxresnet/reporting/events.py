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
        from tensorboardX.event_file_writer import EventsWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._messages = _messages()
        begin = self._messages.SessionLog(status=self._messages.SessionLog.START)
        self._write(start + 1, session_log=begin)

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Write values under their names. The prefix of a split becomes a group: train_loss becomes train/loss."""
        from tensorboardX.summary import scalar

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
