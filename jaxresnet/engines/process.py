"""One run of a sweep: whether it is finished, and its training in a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from jaxresnet.config.flags import to_arguments
from jaxresnet.config.schema import setting_values
from jaxresnet.errors import Interrupted, UserError, printable
from jaxresnet.machine.signals import INSISTING, stop_signals
from jaxresnet.plan import Plan
from jaxresnet.runs.files import FolderInUseError, lock_folder
from jaxresnet.runs.workdir import Workdir

LOCK_SECONDS = 100.0
"""How long a start waits for a folder in use: a run whose worker or sweep was killed is still saving. A file server
(NFS 4) frees the locks of a lost machine after 90 seconds."""

FREE_POLL_SECONDS = 0.2
"""Seconds until a folder that is free again is noticed."""


def checked(path: Path, plan: Plan) -> Workdir:
    """The folder of a run of `plan`. Raises UserError if it holds another run, or something else."""
    folder = Workdir(path)
    folder.facts(plan.config)  # the run itself compares the facts of its data
    return folder


def standing(path: Path, plan: Plan) -> tuple[bool, str]:
    """Whether the run of `plan` in `path` is finished, and what is wrong with its folder, "" if nothing is."""
    try:
        return checked(path, plan).finished(plan.config.epochs) is not None, ""
    except (UserError, OSError) as error:  # of this run alone: the others go on
        return False, printable(str(error))


def run_arguments(path: Path, plan: Plan, device: str) -> list[str]:
    """The arguments with which jaxresnet.train trains the run of `plan` in `path`; the path is the second one."""
    # All settings as flags: the file may have changed since it was read.
    return ["--workdir", str(path), "--device", device, *to_arguments(setting_values(plan.config))]


def problem_of(code: int, said: str) -> str:
    """Why a run failed that ended with the exit code `code` and the last line `said`; "" if it did not fail.

    A process that was killed, perhaps because the memory was full, has not said why.
    """
    if code > 128:
        return f"exit code {code}" + (f"; its last line: {said}" if said else "")
    return (said.removeprefix("error: ") or f"exit code {code}") if code else ""


@dataclass(frozen=True)
class Ended:
    """How a training process ended: its exit code, as a shell gives it, and what it wrote on stderr.

    `received` are the numbers of the signals that came meanwhile.
    """

    code: int
    errors: str
    received: Sequence[int]

    @property
    def said(self) -> str:
        """The last line on stderr, "" if there is none."""
        return (self.errors.strip().splitlines() or [""])[-1]


def _to_stderr(line: str) -> None:
    print(line, end="", file=sys.stderr, flush=True)


def supervise(
    arguments: Sequence[str],
    *,
    launcher: Sequence[str] | None = None,
    stdout: IO[str] | None = None,
    pass_fds: Sequence[int] = (),
    poll: float | None = None,
    tell: Callable[[str], object] = _to_stderr,
    folder: Path | None = None,
) -> Ended:
    """Run jaxresnet.train with `arguments` in its own process, to its end.

    The `stop_signals` are passed on to it as SIGTERM, so that it can save before it stops. `launcher` is the beginning
    of a command that runs the rest of its arguments as a command, by default `jaxresnet.engines.bound`, so that a run
    saves and stops, too, if this process is killed. `stdout` and `pass_fds` are as for subprocess. With `poll`, this
    thread looks for signals every so many seconds, because Ray only pretends to send one. `tell` gets each line that
    the process writes on stderr, at once. `folder` is its current folder, by default that of this process.
    """
    received: list[int] = []
    process: subprocess.Popen[str] | None = None

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if process and (number in INSISTING or not received):
            process.terminate()
        received.append(number)

    bound = [sys.executable, "-m", "jaxresnet.engines.bound", str(os.getpid())]
    start = [*(bound if launcher is None else launcher), sys.executable, "-m", "jaxresnet.train", *arguments]
    previous = {number: signal.signal(number, pass_on) for number in stop_signals()}
    try:
        process = subprocess.Popen(
            start,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,  # so that the terminal does not send it a second Ctrl-C
            pass_fds=pass_fds,
            cwd=folder,
        )
        if received:  # before the process existed
            process.terminate()
        errors = _errors_of(process, poll, tell)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return Ended(_shell_code(process.returncode), errors, received)


def _errors_of(process: "subprocess.Popen[str]", poll: float | None, tell: Callable[[str], object]) -> str:
    """Wait for the process, and `tell` each line that it writes on stderr. Returns them all."""
    stderr, lines = process.stderr, list[str]()
    assert stderr is not None

    def listen() -> None:
        for line in stderr:
            lines.append(line)
            # If nobody reads it, the process must not wait for that.
            with contextlib.suppress(OSError, ValueError):
                tell(line)

    listening = threading.Thread(target=listen)
    listening.start()
    while listening.is_alive():
        listening.join(poll)
    process.wait()
    stderr.close()
    return "".join(lines)


def wait_until_free(
    workdir: Path, seconds: float = LOCK_SECONDS, tell: Callable[[str], object] = _to_stderr
) -> None:
    """Wait until no process trains in a folder, for at most `seconds`. Then jaxresnet.train will tell who does.

    `tell` gets a line if it has to wait.
    """
    until, told = time.monotonic() + seconds, False
    while workdir.is_dir() and time.monotonic() < until:
        try:
            with lock_folder(workdir):
                return
        except FolderInUseError as error:
            if not told:
                told = True
                with contextlib.suppress(OSError, ValueError):  # if nobody reads it, it waits all the same
                    tell(
                        printable(f"waiting up to {seconds:g} s for {workdir}, in use by {error.holder}")
                        + "\n"
                    )
            time.sleep(FREE_POLL_SECONDS)
        except (UserError, OSError):  # what is wrong with the folder, the run itself tells
            return


def _shell_code(code: int) -> int:
    return code if code >= 0 else 128 - code


def train(arguments: Sequence[str]) -> tuple[int, str]:
    """Run jaxresnet.train in its own process. Returns its exit code, as a shell gives it, and its last line on stderr.

    Raises Interrupted after one of the `stop_signals`, or if the run was stopped by one that was sent to it alone.
    """
    wait_until_free(Path(arguments[1]))
    ended = supervise(arguments)
    said = ended.said
    if stopped := ended.received or [number for number in stop_signals() if ended.code == 128 + number]:
        said = said or (f"exit code {ended.code}" if ended.code else "this run is finished")
        raise Interrupted(f"the sweep stopped in {arguments[1]}: {said}", stopped[0])
    return ended.code, said
