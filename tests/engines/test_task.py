"""What a worker does for a run, without Ray: cores, signals, and what is left of it when it is killed."""

import _thread
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from unittest.mock import Mock

import pytest
from helpers import children_of

from jaxresnet.engines import cores, process, task
from jaxresnet.engines.cores import cores_for_a_run
from jaxresnet.engines.process import Ended, supervise, wait_until_free
from jaxresnet.engines.task import RunLost, train_here
from jaxresnet.errors import UserError
from jaxresnet.runs.files import lock_folder

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux binds to cores and to parents")


@linux
def test_runs_have_cores_of_their_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cores, "PLACE", f"\0test-{os.getpid()}-")  # a sweep may be running here
    allowed = os.sched_getaffinity(0)
    with ThreadPoolExecutor(1) as other:
        other.submit(int).result()  # the thread starts with all cores
        with cores_for_a_run(1) as held:
            assert len(os.sched_getaffinity(0)) == len(held) == 1

            def beside() -> set[int]:
                with cores_for_a_run(1):
                    return os.sched_getaffinity(0)

            if len(allowed) > 1:
                assert not os.sched_getaffinity(0) & other.submit(beside).result()
        assert os.sched_getaffinity(0) == allowed

        def all_beside() -> tuple[int, int]:
            with cores_for_a_run(len(allowed)) as own:
                return len(own), len(os.sched_getaffinity(0))

        with cores_for_a_run(1):  # one must be shared
            assert other.submit(all_beside).result() == (len(allowed) - 1, len(allowed))
    with cores_for_a_run(len(allowed) + 5):
        assert os.sched_getaffinity(0) == allowed


RUN = """
import signal, sys, time
assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL  # jaxresnet.train leaves it ignored if it is
signal.signal(signal.SIGHUP, lambda *_: (print("saved", flush=True), sys.exit(0)))
print("training", flush=True)
time.sleep(60)
"""
WORKER = """
import os, signal, subprocess, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
own, *command = [sys.executable, "-c", sys.argv[1]]
subprocess.run([sys.executable, "-m", "jaxresnet.engines.bound", str(os.getpid()), own, *command])
"""


@linux
def test_a_run_saves_when_its_worker_is_killed():
    worker = subprocess.Popen([sys.executable, "-c", WORKER, RUN], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "training\n"
    (run,) = children_of(worker.pid)
    worker.kill()
    assert worker.stdout.read() == "saved\n"  # and its end
    worker.wait()
    for _ in range(100):
        if not Path(f"/proc/{run}").exists():
            return
        time.sleep(0.05)
    pytest.fail("the run is still there")


@linux
def test_a_run_whose_worker_has_ended_already_does_not_begin():
    command = [
        sys.executable,
        "-m",
        "jaxresnet.engines.bound",
        "1",
        sys.executable,
        "-c",
        "print('training')",
    ]
    process = subprocess.run(command, capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (129, "")


def test_a_run_is_bound_to_its_sweep(monkeypatch: pytest.MonkeyPatch):
    popen = Mock(side_effect=FileNotFoundError)
    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(FileNotFoundError):
        supervise(["--workdir", "a"])
    here = [sys.executable, "-m", "jaxresnet.engines.bound", str(os.getpid()), sys.executable]
    assert popen.call_args.args == ([*here, "-m", "jaxresnet.train", "--workdir", "a"],)


STUB = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit('saved')); print(sys.argv[-1]); time.sleep(60)"


def test_a_stop_by_ray_which_sends_no_signal_reaches_the_run(tmp_path: Path):
    def stop() -> None:
        while not (tmp_path / "log").read_text():
            time.sleep(0.02)
        _thread.interrupt_main()  # as ray.cancel does

    with (tmp_path / "log").open("w") as log:
        thread = threading.Thread(target=stop)
        thread.start()
        ended = supervise(["last"], launcher=[sys.executable, "-uc", STUB], stdout=log, poll=0.05)
        thread.join()
    assert (ended.code, ended.said, ended.received) == (1, "saved", [signal.SIGINT])
    assert (tmp_path / "log").read_text() == "last\n"


@pytest.mark.parametrize(
    ("ended", "outcome"),
    [
        (Ended(0, "", []), (0, "")),
        (Ended(0, "", [signal.SIGTERM]), (0, "")),  # it was finished
        (Ended(1, "a note\nerror: the disk is full\n", []), (1, "error: the disk is full")),
        (Ended(2, "error: a wrong setting", []), (2, "error: a wrong setting")),
        (Ended(143, "interrupted: saved at step 3", [signal.SIGINT]), (143, "interrupted: saved at step 3")),
        (Ended(143, "interrupted: saved at step 3", []), None),  # somebody ended it
        (Ended(143, "interrupted: saved at step 3", [signal.SIGTERM]), None),  # its machine shuts down
        (Ended(137, "", []), None),
    ],
)
def test_only_a_run_that_was_ended_from_outside_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: Ended, outcome: tuple[int, str] | None
):
    def supervise(*_: Any, tell: Callable[[str], object], **__: Any) -> Ended:
        tell(ended.errors)
        return ended

    monkeypatch.setattr(task, "supervise", supervise)
    log = tmp_path / "seed0.log"
    log.write_text("before\n")
    arguments = ["--workdir", str(tmp_path / "seed0")]
    if outcome is None:
        with pytest.raises(RunLost, match=f"exit code {ended.code}"):
            train_here(arguments, 1, log)
    else:
        assert train_here(arguments, 1, log) == outcome
    assert log.read_text() == "before\n" + ended.errors


