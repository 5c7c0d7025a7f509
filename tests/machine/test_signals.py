"""Being asked to stop, and work that a stop does not wait for."""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import NoReturn

import pytest

from jaxresnet.errors import Interrupted, UserError
from jaxresnet.machine.signals import Background, Stop, StopSignal


def test_the_first_signal_is_noted_and_the_second_ends_the_process():
    code = (
        "import os, signal\n"
        "from jaxresnet.machine.signals import StopSignal\n"
        "with StopSignal() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('noted', stop.number, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('not reached', flush=True)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.stdout == "noted 2\n"
    assert process.returncode == -signal.SIGTERM


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert signal.getsignal(signal.SIGTERM) != before
        assert stop.number is None
        assert not stop.requested
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_thread_that_may_set_no_handlers_sets_none():
    before = signal.getsignal(signal.SIGTERM)

    def enter() -> bool:
        with StopSignal() as stop:
            return signal.getsignal(signal.SIGTERM) == before and not stop.requested

    assert Background(enter).result()


def test_a_stop_of_ones_own_touches_no_handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stop = Stop()
    assert stop.run(lambda: 7, "counting") == 7
    stop.number = signal.SIGINT
    assert stop.requested
    assert stop.interrupted("enough").exit_code == 130
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_signal_is_heard_while_a_library_is_busy():
    release = threading.Event()
    with StopSignal() as stop:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        began = time.monotonic()
        with pytest.raises(Interrupted, match="interrupted while compiling: nothing new to save") as caught:
            stop.run(lambda: release.wait(30), "compiling")
        assert time.monotonic() - began < 5
    release.set()
    assert caught.value.exit_code == 143


def fail() -> NoReturn:
    raise UserError("told")


def test_results_and_errors_come_through_the_thread():
    with StopSignal() as stop:
        assert stop.run(lambda: 7, "counting") == 7
        with pytest.raises(UserError, match="told"):
            stop.run(fail, "failing")


def test_a_background_task_is_awaited_and_a_signal_leaves_it():
    release = threading.Event()
    task = Background(lambda: release.wait(30))
    assert not task.done(0.01)
    with StopSignal() as stop:
        stop.number = signal.SIGINT
        with pytest.raises(Interrupted, match="interrupted while waiting"):
            stop.wait(task, "waiting")
    release.set()
    assert task.result() is True
    assert task.done(0)
