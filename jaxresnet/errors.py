"""Errors that are the user's to mend, and how a command reports them."""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


class UserError(Exception):
    """A failure told in one line: what was expected, what was found, and what would fix it.

    `exit_code` is 2 for what the command line and the configuration alone decide, 1 for a missing
    workdir, checkpoint or data set and for a run that failed.
    """

    def __init__(self, message: str, exit_code: int = 1):
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(Exception):
    """A run that stopped on a signal, after saving what there was to save."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number  # the shell's convention: 130 SIGINT, 143 SIGTERM


def run_command(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run `main(argv)` and exit: 0 when it returns, else with one line on stderr per error and its code."""
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        exit_now(error.exit_code)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        exit_now(stop.exit_code)
    except BrokenPipeError:
        # Who read the output has gone, as in `... | head`: silent, like a program that SIGPIPE ends.
        exit_now(141)
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        print(f"error: cannot read or write{place}: {error.strerror or error}", file=sys.stderr)
        exit_now(1)
    except KeyboardInterrupt:
        exit_now(130)
    sys.exit(0)


def exit_now(code: int) -> NoReturn:
    """Exit without waiting for threads: a compilation in the background cannot be cancelled."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
