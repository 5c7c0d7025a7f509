"""One run on several processes: one of them ends, is silent, or is not what the others expect."""

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from helpers import endings, processes, wait_for_line

from faults.reference import Finding, Reference, exit_code, one_line

MOST_SECONDS = 60
"""In which all processes must have ended after a fault: twice the shortest time that silence is allowed for."""
TIMEOUT = 20


def killed_processes(reference: Reference, place: Path) -> Iterator[Finding]:
    """Each of two processes is killed at a random moment of its training; then one process goes on."""
    chance = random.Random(0)
    for killed in (0, 1, 1, 0):
        workdir = place / f"processes{killed}{chance.randrange(10**6)}"
        command = ("train", "--config", reference.config, "--workdir", workdir)
        with processes(2, *command, timeout=TIMEOUT) as started:
            wait_for_line(started[0], "compiled")
            time.sleep(chance.uniform(0, reference.seconds / 2))
            started[killed].kill()
            began = time.monotonic()
            ended = endings(started, MOST_SECONDS)
            seconds = time.monotonic() - began
        (code, _, err), prefix = ended[1 - killed], "" if killed else "process 1: "
        problems = exit_code(code, 1) + one_line(err, f"{prefix}error: process {killed} of 2 was lost")
        code, out, err = reference.train(workdir)
        problems += exit_code(code, 0) + ([err[:300]] if err else []) + reference.problems(workdir)
        resumed = "resumed" if "resuming at step" in out else "began anew"
        yield Finding(
            f"process {killed} of 2 is killed",
            f"the other one ended {seconds:.0f} s later; one process {resumed}",
            problems,
        )


def silent_process(reference: Reference, place: Path) -> Iterator[Finding]:
    """A process is stopped, as if its computer were lost."""
    command = ("train", "--config", reference.config, "--workdir", place / "silent")
    with processes(2, *command, timeout=TIMEOUT) as started:
        wait_for_line(started[0], "epoch 1/")
        started[1].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        ((code, _, err),) = endings(started[:1], MOST_SECONDS)
        seconds = time.monotonic() - began
    problems = exit_code(code, 1) + one_line(err, "error: process 1 of 2 was lost")
    yield Finding("process 1 of 2 is silent", f"the other one ended {seconds:.0f} s later", problems)


def signalled_processes(reference: Reference, place: Path) -> Iterator[Finding]:
    """One process, or both one after the other, are asked to stop at a random moment."""
    chance = random.Random(1)
    for which in ([0], [1], [0, 1], [1, 0]):
        workdir = place / f"signalled{chance.randrange(10**6)}"
        command = ("train", "--config", reference.config, "--workdir", workdir)
        with processes(2, *command, timeout=TIMEOUT) as started:
            wait_for_line(started[0], "compiled")
            time.sleep(chance.uniform(0, reference.seconds / 2))
            for index in which:
                started[index].send_signal(signal.SIGTERM)
                time.sleep(
                    chance.uniform(0, 0.5)
                )  # the first may have told the other one, which may be saving
            (code, _, err), (other, _, others_err) = endings(started, MOST_SECONDS)
        problems = exit_code(code, 143) + exit_code(other, 143)
        if "interrupted: saved at step" not in err or others_err:
            problems.append(f"not told: {err[:300]!r} {others_err[:300]!r}")
        code, out, err = reference.train(workdir)
        problems += exit_code(code, 0) + ([err[:300]] if err else []) + reference.problems(workdir)
        if "resuming at step" not in out:
            problems.append("not resumed")
        named = " and ".join(map(str, which))
        yield Finding(
            f"SIGTERM to process {named} of 2", "both saved together; one process resumed", problems
        )


def wrong_numbers(reference: Reference, place: Path) -> Iterator[Finding]:
    """Processes that do not come, come twice, or have another number of them in mind."""
    command = ("train", "--config", reference.config, "--workdir", place / "numbers")
    came, sent = "error: waited", "error: process 0 has sent this process away"
    other = "error: expected the same in every process as in process 0: the number of processes"
    for fault, count, own, expected in (
        (
            "the coordinator cannot be reached",
            2,
            {1: ["--coordinator", "127.0.0.1:9"]},
            (came, came),
        ),
        (
            "two processes have the number 1",
            3,
            {2: ["--process-id", "1"]},
            (came, (came, sent), (came, sent)),
        ),
        (
            "a process expects another number of processes",
            2,
            {1: ["--processes", "3"]},
            ("ended: expected", other),
        ),
    ):
        with processes(count, *command, own=own, timeout=TIMEOUT) as started:
            began = time.monotonic()
            found = endings(started, MOST_SECONDS)
            seconds = time.monotonic() - began
        problems = []
        for (code, _, err), part in zip(found, expected, strict=True):
            parts = (part,) if isinstance(part, str) else part
            if code not in (1, 2) or len(err.splitlines()) != 1 or not any(each in err for each in parts):
                problems.append(f"exit code {code}, {err[:300]!r}")
        yield Finding(fault, f"a line from each after {seconds:.0f} s", problems)
