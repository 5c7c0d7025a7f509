"""Staged faults around a run: its folder, the compilation cache, memory, settings, other machines, a long time."""

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from helpers import run_command, signal_command, start_command, wait_for_line

from faults.reference import Finding, Reference, checkpoint_steps, exit_code, one_line
from jaxresnet.runs.workdir import Workdir


def seen(err: str) -> str:
    """The first line of stderr."""
    return err.strip().partition("\n")[0]


def interrupted(reference: Reference, workdir: Path) -> None:
    """A run in `workdir` that SIGINT has stopped after its second epoch."""
    signal_command(signal.SIGINT, "epoch 2/", "train", "--config", reference.config, "--workdir", workdir)


def two_runs(reference: Reference, place: Path) -> Iterator[Finding]:
    """A second run in the folder of one that is under way, and commands that only read."""
    workdir, long = place / "two", ("--epochs", "400")
    first = start_command("train", "--config", reference.config, "--workdir", workdir, *long)
    wait_for_line(first, "epoch 2/")
    code, _, err = reference.train(workdir, *long)
    problems = one_line(err, f"in use by process {first.pid}") + exit_code(code, 1)
    for command, *arguments in (
        ("evaluate", "--workdir", workdir, "--output", place / "evaluation.json"),
        ("report", "--workdir", workdir),
        ("summary", "--config", workdir / "config.toml"),
    ):
        code, _, other = run_command(str(command), *arguments)
        if code or other:
            problems.append(f"{command}: {code} {other[:300]}")
    if first.poll() is not None:
        problems.append("the first run ended too early to show it")
    first.kill()
    first.wait()
    code, _, other = reference.train(workdir)
    if code != 2 or "epochs already" not in other:  # it is past the fourth epoch
        problems.append(f"after kill -9: {code} {other[:300]}")
    yield Finding(
        "a second run in the same folder; evaluate, report and summary meanwhile",
        f"{seen(err.replace(str(place), '...'))}; the others work",
        problems,
    )


def moved_folder(reference: Reference, place: Path) -> Iterator[Finding]:
    """A run goes on elsewhere than it began."""
    moved = place / "there" / "moved"
    interrupted(reference, place / "here")
    moved.parent.mkdir()
    (place / "here").rename(moved)
    code, _, err = reference.train(moved)
    problems = reference.problems(moved) + exit_code(code, 0) + ([err[:300]] if err else [])
    yield Finding("an interrupted run's folder moved", "it resumes", problems)


