"""Kill runs at random moments, go on, and compare with a run that was left alone.

    python benchmarks/faults.py --output results/faults

A small network on the digits is trained once without a fault. Then, trial by trial, it is started in a folder of its
own, sent a signal at a random moment between its start and a little after its usual end, and started again until it
finishes, each start being hit again with probability 1/3. Its weights, optimiser state, metrics and evaluation must
be the first run's, bit for bit, and no epoch may be missing or double. Signals: SIGKILL, SIGTERM, SIGINT, and each
of the latter two twice in a row. Writes README.md and faults.json; exits with 1 if a trial differs.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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

FAULTS = {
    "SIGKILL": [signal.SIGKILL],
    "SIGTERM": [signal.SIGTERM],
    "SIGINT": [signal.SIGINT],
    "SIGTERM twice": [signal.SIGTERM, signal.SIGTERM],
    "SIGINT twice": [signal.SIGINT, signal.SIGINT],
}
TRIALS = 3 * ["SIGKILL"] + ["SIGTERM", "SIGINT"] + 3 * ["SIGKILL"] + ["SIGTERM twice", "SIGINT twice"]
MOST_STARTS = 20


def start(config: Path, workdir: Path, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "jaxresnet.train", "--config", str(config), "--workdir", str(workdir)]
    with log.open("a") as file:
        return subprocess.Popen([*command, "--device", "cpu"], stdout=file, stderr=subprocess.STDOUT)


def outcome(workdir: Path) -> dict[str, Any]:
    """What must not depend on faults: all that was computed, without the clock's values."""
    run = Workdir(workdir)
    metrics = [{k: v for k, v in record.items() if "second" not in k} for record in run.metrics()]
    last = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    meta = json.loads((workdir / "checkpoints" / str(last) / "meta" / "metadata").read_text())
    return {"metrics": metrics, "evaluation": run.evaluation(), "state": meta["checksums"]}


def trial(config: Path, folder: Path, fault: str, length: float, chance: random.Random) -> dict[str, Any]:
    """One run with faults, until it finishes; what happened."""
    log, moments, problems = folder / "log.txt", [], []
    folder.mkdir()
    for number in range(MOST_STARTS):
        process = start(config, folder / "run", log)
        moment = chance.uniform(0, 1.1 * length) if number == 0 or chance.random() < 1 / 3 else None
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            for each in FAULTS[fault]:
                process.send_signal(each)
                time.sleep(0.02 * chance.random())
            moments.append(round(moment, 1))
        code = process.wait()
        if code == 0:
            break
        if (128 - code if code < 0 else code) != 128 + FAULTS[fault][0]:  # as a shell sees it
            problems.append(f"exit code {code}")
            break
    else:
        problems.append(f"not finished after {MOST_STARTS} starts")
    return {"fault": fault, "moments": moments, "starts": number + 1, "problems": problems}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=50, help="in all; three of five with SIGKILL")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        config = Path(place, "config.toml")
        config.write_text(CONFIG)
        for name in ("warm", "reference"):  # the first one fills the compilation cache
            began = time.monotonic()
            if start(config, Path(place, name), Path(place, f"{name}.log")).wait():
                raise SystemExit(Path(place, f"{name}.log").read_text())
            length = time.monotonic() - began
        reference = outcome(Path(place, "reference"))
        for number in range(args.trials):
            fault = TRIALS[number % len(TRIALS)]
            folder = Path(place, f"trial{number}")
            row = trial(config, folder, fault, length, chance)
            if not row["problems"]:
                found = outcome(folder / "run")
                row["problems"] = [f"{key} differ" for key in reference if found[key] != reference[key]]
            rows.append(row)
            print(number + 1, row, flush=True)
            if row["problems"]:
                print((folder / "log.txt").read_text())
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(args.output / "faults.json", {"seconds_undisturbed": round(length, 1), "trials": rows})
    (args.output / "README.md").write_text(report(rows, length))
    return int(any(row["problems"] for row in rows))


def report(rows: list[dict[str, Any]], length: float) -> str:
    def count(fault: str, of: Callable[[dict[str, Any]], int]) -> str:
        return str(sum(of(row) for row in rows if row["fault"] == fault))

    table = [
        ("fault", "runs", "faults that hit", "starts in all", "equal to the undisturbed run, bit for bit")
    ]
    table += [
        (
            fault,
            count(fault, lambda row: 1),
            count(fault, lambda row: len(row["moments"])),
            count(fault, lambda row: row["starts"]),
            count(fault, lambda row: not row["problems"]),
        )
        for fault in FAULTS
    ]
    problems = [
        f"- {row['fault']} at {row['moments']} s: {', '.join(row['problems'])}"
        for row in rows
        if row["problems"]
    ]
    return (
        "\n\n".join(
            [
                "# Faults at random moments",
                "Made by `python benchmarks/faults.py`: a small network on the digits, four epochs, a checkpoint about "
                f"every second; {length:.1f} seconds undisturbed. Each run is hit at a moment uniform over that time "
                "and a tenth more, and again with probability 1/3 at each start after. Compared: SHA-256 of weights, "
                "optimiser state and metrics' sums, each line of metrics.jsonl but for clock values, evaluation.json.",
                as_markdown(table),
                "\n".join(problems) if problems else "No run differed.",
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