def test_a_run_that_waits_tells_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "seed0").mkdir()
    log = tmp_path / "seed0.log"
    log.touch()
    monkeypatch.setattr(task, "supervise", Mock(return_value=Ended(1, "error: in use\n", [])))
    monkeypatch.setattr(task, "wait_until_free", partial(wait_until_free, seconds=0.3))
    with lock_folder(tmp_path / "seed0"):
        assert train_here(["--workdir", str(tmp_path / "seed0")], 1, log) == (1, "error: in use")
    assert log.read_text().startswith(f"waiting up to 0.3 s for {tmp_path / 'seed0'}, in use by process ")


def test_a_machine_without_the_folder_trains_nothing(tmp_path: Path):
    code, said = train_here(["--workdir", str(tmp_path / "a")], 1, tmp_path / "a.log")
    assert code == 1
    assert said.endswith("expected a --workdir that all machines share")
    (tmp_path / "a.log").touch()
    code, said = train_here(["--workdir", str(tmp_path / "a")], 1, tmp_path / "a.log", tmp_path / "home")
    assert code == 1
    assert said.startswith(f"{tmp_path / 'home'}, to which init is relative, is not on ")


SPEAKING = """
import os, sys
print(os.getcwd(), file=sys.stderr, flush=True)
sys.stdin.read()
print("the end", file=sys.stderr)
"""


def test_what_a_run_says_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reading, writing = os.pipe()
    monkeypatch.setattr(sys, "stdin", reading)
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        if len(told) == 1:
            os.close(writing)  # only now does the run go on
        raise BrokenPipeError

    launcher = [sys.executable, "-c", f"import os; os.dup2({reading}, 0)\n{SPEAKING}"]
    ended = supervise([], launcher=launcher, pass_fds=[reading], tell=tell, folder=tmp_path)
    os.close(reading)
    assert told == [f"{tmp_path}\n", "the end\n"]
    assert ended == Ended(0, "".join(told), [])


def test_a_start_waits_for_a_run_that_still_saves(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with ThreadPoolExecutor(1) as other:
        with lock_folder(tmp_path):
            told = SimpleQueue[str]()

            def tell(line: str) -> None:
                told.put(line)
                raise BrokenPipeError

            waiting = other.submit(wait_until_free, tmp_path, tell=tell)
            began = time.monotonic()
            wait_until_free(tmp_path, 0.3)
            assert 0.3 <= time.monotonic() - began < 5
            assert not waiting.done()
            holder = f"process {os.getpid()} on {socket.gethostname()}"
            assert told.get(timeout=60) == f"waiting up to 100 s for {tmp_path}, in use by {holder}\n"
            assert capfd.readouterr().err == f"waiting up to 0.3 s for {tmp_path}, in use by {holder}\n"
        waiting.result(5)
    assert told.empty()  # once, however long it waits
    with lock_folder(tmp_path):  # it does not keep the lock
        pass
    wait_until_free(tmp_path)
    assert capfd.readouterr().err == ""  # where nothing holds it, there is nothing to tell


@pytest.mark.parametrize("problem", [UserError("no locks"), PermissionError()])
def test_a_start_does_not_wait_where_nothing_can_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
):
    lock = Mock(side_effect=problem)
    monkeypatch.setattr(process, "lock_folder", lock)
    wait_until_free(tmp_path)
    assert lock.call_count == 1
