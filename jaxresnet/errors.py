"""Errors that the user can fix, and how a command begins, reports them and ends."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


class UserError(Exception):
    """A failure that is reported in one line per problem: what was expected, what was found, what would fix it.

    `exit_code` is 2 if the command line or the configuration is wrong. It is 1 if a workdir, checkpoint or data set
    is missing or damaged, and if a run failed.
    """

    def __init__(self, message: str, exit_code: int = 1):
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(Exception):
    """A run stopped on a signal, after it saved what there was to save."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number  # the shell's convention: 129 SIGHUP, 130 SIGINT, 143 SIGTERM


def begin_command() -> None:
    """Prepare the process of a command. The first thing that a command does, before it imports anything else.

    Ctrl-C ends it at once and silently until a `StopSignal` takes over: a KeyboardInterrupt would be a traceback during
    an import, and would be lost in a callback of a library. A standard stream that was closed leads to nowhere;
    otherwise the next file that is opened would take its number, and messages would be written into that file.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # `use_huge_pages` blocked it
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(nowhere, True)
            if descriptor:
                setattr(sys, name, open(descriptor, "w", encoding="utf-8"))  # noqa: PTH123, SIM115


def run_command(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run `main(argv)` and exit: with 0 if it returns, else with the error's code and a line per problem on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")  # whatever a name or a path holds can be printed
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        tell("\n".join(f"error: {line}" for line in str(error).split("\n")))
        exit_now(error.exit_code)
    except Interrupted as stop:
        tell(str(stop))
        exit_now(stop.exit_code)
    except BrokenPipeError:
        # The reader of the output has gone, as in `... | head`. Exit silently, as if SIGPIPE had ended the program.
        exit_now(141)
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        tell(f"error: cannot read or write{place}: {error.strerror or error}")
        exit_now(1)
    sys.exit(0)


def tell(text: str) -> None:
    """Print lines on stderr, each with `printable`. Nothing is raised if nobody can read them."""
    with contextlib.suppress(OSError):
        print("\n".join(printable(line) for line in text.split("\n")), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    r"""The text in one line, with escapes for control characters, which would command a terminal.

    For whatever may come from a stranger's file.

    >>> print(printable("a name\x1b[2J\n"))
    a name\x1b[2J\n
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def exit_now(code: int) -> NoReturn:
    """Exit with `code` without waiting for threads, because a compilation in the background cannot be cancelled."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
