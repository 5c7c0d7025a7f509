"""Break runs for real, go on, and compare with a run that was left alone.

    python benchmarks/faults.py --output results/faults [--only random|staged]

A small network on the digits is trained once without a fault. What a faulty run computes in the end - weights,
optimiser state, metrics, evaluation - must be the same, bit for bit, with no epoch missing or double, and what a
command says of a fault must be one line.

random: trial by trial, a run is sent a signal at a random moment between its start and a little after its usual end,
and started again until it finishes, each start being hit again with probability 1/3. Signals: SIGKILL, SIGTERM,
SIGINT, and each of the latter two twice in a row.

staged: full and read-only disks (as tmpfs in a namespace of their own), damaged checkpoints, two runs in one folder,
a folder that moves, a torn compilation cache, too little memory, a loss that is not finite, other versions of Python
and JAX (--other-python), and 500 epochs.

Writes README.md and faults.json; exits with 1 if anything does not hold.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxresnet.comparison import as_markdown
from jaxresnet.workdir import Workdir, write_json

CONFIG = """
epochs = 4
batch_size = 32
cpu_devices = 2
[model]
stem_kernel = 3
stem_channels = 4
stage_blocks = [1, 1]
stage_channels = [4, 6]
stage_strides = [1, 2]
[data]
name = "digits"
[augment]
horizontal_flip = false
[checkpoint]
every_minutes = 0.02
"""

SIGNALS = {
    "SIGKILL": [signal.SIGKILL],
    "SIGTERM": [signal.SIGTERM],
    "SIGINT": [signal.SIGINT],
    "SIGTERM twice": [signal.SIGTERM, signal.SIGTERM],
    "SIGINT twice": [signal.SIGINT, signal.SIGINT],
}
TRIALS = 3 * ["SIGKILL"] + ["SIGTERM", "SIGINT"] + 3 * ["SIGKILL"] + ["SIGTERM twice", "SIGINT twice"]
MOST_STARTS = 20

Log = int | Any
"""What subprocess takes as a stream."""


def start(
    command: str,
    *arguments: object,
    python: str = sys.executable,
    log: Log = subprocess.PIPE,
    **variables: str,
) -> subprocess.Popen:
    return subprocess.Popen(
        [python, "-m", f"jaxresnet.{command}", *map(str, arguments)],
        stdout=log,
        stderr=subprocess.PIPE if log == subprocess.PIPE else subprocess.STDOUT,
        text=True,
        env=os.environ | variables,
    )


def run(command: str, *arguments: object, **options: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    process = start(command, *arguments, **options)
    out, err = process.communicate()
    return process.returncode, out, err


def outcome(workdir: Path) -> dict[str, Any]:
    """What must not depend on faults: all that was computed, without the clock's values."""
    found = Workdir(workdir)
    metrics = [{k: v for k, v in record.items() if "second" not in k} for record in found.metrics()]
    last = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    meta = json.loads((workdir / "checkpoints" / str(last) / "meta" / "metadata").read_text())
    return {"metrics": metrics, "evaluation": found.evaluation(), "state": meta["checksums"]}


@dataclass
class Reference:
    """A run that was left alone."""

    config: Path
    workdir: Path
    seconds: float

    def problems(self, workdir: Path) -> list[str]:
        """In what the run in `workdir` differs from it."""
        found, expected = outcome(workdir), outcome(self.workdir)
        return [f"{key} differ" for key in expected if found[key] != expected[key]]

    def train(self, workdir: Path, *arguments: object, **options: Any) -> tuple[int, str, str]:
        return run("train", "--config", self.config, "--workdir", workdir, *arguments, **options)


def make_reference(place: Path) -> Reference:
    config = place / "config.toml"
    config.write_text(CONFIG)
    for name in ("warm", "reference"):  # the first one fills the compilation cache
        began = time.monotonic()
        code, _, err = run("train", "--config", config, "--workdir", place / name)
        if code:
            raise SystemExit(err)
        seconds = time.monotonic() - began
    return Reference(config, place / "reference", round(seconds, 1))


# Signals at random moments


