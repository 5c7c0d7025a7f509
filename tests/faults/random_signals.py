"""Signals at random moments."""

import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from helpers import start_command

from faults.reference import Reference

SIGNALS = {
    "SIGKILL": [signal.SIGKILL],
    "SIGTERM": [signal.SIGTERM],
    "SIGINT": [signal.SIGINT],
    "SIGHUP": [signal.SIGHUP],
    "SIGTERM twice": [signal.SIGTERM, signal.SIGTERM],
    "SIGINT twice": [signal.SIGINT, signal.SIGINT],
}
TRIALS = [
    *(3 * ["SIGKILL"] + ["SIGTERM", "SIGINT", "SIGHUP"]),
    *(3 * ["SIGKILL"] + ["SIGTERM twice", "SIGINT twice"]),
]
MOST_SECONDS_BETWEEN = 1.5
"""Between two signals in a row. The second one ends the run at once if it comes a second or more after the first."""
MOST_STARTS = 20


def random_signals(reference: Reference, place: Path, trials: int, seed: int) -> list[dict[str, Any]]:
    """That many trials below the folder `place`, and what happened in each."""
    chance, rows = random.Random(seed), []
    for number in range(trials):
        rows.append(trial(reference, place / f"trial{number}", TRIALS[number % len(TRIALS)], chance))
        print(number + 1, rows[-1], flush=True)
    return rows


def trial(reference: Reference, folder: Path, fault: str, chance: random.Random) -> dict[str, Any]:
    """One run with faults, until it finishes; what happened."""
    moments, problems = [], [f"not finished after {MOST_STARTS} starts"]
    folder.mkdir()
    starts = 0
    while starts < MOST_STARTS:
        latest = 1.1 * reference.seconds
        moment = chance.uniform(0, latest) if not starts or chance.random() < 1 / 3 else None
        starts += 1
        code, hit = start_and_hit(reference, folder, SIGNALS[fault], moment, chance)
        if moment is not None and hit:
            moments.append(round(moment, 1))
        if code == 0:
            problems = reference.problems(folder / "run")
            break
        if code != 128 + SIGNALS[fault][0]:
            problems = [f"exit code {code}"]
            break
    if problems:
        print((folder / "log.txt").read_text())
    return {"fault": fault, "moments": moments, "starts": starts, "problems": problems}


def start_and_hit(
    reference: Reference,
    folder: Path,
    signals: list[signal.Signals],
    moment: float | None,
    chance: random.Random,
) -> tuple[int, bool]:
    """Start the run in `folder` and send it the signals after `moment` seconds, or never.

    Returns its exit code, as a shell sees it, and whether it was hit before its end.
    """
    hit = False
    with (folder / "log.txt").open("a") as log:
        process = start_command("train", "--config", reference.config, "--workdir", folder / "run", log=log)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        hit = True
        for each in signals:
            process.send_signal(each)
            time.sleep(MOST_SECONDS_BETWEEN * chance.random())
    code = process.wait()
    return (128 - code if code < 0 else code), hit
