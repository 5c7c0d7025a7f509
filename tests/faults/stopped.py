"""Runs that are stopped in other ways than by one signal to their process."""

import os
import pty
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from helpers import children_of, run_command, start_command, wait_for_line

from faults.reference import Finding, Reference, exit_code

PAUSES = (0.0, 0.02, 0.1)
"""Seconds between the signals to a sweep and to its run."""


def closed_terminal(reference: Reference, place: Path) -> Iterator[Finding]:
    """The terminal that a run writes to closes, which sends it SIGHUP and lets all further output fail."""
    workdir = place / "closed"
    command = [
        sys.executable,
        "-m",
        "jaxresnet.train",
        "--config",
        str(reference.config),
        "--workdir",
        str(workdir),
    ]
    process, terminal = pty.fork()
    if not process:
        os.execv(sys.executable, command)
    seen = b""
    while b"epoch 2/" not in seen:
        seen += os.read(terminal, 10_000)
    os.close(terminal)
    problems = exit_code(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), 129)
    yield Finding("a run's terminal closes", *resumed(reference, workdir, problems))


def sweep_and_run_terminated(reference: Reference, place: Path) -> Iterator[Finding]:
    """A sweep and its run get SIGTERM, as in a container that stops, one shortly after the other."""
    for pause in PAUSES:
        for first in ("sweep", "run"):
            folder = place / f"sweep_{first}{pause}"
            process = start_command("sweep", "--config", reference.config, "--workdir", folder)
            wait_for_line(process, "epoch 2/")
            pids = [process.pid, *children_of(process.pid)]
            for pid in pids if first == "sweep" else reversed(pids):
                os.kill(pid, signal.SIGTERM)
                time.sleep(pause)
            err = process.communicate()[1]
            problems = exit_code(process.returncode, 143)
            if "interrupted: saved at step" not in err:
                problems.append(f"nothing saved: {err[:300]}")
            code, out, _ = run_command("sweep", "--config", reference.config, "--workdir", folder)
            problems += exit_code(code, 0) + ([] if "resuming at step" in out else ["not resumed"])
            problems += reference.problems(folder / reference.config.stem / "seed0")
            yield Finding(
                f"a sweep and its run terminated, the {first} first, {pause} s apart",
                "saved; it resumes",
                problems,
            )


def resumed(reference: Reference, workdir: Path, problems: list[str]) -> tuple[str, list[str]]:
    """What happens when a run that was stopped is started again, and all problems."""
    code, out, err = reference.train(workdir)
    problems = problems + exit_code(code, 0) + ([err[:300]] if err else []) + reference.problems(workdir)
    if "resuming at step" not in out:
        problems.append("not resumed")
    return "saved; it resumes", problems
