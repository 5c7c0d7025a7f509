"""Requests to stop a run, and work in threads that a stopping run does not wait for."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Generic, Self, TypeVar

from jaxresnet.errors import Interrupted

T = TypeVar("T")


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

    def done(self, seconds: float) -> bool:
        """Whether the function has returned or raised. Waits for that for at most `seconds`."""
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
    """A stop that the first SIGINT or SIGTERM requests. A second signal ends the process at once.

    A context manager, for commands only: it replaces the process's signal handlers, and restores them at its end.
    `notice` is printed on stderr at the first signal, because the step and the save that follow may take a while.
    """

    def __init__(self, notice: str = "") -> None:
        super().__init__()
        self._notice = notice
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.number = number
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)
        if self._notice:
            with contextlib.suppress(
                OSError, RuntimeError
            ):  # nobody reads stderr, or this came while it was printed to
                print(self._notice, file=sys.stderr, flush=True)
