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
from jaxresnet.machine.signals import Background, Stop, StopSignal, stop_signals

SIGNALS = """
import hashlib, os, signal, sys, threading, time
from jaxresnet.machine import signals

def send(*names):
    for name in names:
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(0.05)

if sys.argv[1] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
with signals.StopSignal("stopping") as stop:
    if sys.argv[1] == "nohup":
        send("SIGHUP")
        print(stop.requested)
    send(*sys.argv[2:])
    for _ in range(100):  # a thread hears it, which may have to wait for a core
        stop.requested or time.sleep(0.05)
    print(stop.number, flush=True)
    signals.REPEAT_SECONDS = 0.0
    send("SIGHUP")
    print("a terminal that closes is no demand", flush=True)
    if sys.argv[1] == "busy":  # the main thread is in a library, and runs none of its own code
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM]).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    send("SIGTERM")
    time.sleep(5)
    print("not reached", flush=True)
"""


@pytest.mark.parametrize(
    ("case", "sent", "noted"),
    [
        ("plain", ["SIGINT"], "2\n"),
        ("plain", ["SIGHUP"], "1\n"),
        # A supervisor's second one, to the group of the process, is not a second demand.
        ("busy", ["SIGTERM", "SIGTERM", "SIGINT"], "15\n"),
        ("nohup", ["SIGINT"], "False\n2\n"),
    ],
)
def test_the_first_signal_is_noted_and_a_later_one_ends_the_process(case: str, sent: list[str], noted: str):
    process = subprocess.run(
        [sys.executable, "-c", SIGNALS, case, *sent], capture_output=True, text=True, check=False, timeout=15
    )
    assert process.stdout == f"{noted}a terminal that closes is no demand\n"
    assert process.stderr == "stopping\n"
    assert process.returncode == 128 + signal.SIGTERM


AFTER_ANOTHER = """
import os, signal, time
from jaxresnet.machine.signals import StopSignal
with StopSignal("stopping") as stop:
    stop.number = signal.SIGINT  # as another process of the run wishes it
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)
    print(stop.number)
"""


def test_the_first_signal_after_a_stop_by_another_process_is_no_demand():
    process = subprocess.run(
        [sys.executable, "-c", AFTER_ANOTHER], capture_output=True, text=True, timeout=15
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "2\n", "")


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in stop_signals()]
    with StopSignal() as stop:
        assert all(new != old for new, old in zip(map(signal.getsignal, stop_signals()), before, strict=True))
        assert stop.number is None
        assert not stop.requested
    assert [signal.getsignal(number) for number in stop_signals()] == before
    assert signal.set_wakeup_fd(-1) == -1


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
