"""Errors that the user can fix, and how a command reports them."""

import contextlib
import os
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
        self.exit_code = 128 + signal_number  # the shell's convention: 130 SIGINT, 143 SIGTERM


def run_command(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run `main(argv)` and exit: with 0 if it returns, else with the error's code and a line per problem on stderr."""
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
        # The reader of the output has gone, as in `... | head`. Exit silently, as if SIGPIPE had ended the program.
        exit_now(141)
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        print(f"error: cannot read or write{place}: {error.strerror or error}", file=sys.stderr)
        exit_now(1)
    except KeyboardInterrupt:
        exit_now(130)
    sys.exit(0)


def exit_now(code: int) -> NoReturn:
    """Exit with `code` without waiting for threads, because a compilation in the background cannot be cancelled."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