def trial(reference: Reference, folder: Path, fault: str, chance: random.Random) -> dict[str, Any]:
    """One run with faults, until it finishes; what happened."""
    moments, problems = [], []
    folder.mkdir()
    for number in range(MOST_STARTS):
        with (folder / "log.txt").open("a") as log:
            process = start("train", "--config", reference.config, "--workdir", folder / "run", log=log)
        moment = (
            chance.uniform(0, 1.1 * reference.seconds) if number == 0 or chance.random() < 1 / 3 else None
        )
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            for each in SIGNALS[fault]:
                process.send_signal(each)
                time.sleep(0.02 * chance.random())
            moments.append(round(moment, 1))
        code = process.wait()
        if code == 0:
            problems = reference.problems(folder / "run")
            break
        if (128 - code if code < 0 else code) != 128 + SIGNALS[fault][0]:  # as a shell sees it
            problems = [f"exit code {code}"]
            break
    else:
        problems = [f"not finished after {MOST_STARTS} starts"]
    if problems:
        print((folder / "log.txt").read_text())
    return {"fault": fault, "moments": moments, "starts": number + 1, "problems": problems}


def random_signals(reference: Reference, place: Path, trials: int, seed: int) -> list[dict[str, Any]]:
    chance, rows = random.Random(seed), []
    for number in range(trials):
        rows.append(trial(reference, place / f"trial{number}", TRIALS[number % len(TRIALS)], chance))
        print(number + 1, rows[-1], flush=True)
    return rows


# Staged faults: each yields what was done, what was seen, and the problems


Finding = tuple[str, str, list[str]]


def one_line(err: str, part: str) -> list[str]:
    """Problems, if stderr is not one line that holds `part`."""
    lines = err.splitlines()
    return (
        [] if len(lines) == 1 and part in err else [f"expected one line with {part!r}, found {err[:300]!r}"]
    )


def seen(*errors: str) -> str:
    return "; ".join(dict.fromkeys(error.strip().splitlines()[0] for error in errors if error.strip()))


def interrupted(reference: Reference, workdir: Path, after: str = "epoch 2/") -> None:
    """A run in `workdir` that SIGINT has stopped after its second epoch."""
    process = start("train", "--config", reference.config, "--workdir", workdir)
    for line in process.stdout:
        if line.startswith(after):
            break
    process.send_signal(signal.SIGINT)
    process.communicate()


FULL_DISK = """
mount -t tmpfs -o size=$2k none "$1" && cd "$1" || exit 99
"${@:3}" --workdir run > "$1.out" 2> "$1.err"; echo $? > "$1.code"
mount -o remount,size=50m "$1"
"${@:3}" --workdir run > "$1.out2" 2> "$1.err2"; echo $? > "$1.code2"
cp -r run "$1.run"
"""

READ_ONLY_DISK = """
mount -t tmpfs none "$1" && cp -r "$2" "$1/run" && mount -o remount,ro "$1" || exit 99
"${@:3}" --workdir "$1/run" 2>&1; echo "exit code $?"
"""


def in_namespace(script: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run bash as the root of a namespace, where it may mount; exit code 99 if it may not."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script, "bash"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
    )  # fmt: skip


def full_disk(reference: Reference, place: Path) -> Iterator[Finding]:
    for kilobytes in (4, 16, 30, 60, 200, 300, 400, 550, 600):
        disk = place / f"disk{kilobytes}"
        disk.mkdir()
        command = [sys.executable, "-m", "jaxresnet.train", "--config", reference.config]
        if in_namespace(FULL_DISK, disk, kilobytes, *command).returncode == 99:
            yield "a full disk", "not tried: this system has no user namespaces with mounts", []
            return
        text = {name: Path(f"{disk}.{name}").read_text() for name in ("err", "code", "out2", "err2", "code2")}
        problems = one_line(text["err"], "No space left on device")
        if text["code"].strip() != "1" or text["code2"].strip() != "0":
            problems.append(f"exit codes {text['code']}, {text['code2']}")
        problems += one_line(f"{text['err2']}line\n", "line") + reference.problems(Path(f"{disk}.run"))
        resumed = [line for line in text["out2"].splitlines() if line.startswith("resuming")]
        yield (
            f"a disk of {kilobytes} KiB, then space",
            f"one line of error; then {(*resumed, 'from the start')[0]}",
            problems,
        )


