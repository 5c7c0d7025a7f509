"""Break runs for real, go on, and compare with a run that was left alone.

    python tests/fault_campaign.py --output results/faults [--only random|staged]

A small network on the digits is trained once without a fault. What a faulty run computes in the end - weights,
optimiser state, metrics, evaluation - must be the same, bit for bit, with no epoch missing or double, and what a
command says of a fault must be one line.

random: trial by trial, a run is sent a signal at a random moment between its start and a little after its usual end,
and started again until it finishes, each start being hit again with probability 1/3. Signals: SIGKILL, SIGTERM,
SIGINT, SIGHUP, and SIGTERM and SIGINT twice in a row, up to 1.5 seconds apart.

staged: a terminal that closes, a sweep that is terminated together with its run, full and read-only disks (as tmpfs in
a namespace of their own), damaged checkpoints, kills while a checkpoint is replaced, files that are links, missing or
another run's, two runs in one folder, a run on several processes of which one is killed, silent, asked to stop or not
what the others expect, a folder that moves, a torn compilation cache, too little memory, a loss that is not finite,
other versions of Python and JAX (--other-python), and 500 epochs.

Writes README.md and faults.json; exits with 1 if anything does not hold.
"""

import argparse
import functools
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.checkpoints import damaged_checkpoint
from faults.disks import full_disk, read_only_disk
from faults.kept import kept_checkpoint, replaced_checkpoint
from faults.others import (
    five_hundred_epochs,
    little_memory,
    moved_folder,
    not_finite,
    other_machines,
    torn_cache,
    two_runs,
)
from faults.random_signals import random_signals
from faults.reference import Finding, Reference, make_reference
from faults.report import report
from faults.several import killed_processes, signalled_processes, silent_process, wrong_numbers
from faults.stopped import closed_terminal, sweep_and_run_terminated

from jaxresnet.runs.files import write_json


def staged_faults(reference: Reference, place: Path, python: str | None) -> Iterator[Finding]:
    """Stage every fault below the folder `place`; `python` is an interpreter with other versions, if there is one.

    A check that fails in an unexpected way is a finding, too, and the others go on.
    """
    faults: list[Callable[[Reference, Path], Iterator[Finding]]] = [
        closed_terminal,
        sweep_and_run_terminated,
        full_disk,
        read_only_disk,
        damaged_checkpoint,
        replaced_checkpoint,
        kept_checkpoint,
        two_runs,
        killed_processes,
        silent_process,
        signalled_processes,
        wrong_numbers,
        moved_folder,
        torn_cache,
        little_memory,
        not_finite,
        functools.partial(other_machines, python=python),
        five_hundred_epochs,
    ]
    for fault in faults:
        try:
            yield from fault(reference, place)
        except Exception as error:
            name = getattr(fault, "func", fault).__name__
            yield Finding(name, "its check ended early", [f"{type(error).__name__}: {error}"[:300]])


def main() -> int:
    """Run the campaign. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--only", choices=("random", "staged"), help="one part, beside what the output has of the other"
    )
    parser.add_argument(
        "--trials", type=int, default=50, help="random ones in all; six of eleven with SIGKILL"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--other-python", help="a Python with other versions of the packages")
    args = parser.parse_args()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup would have every run ignore it
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "faults.json"
    results = json.loads(file.read_text()) if args.only and file.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        reference = make_reference(place)
        if args.only != "staged":
            trials = random_signals(reference, place, args.trials, args.seed)
            results |= {"seconds_undisturbed": reference.seconds, "random": trials}
            write_json(file, results)
        if args.only != "random":
            results["staged"] = []
            for finding in staged_faults(reference, place, args.other_python):
                print(finding, flush=True)
                results["staged"].append(finding._asdict())
                write_json(file, results)  # each time: an interruption loses nothing
    (args.output / "README.md").write_text(report(results))
    return int(any(row["problems"] for part in ("random", "staged") for row in results.get(part, [])))


if __name__ == "__main__":
    sys.exit(main())
