"""Requests to stop a run, and work in threads that a stopping run does not wait for."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

from jaxresnet.errors import Interrupted, tell

T = TypeVar("T")

INSISTING = (signal.SIGINT, signal.SIGTERM)
"""The signals of which a second one ends a run at once. A terminal that closes hangs up without such a demand."""

REPEAT_SECONDS = 1.0
"""A signal so soon after the first one is the same request. Supervisors send one twice: to a process and to its group
(`timeout`), or to a sweep, which passes it on, and to its run."""


def stop_signals() -> list[int]:
    """The signals that ask a command to stop: SIGINT, SIGTERM, and SIGHUP where it is not ignored, as by nohup."""
    numbers: list[int] = [*INSISTING]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # not on Windows
        numbers.append(signal.SIGHUP)
    return numbers


class Background(Generic[T]):
    """A function that runs in a thread, from the construction on. The process can end while it still runs."""

    def __init__(self, function: Callable[[], T]):
        self._function = function
        self._outcome: list[tuple[bool, Any]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome.append((True, self._function()))
        except BaseException as error:
            self._outcome.append((False, error))

    def done(self, seconds: float | None = None) -> bool:
        """Whether the function has returned or raised. Waits for that, for at most `seconds` if they are given."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> T:
        """Wait for the function. Returns what it returned, or raises what it raised."""
        self._thread.join()
        succeeded, value = self._outcome[0]
        if not succeeded:
            raise value
        return value


class Stop:
    """Whether a run is asked to stop. Set `number`, which is None at first, to a signal's number to ask for it."""

    def __init__(self) -> None:
        self.number: int | None = None

    @property
    def requested(self) -> bool:
        """Whether the run is asked to stop."""
        return self.number is not None

    def interrupted(self, message: str) -> Interrupted:
        """The exception with which a run ends that was asked to stop."""
        return Interrupted(message, self.number or signal.SIGTERM)

    def run(self, function: Callable[[], T], doing: str) -> T:
        """Run `function` in a thread, so that a request to stop is noticed also while a library computes for minutes.

        Returns what it returns, or raises what it raises. On a request to stop, raises Interrupted and does not wait
        for the thread. `doing` says in the message what the run was doing.
        """
        return self.wait(Background(function), doing)

    def wait(self, task: Background[T], doing: str) -> T:
        """Wait for `task`. Returns, raises and reacts to a request to stop as `run` does."""
        while not task.done(0.05):
            if self.requested:
                raise self.interrupted(
                    f"interrupted while {doing}: nothing new to save; run the same command again to go on"
                )
        return task.result()


class StopSignal(Stop):
    """A stop that the first of the `stop_signals` requests. A later SIGINT or SIGTERM ends the process at once.

    A context manager, for commands only: it replaces the process's signal handlers, and restores them at its end.
    `notice` is printed on stderr at the first signal, because the step and the save that follow may take a while.
    A thread hears the signals, since the main one may be in a library's computation for long.
    """

    def __init__(self, notice: str = "") -> None:
        super().__init__()
        self._notice = notice
        self._previous: dict[int, Any] = {}
        self._since: float | None = None  # when the first signal came to this process itself

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            self._wakeup, heard = socket.socketpair()
            self._wakeup.setblocking(False)
            signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
            for number in stop_signals():
                self._previous[number] = signal.signal(number, lambda *_: None)
            threading.Thread(target=self._listen, args=[heard], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(-1)
            self._wakeup.close()

    def _listen(self, heard: socket.socket) -> None:
        """Note the signals, which Python writes to the socket as bytes, until its other end is closed."""
        with heard:
            while numbers := heard.recv(16):
                for number in numbers:
                    if number in self._previous:
                        self._note(number)

    def _note(self, number: int) -> None:
        if self._since is None:
            self._since = time.monotonic()
            if not self.requested:  # by another process of the run
                self.number = number
                if self._notice:
                    tell(self._notice)
        elif number in INSISTING and time.monotonic() - self._since > REPEAT_SECONDS:
            with contextlib.suppress(OSError, ValueError):
                if os.isatty(terminal := sys.stdout.fileno()):
                    os.write(terminal, b"\x1b[?25h\n")  # the live bar has hidden the cursor
            os._exit(128 + number)