def read_only_disk(reference: Reference, place: Path) -> Iterator[Finding]:
    disk = place / "read_only"
    disk.mkdir()
    command = [sys.executable, "-m", "jaxresnet.train", "--epochs", "5"]
    process = in_namespace(READ_ONLY_DISK, disk, reference.workdir, *command)
    if process.returncode == 99:
        yield "a read-only disk", "not tried: this system has no user namespaces with mounts", []
        return
    _, *error, code = process.stdout.splitlines()
    problems = one_line("\n".join(error), "Read-only file system")
    yield "a read-only disk", code, problems + ([] if code == "exit code 1" else [code])


def damaged_checkpoint(reference: Reference, place: Path) -> Iterator[Finding]:
    chance = random.Random(0)
    other = place / "another_run"
    run("train", "--config", reference.config, "--workdir", other, "--seed", "1")

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)

    def truncate(path: Path) -> None:
        os.truncate(path, chance.randrange(path.stat().st_size))

    def exchange(path: Path) -> None:
        newest = Path(*path.parts[: path.parts.index("checkpoints")]).name
        counterpart = other / Path(*path.parts[path.parts.index(newest) + 1 :])
        source = counterpart if counterpart.is_file() else next(counterpart.parent.iterdir())
        shutil.copyfile(source, path)

    damages = {
        "a byte flipped in": flip,
        "truncated": truncate,
        "removed": Path.unlink,
        "exchanged with another run's": exchange,
    }
    for name, damage in damages.items():
        for item in ("weights/d", "rest/d", "meta"):
            workdir = place / f"{name}_{item}".replace("/", "_").replace(" ", "_").replace("'", "")
            shutil.copytree(reference.workdir, workdir)
            (workdir / "evaluation.json").unlink()
            steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
            newest = workdir / "checkpoints" / str(max(steps))
            path = next(
                path for path in sorted((newest / item).iterdir()) if path.name != "commit_success.txt"
            )
            damage(path)
            code, _, err = run("evaluate", "--workdir", workdir)
            if code == 0:  # the weights are whole, or orbax does not read these bytes
                problems = [] if outcome(workdir) == outcome(reference.workdir) else ["another evaluation"]
                results = ["evaluate is right"]
            else:
                problems = one_line(err, f"checkpoint {newest.name}") + ([] if code == 1 else [f"{code}"])
                results = ["evaluate refuses"]
            (workdir / "evaluation.json").unlink(missing_ok=True)
            code, _, err = reference.train(workdir)
            problems += reference.problems(workdir) + ([] if code == 0 else [f"train: {code}"])
            if err:
                problems += one_line(err, "going back to checkpoint")
                results.append("train names it, goes back and does the rest again")
            else:
                results.append("train is not affected")
            yield f"a checkpoint's file in {item}: {name}", "; ".join(results), problems


def two_runs(reference: Reference, place: Path) -> Iterator[Finding]:
    workdir = place / "two"
    first = start("train", "--config", reference.config, "--workdir", workdir, "--epochs", "400")
    for line in first.stdout:
        if line.startswith("epoch 2/"):
            break
    code, _, err = reference.train(workdir, "--epochs", "400")
    problems = one_line(err, f"in use by process {first.pid}") + (
        [] if code == 1 else [f"second run: {code}"]
    )
    for command in (
        ("evaluate", "--workdir", workdir, "--output", place / "evaluation.json"),
        ("report", "--workdir", workdir),
        ("summary", "--config", workdir / "config.toml"),
    ):
        code, _, other = run(*command)
        if code or other:
            problems.append(f"{command[0]}: {code} {other[:300]}")
    if first.poll() is not None:
        problems.append("the first run ended too early to show it")
    first.kill()
    first.wait()
    code, _, other = reference.train(workdir)
    if code != 2 or "epochs: the run is at step" not in other:  # it is past the fourth epoch
        problems.append(f"after kill -9: {code} {other[:300]}")
    yield (
        "a second run in the same folder; evaluate, report and summary meanwhile",
        f"{seen(err.replace(str(place), '...'))}; the others work",
        problems,
    )


def moved_folder(reference: Reference, place: Path) -> Iterator[Finding]:
    interrupted(reference, place / "here")
    (place / "there").mkdir()
    (place / "here").rename(place / "there" / "moved")
    code, _, err = reference.train(place / "there" / "moved")
    problems = reference.problems(place / "there" / "moved") + ([err[:300]] if code or err else [])
    yield "an interrupted run's folder moved", "it resumes", problems


