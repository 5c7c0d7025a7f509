"""How a command begins, what it says of an error, and how it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from jaxresnet import errors
from jaxresnet.errors import Interrupted, UserError, run_command


class Exit(BaseException):
    """In place of the process's end."""


def fail(*_: Any) -> None:
    raise OSError(5, "Input/output error")


def exit_code(main: Callable[[Sequence[str]], None], monkeypatch: pytest.MonkeyPatch) -> int:
    def exit_now(code: int) -> None:
        raise Exit(code)

    monkeypatch.setattr(errors, "exit_now", exit_now)
    with pytest.raises(Exit) as caught:
        run_command(main)
    return caught.value.args[0]


def raising(error: Exception) -> Callable[[Sequence[str]], None]:
    def main(_: Sequence[str]) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("a: wrong\nb: wrong", 2), 2, "error: a: wrong\nerror: b: wrong\n"),
        (UserError("no \x1b[2J\x9b\r ü"), 1, "error: no \\x1b[2J\\x9b\\r ü\n"),
        (Interrupted("saved", signal.SIGHUP), 129, "saved\n"),
        (
            FileNotFoundError(2, "No such file", "a\x07"),
            1,
            "error: cannot read or write a\\x07: No such file\n",
        ),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_told_and_has_its_exit_code(
    error: Exception,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    assert exit_code(raising(error), monkeypatch) == code
    assert capsys.readouterr().err == said
    # Also where nobody can read it: the terminal has closed.
    monkeypatch.setattr(sys.stderr, "write", fail)
    assert exit_code(raising(error), monkeypatch) == code


STREAMS = """
import errno, os, sys
from jaxresnet.errors import begin_command, run_command
begin_command()
def main(argv):
    print("a ± b \\udcff")
    print("told", file=sys.stderr)
    lowest = os.open(os.devnull, os.O_RDONLY)
    if lowest < 3:
        os._exit(9)
run_command(main)
"""


@pytest.mark.parametrize("closed", ["", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_and_a_narrow_encoding_stop_nothing(closed: str):
    process = subprocess.run(
        ["bash", "-c", f'"$@" {closed}', "bash", sys.executable, "-c", STREAMS],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0
    assert process.stdout == ("" if " >&-" in f" {closed}" else "a \\xb1 b \\udcff\n")
    assert process.stderr == ("" if "2>&-" in closed else "told\n")


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "report", "sweep", "summary"])
def test_ctrl_c_ends_a_command_silently_while_it_imports(command: str):
    """Each import is told on stderr."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", f"jaxresnet.{command}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert any("pydantic" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert out == ""
    assert all(line.startswith("import time:") for line in err.splitlines())
