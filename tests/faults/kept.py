"""Checkpoints that are to be replaced, hold a link, are missing or are another's: none is lost, none is mistaken."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from helpers import ROOT, run_command

from faults.reference import Finding, Reference, checkpoint_steps, exit_code, newest_checkpoint, one_line

HIT = """
import os, runpy, shutil, signal, sys
sys.path[:0] = [{root!r}]
import orbax.checkpoint as ocp
from jaxresnet import session

def hit(number, owner, name):
    original = getattr(owner, name)
    def method(*args, **kwargs):
        os.kill(os.getpid(), number)
        return original(*args, **kwargs)
    setattr(owner, name, method)

{hits}
runpy.run_module("jaxresnet.train", run_name="__main__")
"""

STOP = 'hit(signal.SIGTERM, session.Session, "evaluate")'
KILLS = {
    "before the new one is begun": 'hit(signal.SIGKILL, ocp.CheckpointManager, "save")',
    "while the new one is written": 'hit(signal.SIGKILL, ocp.CheckpointManager, "_finalize")',
    "while the old one is removed": 'hit(signal.SIGKILL, shutil, "rmtree")',
}


def train_hit(reference: Reference, workdir: Path, hits: str, limit: str = "unlimited") -> tuple[int, str]:
    """Train, with that code before, and no file larger than `limit` KiB. Returns exit code and stderr."""
    code = HIT.format(root=str(ROOT), hits=hits)
    shell = f'ulimit -f {limit}; exec "$@"'
    command = [sys.executable, "-c", code, "--config", str(reference.config), "--workdir", str(workdir)]
    process = subprocess.run(
        ["bash", "-c", shell, "bash", *command], capture_output=True, text=True, check=False
    )
    return process.returncode, process.stderr


def replaced_checkpoint(reference: Reference, place: Path) -> Iterator[Finding]:
    """A run stopped in its first evaluation has one checkpoint, which the next start replaces."""
    stopped = place / "stopped"
    code, _ = train_hit(reference, stopped, STOP)
    (step,) = checkpoint_steps(stopped)[-1:]
    problems = exit_code(code, 143)
    for other in checkpoint_steps(stopped)[:-1]:
        shutil.rmtree(stopped / "checkpoints" / str(other))
    for moment, hits in KILLS.items():
        workdir = shutil.copytree(stopped, place / moment.replace(" ", "_"))
        code, _ = train_hit(reference, workdir, hits)
        yield goes_on(reference, workdir, f"kill -9 {moment}", problems + exit_code(code, -9))
    workdir = shutil.copytree(stopped, place / "no_space_to_replace")
    code, err = train_hit(reference, workdir, "", limit="4")
    told = one_line(err, f"earlier checkpoints are intact (steps: {step})")
    yield goes_on(reference, workdir, "no space for the new one", problems + told + exit_code(code, 1))


def goes_on(reference: Reference, workdir: Path, fault: str, problems: list[str]) -> Finding:
    """What the next start makes of a run whose only checkpoint was being replaced."""
    code, out, err = reference.train(workdir)
    problems = problems + exit_code(code, 0) + reference.problems(workdir) + ([err[:300]] if err else [])
    resumed = [line for line in out.splitlines() if line.startswith("resuming")]
    if not resumed:
        problems.append("it began anew")
    return Finding(f"the only checkpoint is replaced: {fault}", (*resumed, "from the start")[0], problems)


def linked(path: Path) -> Callable[[], object]:
    """Put a link in a file's place. Returns what puts the file back."""
    kept = path.rename(path.with_name("kept"))
    path.symlink_to(path.name)
    return lambda: kept.replace(path)


def removed(path: Path) -> Callable[[], object]:
    """Move a file or folder out of the run's folder. Returns what puts it back."""
    away = path.parent.with_name(f"{path.parent.name}_{path.name}")
    path.rename(away)
    return lambda: away.rename(path)


def exchanged(one: Path, other: Path) -> Callable[[], object]:
    """Exchange two folders. Returns what exchanges them again."""
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    return lambda: exchanged(one, other)


def edited(path: Path, old: str, new: str) -> Callable[[], object]:
    """Change a text file. Returns what changes it back."""
    path.write_text(path.read_text().replace(old, new))
    return lambda: edited(path, new, old)


def kept_checkpoint(reference: Reference, place: Path) -> Iterator[Finding]:
    """What is not damage is refused in one line by train and evaluate; put right, the run goes on as if nothing was."""
    another = place / "of_another_seed"
    reference.train(another, "--seed", "1")
    for fault, (told, make) in refused_faults(another).items():
        workdir = shutil.copytree(reference.workdir, place / fault.replace(" ", "_").replace("/", ""))
        (workdir / "evaluation.json").unlink()
        mend = make(workdir)
        before = sorted(workdir.rglob("*"))
        code, _, err = run_command("train", "--workdir", workdir)
        problems = one_line(err, told) + exit_code(code, 1)
        if not fault.endswith("there"):
            code, _, err = run_command("evaluate", "--workdir", workdir)
            problems += one_line(err, told) + exit_code(code, 1)
        if sorted(workdir.rglob("*")) != before:
            problems.append("the folder is changed")
        mend()
        code, _, err = reference.train(workdir)
        problems += exit_code(code, 0) + reference.problems(workdir) + ([err[:300]] if err else [])
        yield Finding(fault, "one line of error; put right, it goes on", problems)


def refused_faults(another: Path) -> dict[str, tuple[str, Callable[[Path], Callable[[], object]]]]:
    """By fault, what the error says, and what causes it in a run's folder; `another` is a run with another seed."""
    return {
        "a link in place of a checkpoint's file": (
            "expected a file, found a link",
            lambda run: linked(newest_checkpoint(run) / "weights" / "manifest.ocdbt"),
        ),
        "two checkpoints' folders exchanged": (
            "was saved at step",
            lambda run: exchanged(*sorted((run / "checkpoints").iterdir(), key=lambda each: each.name)[-2:]),
        ),
        "another seed's checkpoint": (
            "seed was 1, config.toml says 0",
            lambda run: exchanged(newest_checkpoint(run), newest_checkpoint(another)),
        ),
        "the learning rate in config.toml edited": (
            "optimizer.learning_rate was 0.05, config.toml says 0.5",
            lambda run: edited(run / "config.toml", "learning_rate = 0.05", "learning_rate = 0.5"),
        ),
        "checkpoints/ is not there": ("is missing", lambda run: removed(run / "checkpoints")),
        "metrics.jsonl is not there": (
            "found none for 1, 2, 3, 4",
            lambda run: removed(run / "metrics.jsonl"),
        ),
    }