def torn_cache(reference: Reference, place: Path) -> Iterator[Finding]:
    cache = place / "cache"

    def train(name: str) -> tuple[int, str, str]:
        return reference.train(place / name, XDG_CACHE_HOME=str(cache), JAX_COMPILATION_CACHE_DIR="")

    train("fill")
    for entry in (cache / "jaxresnet" / "compilation").iterdir():
        os.truncate(entry, entry.stat().st_size // 2)
    code, _, err = train("torn")
    problems = one_line(err, "note: an entry of the compilation cache") + reference.problems(place / "torn")
    code2, _, silent = train("mended")
    if code or code2 or silent:
        problems.append(f"exit codes {code}, {code2}; {silent[:300]}")
    yield "all entries of the compilation cache cut in half", "one note; the next start is silent", problems
    (place / "file").touch()
    code, _, err = reference.train(
        place / "no_cache", XDG_CACHE_HOME=str(place / "file"), JAX_COMPILATION_CACHE_DIR=""
    )
    problems = one_line(err, "no compilation cache") + reference.problems(place / "no_cache")
    yield "no folder for the compilation cache", "one note", problems + ([f"{code}"] if code else [])


def little_memory(reference: Reference, place: Path) -> Iterator[Finding]:
    limit = 6 * 2**20  # KiB
    wide = (
        "--batch-size 1440 --model.stem-channels 64 --model.stage-channels 128 128 --cpu-devices 4 --epochs 1"
    )
    process = subprocess.run(
        ["bash", "-c", f'ulimit -v {limit}; "$@"', "bash", sys.executable, "-m", "jaxresnet.train",
         "--config", str(reference.config), "--workdir", str(place / "wide"), *wide.split()],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    problems = one_line(process.stderr, "lower batch_size") + (
        [] if process.returncode == 1 else [f"{process.returncode}"]
    )
    yield "a batch too large for the memory (ulimit -v)", seen(process.stderr), problems


def not_finite(reference: Reference, place: Path) -> Iterator[Finding]:
    code, _, err = reference.train(place / "high", "--optimizer.learning-rate", "1e6")
    problems = one_line(err, "is not finite") + ([] if code == 1 else [f"{code}"])
    yield "a learning rate of a million", seen(err), problems


def other_machines(reference: Reference, place: Path, python: str | None) -> Iterator[Finding]:
    expected = Workdir(reference.workdir).evaluation()

    def compare(name: str, **options: str) -> list[str]:
        file = place / f"{name}.json"
        code, _, err = run("evaluate", "--workdir", reference.workdir, "--output", file, **options)
        if code:
            return [err[:300]]
        found = json.loads(file.read_text())
        if found["confusion_matrix"] != expected["confusion_matrix"]:
            return ["another confusion matrix"]
        return [] if abs(found["loss"] / expected["loss"] - 1) < 1e-6 else ["another loss"]

    for devices in (1, 4):
        flags = f"--xla_force_host_platform_device_count={devices}"
        yield (
            f"a checkpoint of two devices evaluated on {devices}",
            "the same confusion matrix, the loss to 1e-6",
            compare(f"devices{devices}", XLA_FLAGS=flags),
        )
    if python:
        code = "import jax, platform; print('Python', platform.python_version(), 'with jax', jax.__version__)"
        version = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        interrupted(reference, place / "version")
        problems = compare("version", python=python)
        code, out, err = reference.train(place / "version", python=python)
        problems += [err[:300]] if code or "resuming at step" not in out else []
        yield f"a checkpoint evaluated and resumed by {version}", "the same evaluation", problems


def five_hundred_epochs(reference: Reference, place: Path) -> Iterator[Finding]:
    workdir = place / "long"
    settings = "--epochs 500 --batch-size 480 --cpu-devices 1 --model.stem-channels 2 --model.stage-blocks 1"
    settings += " --model.stage-channels 2 --model.stage-strides 2 --checkpoint.every-minutes 0"
    process = start("train", "--config", reference.config, "--workdir", workdir, *settings.split())
    memory, files, rates = [], [], []
    for line in process.stdout:
        if line.startswith("epoch"):
            status = Path(f"/proc/{process.pid}/status").read_text()
            memory.append(int(status.partition("VmRSS:")[2].split()[0]) / 1024)
            files.append(len(list(Path(f"/proc/{process.pid}/fd").iterdir())))
            rates.append(float(line.split()[-2].replace(",", "")))
    err = process.communicate()[1]
    kept = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    size = sum(path.stat().st_size for path in workdir.rglob("*") if path.is_file()) / 2**20
    early, late = slice(100, 200), slice(400, 500)
    figures = {
        name: (statistics.median(values[early]), statistics.median(values[late]))
        for name, values in (("MiB", memory), ("open files", files), ("images/s", rates))
    }
    problems = [err[:300]] if process.returncode or err else []
    if figures["MiB"][1] > 1.1 * figures["MiB"][0] or figures["open files"][1] > figures["open files"][0] + 2:
        problems.append("memory or open files grow")
    if figures["images/s"][1] < 0.8 * figures["images/s"][0]:
        problems.append("it slows down")
    if len(kept) > 3 or len(Workdir(workdir).metrics()) != 500:
        problems.append(f"{len(kept)} checkpoints, {len(Workdir(workdir).metrics())} lines")
    shown = ", ".join(f"{before:,.0f} to {after:,.0f} {name}" for name, (before, after) in figures.items())
    yield (
        "500 epochs of a tiny network, medians of epochs 101-200 and 401-500",
        f"{shown}; {len(kept)} checkpoints kept; {size:.1f} MiB in all",
        problems,
    )


def staged_faults(reference: Reference, place: Path, python: str | None) -> list[dict[str, Any]]:
    faults: list[Callable[[Reference, Path], Iterator[Finding]]] = [
        full_disk, read_only_disk, damaged_checkpoint, two_runs, moved_folder, torn_cache, little_memory, not_finite,
        lambda reference, place: other_machines(reference, place, python), five_hundred_epochs,
    ]  # fmt: skip
    rows = []
    for fault in faults:
        for name, result, problems in fault(reference, place):
            rows.append({"fault": name, "result": result, "problems": problems})
            print(rows[-1], flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--only", choices=("random", "staged"), help="one part, beside what the output has of the other"
    )
    parser.add_argument(
        "--trials", type=int, default=50, help="random ones in all; three of five with SIGKILL"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--other-python", help="a Python with other versions of the packages")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "faults.json"
    results = json.loads(file.read_text()) if args.only and file.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        reference = make_reference(place)
        if args.only != "staged":
            trials = random_signals(reference, place, args.trials, args.seed)
            results |= {"seconds_undisturbed": reference.seconds, "random": trials}
        if args.only != "random":
            results["staged"] = staged_faults(reference, place, args.other_python)
    write_json(file, results)
    (args.output / "README.md").write_text(report(results))
    return int(any(row["problems"] for part in ("random", "staged") for row in results.get(part, [])))


def report(results: dict[str, Any]) -> str:
    """The tables of what was tried."""
    paragraphs = [
        "# Faults",
        "Made by `python benchmarks/faults.py`, which says what is compared: a small network on the digits, four "
        "epochs, a checkpoint about every second.",
    ]
    if rows := results.get("random"):
        table = [
            (
                "signal",
                "runs",
                "signals that hit",
                "starts in all",
                "equal to the undisturbed run, bit for bit",
            )
        ]
        for fault in SIGNALS:
            of_fault = [row for row in rows if row["fault"] == fault]
            hits = sum(len(row["moments"]) for row in of_fault)
            equal = sum(not row["problems"] for row in of_fault)
            table.append(
                (fault, *map(str, (len(of_fault), hits, sum(row["starts"] for row in of_fault), equal)))
            )
        paragraphs += [
            "## Signals at random moments",
            f"Each run is hit at a moment uniform over the {results['seconds_undisturbed']} seconds of the undisturbed "
            "run and a tenth more, and again with probability 1/3 at each start after.",
            as_markdown(table),
        ]
    if rows := results.get("staged"):
        table = [("fault", "what happened", "held")]
        table += [
            (row["fault"], row["result"], "; ".join(row["problems"]) if row["problems"] else "yes")
            for row in rows
        ]
        paragraphs += [
            "## Staged faults",
            "Each goes on, where it can, to the undisturbed run's result, bit for bit.",
            as_markdown(table),
        ]
    return "\n\n".join(paragraphs) + "\n"


if __name__ == "__main__":
    sys.exit(main())