def torn_cache(reference: Reference, place: Path) -> Iterator[Finding]:
    """Compiled programs that are cut in half, and no place to keep any."""

    def train(name: str, cache: Path) -> tuple[int, str, str]:
        return reference.train(place / name, XDG_CACHE_HOME=str(cache), JAX_COMPILATION_CACHE_DIR="")

    cache = place / "cache"
    train("fill", cache)
    for entry in (cache / "jaxresnet" / "compilation").iterdir():
        os.truncate(entry, entry.stat().st_size // 2)
    code, _, err = train("torn", cache)
    problems = one_line(err, "note: an entry of the compilation cache") + reference.problems(place / "torn")
    code2, _, silent = train("mended", cache)
    if code or code2 or silent:
        problems.append(f"exit codes {code}, {code2}; {silent[:300]}")
    yield Finding(
        "all entries of the compilation cache cut in half", "one note; the next start is silent", problems
    )
    (place / "file").touch()
    code, _, err = train("no_cache", place / "file")
    problems = one_line(err, "no compilation cache") + reference.problems(place / "no_cache")
    yield Finding("no folder for the compilation cache", "one note", problems + exit_code(code, 0))


def little_memory(reference: Reference, place: Path) -> Iterator[Finding]:
    """A step that takes more memory than there is."""
    wide = (
        "--batch-size 1440 --model.stem-channels 64 --model.stage-channels 128 128 --cpu-devices 4 --epochs 1"
    )
    train = [sys.executable, "-m", "jaxresnet.train", "--config", str(reference.config)]
    process = subprocess.run(
        # 6 GiB, in KiB
        [
            "bash",
            "-c",
            f'ulimit -v {6 * 2**20}; "$@"',
            "bash",
            *train,
            "--workdir",
            str(place / "wide"),
            *wide.split(),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    problems = one_line(process.stderr, "lower batch_size") + exit_code(process.returncode, 1)
    yield Finding("a batch too large for the memory (ulimit -v)", seen(process.stderr), problems)


def not_finite(reference: Reference, place: Path) -> Iterator[Finding]:
    """A loss that is no number."""
    code, _, err = reference.train(place / "high", "--optimizer.learning-rate", "1e6")
    problems = one_line(err, "is not finite") + exit_code(code, 1)
    yield Finding("a learning rate of a million", seen(err), problems)


def other_machines(reference: Reference, place: Path, python: str | None) -> Iterator[Finding]:
    """Other numbers of devices, and `python` with other versions of the packages."""
    for devices in (1, 4):
        flags = f"--xla_force_host_platform_device_count={devices}"
        yield Finding(
            f"a checkpoint of two devices evaluated on {devices}",
            "the same confusion matrix, the loss to 1e-6",
            compare_evaluation(reference, place / f"devices{devices}.json", XLA_FLAGS=flags),
        )
    if python:
        code = "import jax, platform; print('Python', platform.python_version(), 'with jax', jax.__version__)"
        told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        interrupted(reference, place / "version")
        problems = compare_evaluation(reference, place / "version.json", python=python)
        number, out, err = reference.train(place / "version", python=python)
        problems += [err[:300]] if number or "resuming at step" not in out else []
        fault = f"a checkpoint evaluated and resumed by {told.stdout.strip()}"
        yield Finding(fault, "the same evaluation", problems)


def compare_evaluation(reference: Reference, file: Path, **options: str) -> list[str]:
    """Problems, if the reference evaluates to something else under other circumstances; `file` is written."""
    expected = Workdir(reference.workdir).evaluation()
    assert expected is not None
    code, _, err = run_command("evaluate", "--workdir", reference.workdir, "--output", file, **options)
    if code:
        return [err[:300]]
    found = json.loads(file.read_text())
    if found["confusion_matrix"] != expected.confusion_matrix:
        return ["another confusion matrix"]
    return [] if abs(found["loss"] / expected.loss - 1) < 1e-6 else ["another loss"]


LONG = (
    "--epochs 500 --batch-size 480 --cpu-devices 1 --model.stem-channels 2 --model.stage-blocks 1 "
    "--model.stage-channels 2 --model.stage-strides 2 --checkpoint.every-minutes 0"
)


def five_hundred_epochs(reference: Reference, place: Path) -> Iterator[Finding]:
    """What grows in a long run."""
    workdir = place / "long"
    process = start_command("train", "--config", reference.config, "--workdir", workdir, *LONG.split())
    figures = measure(process)
    err = process.communicate()[1]
    kept, lines = len(checkpoint_steps(workdir)), len(Workdir(workdir).epochs.read())
    size = sum(path.stat().st_size for path in workdir.rglob("*") if path.is_file()) / 2**20
    problems = growth(figures) + exit_code(process.returncode, 0) + ([err[:300]] if err else [])
    if kept > 3 or lines != 500:
        problems.append(f"{kept} checkpoints, {lines} lines")
    shown = ", ".join(f"{before:,.0f} to {after:,.0f} {name}" for name, (before, after) in figures.items())
    yield Finding(
        "500 epochs of a tiny network, medians of epochs 101-200 and 401-500",
        f"{shown}; {kept} checkpoints kept; {size:.1f} MiB in all",
        problems,
    )


def measure(process: "subprocess.Popen[str]") -> dict[str, tuple[float, float]]:
    """Medians over epochs 101-200 and 401-500 of what a training process takes and does."""
    values: dict[str, list[float]] = {"MiB": [], "open files": [], "images/s": []}
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch") and "  step " not in line:  # the end of an epoch
            status = Path(f"/proc/{process.pid}/status").read_text()
            values["MiB"].append(int(status.partition("VmRSS:")[2].split()[0]) / 1024)
            values["open files"].append(len(list(Path(f"/proc/{process.pid}/fd").iterdir())))
            values["images/s"].append(float(line.split()[-2].replace(",", "")))
    return {
        name: (statistics.median(each[100:200]), statistics.median(each[400:500]))
        for name, each in values.items()
    }


def growth(figures: Mapping[str, tuple[float, float]]) -> list[str]:
    """Problems, if a process takes more and more, or does less and less."""
    problems = []
    if figures["MiB"][1] > 1.1 * figures["MiB"][0] or figures["open files"][1] > figures["open files"][0] + 2:
        problems.append("memory or open files grow")
    if figures["images/s"][1] < 0.8 * figures["images/s"][0]:
        problems.append("it slows down")
    return problems
