"""The paper's result on a GPU, from start to end: runs, table, curves, weights.

    python benchmarks/reproduce_paper.py --output results/gpu --minutes 18

1. One epoch of configs/paper.toml in float32, TF32 and bfloat16: does it run, how fast.
2. All epochs of paper.toml and paper_coupled.toml with five seeds each in one precision, and paper.toml's first seed
   in the two others.
3. The weights of the run with the best last step as a safetensors file, evaluated again from that file.

What is done is not done again, and a run that was stopped goes on, so it can be started as often as it takes; after
--minutes the current run saves, and the results so far are written. Any setting is a flag, too: a small trial on a CPU
is --device cpu --data.name digits --model.stem-channels 8 --model.stage-channels 8 12 16 64 --epochs 2 --seeds 0 1.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from jaxresnet.comparison import RunGroup, as_markdown, group_runs, mean_and_spread, read_runs
from jaxresnet.config import ArgumentParser, add_setting_arguments, setting_arguments
from jaxresnet.errors import Interrupted, UserError, run_command
from jaxresnet.report import PAPER_TABLE_MEAN, comparison_report
from jaxresnet.sweep import sweep
from jaxresnet.workdir import Workdir

CONFIGS = Path(__file__).parent.parent / "configs"
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
KEPT = ("config.toml", "metrics.jsonl", "evaluation.json", "environment.json")


def main(argv: list[str]) -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--workdir", type=Path, default=Path("runs/reproduce"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--minutes", type=float, default=0, help="stop and save after this time; 0: never")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    add_setting_arguments(parser)
    args = parser.parse(argv)
    settings = setting_arguments(args)
    precision = settings.pop("precision", "bfloat16")
    if args.minutes:
        stop_after(60 * args.minutes)
    failed: dict[Path, str] = {}
    stopped = None
    try:
        for each in PRECISIONS:
            changed = settings | {"precision": each, "epochs": 1}
            failed |= sweep(
                [CONFIGS / "paper.toml"], [0], args.workdir / "one_epoch" / each, changed, args.device
            )
        both = [CONFIGS / "paper.toml", CONFIGS / "paper_coupled.toml"]
        failed |= sweep(
            both, args.seeds, args.workdir / precision, settings | {"precision": precision}, args.device
        )
        for each in PRECISIONS:
            if each != precision:
                changed = settings | {"precision": each}
                failed |= sweep(both[:1], args.seeds[:1], args.workdir / each, changed, args.device)
    except Interrupted as error:
        stopped = error
    collect(args.workdir, args.output)
    if not stopped and not failed:
        export_weights(args.workdir / precision, args.output, args.device)
    write_summary(args.workdir, args.output)
    if stopped:
        raise stopped
    if failed:
        raise UserError("\n".join(f"{path}: {said}" for path, said in failed.items()))


def stop_after(seconds: float) -> None:
    """Have this process receive SIGTERM then, which a sweep passes on to its run; else it ends the script here."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise Interrupted("the time is up", number)

    signal.signal(signal.SIGTERM, interrupt)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()


def runs_below(workdir: Path) -> list[Path]:
    return sorted(
        path.parent for path in workdir.glob("**/config.toml") if (path.parent / "metrics.jsonl").exists()
    )


def collect(workdir: Path, output: Path) -> None:
    """Copy what is worth keeping of every run that has finished an epoch."""
    for run in runs_below(workdir):
        target = output / run.relative_to(workdir)
        target.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (run / name).exists():
                shutil.copy(run / name, target)


def export_weights(workdir: Path, output: Path, device: str) -> None:
    """The best run's weights, and what `jaxresnet.evaluate` makes of the file."""
    from jaxresnet.inference import load_run
    from jaxresnet.runtime import start_devices
    from jaxresnet.weights import save_weights

    accuracies = {run: Workdir(run).evaluation()["accuracy"] for run in runs_below(workdir)}
    best = max(accuracies, key=accuracies.get)
    file = output / "weights.safetensors"
    # On the CPU, because a process of JAX's takes most of a GPU's memory for itself.
    run = load_run(best, start_devices("cpu", 1))
    save_weights(file, run.config, run.variables)
    record = output / "weights_evaluation.json"
    command = [
        sys.executable,
        "-m",
        "jaxresnet.evaluate",
        "--weights",
        file,
        "--output",
        record,
        "--device",
        device,
    ]
    subprocess.run(command, check=True)
    found = json.loads(record.read_text())["accuracy"]
    name = best.relative_to(workdir.parent)
    (output / "WEIGHTS.md").write_text(
        f"`weights.safetensors` ({file.stat().st_size:,} bytes): the last step of `{name}`, chosen among "
        f"{len(accuracies)} runs by test accuracy, so optimistic.\n"
        f"Test accuracy of the run {accuracies[best]:.2%}, of the file evaluated again {found:.2%}. "
        f"Configuration: `{name}/config.toml`; trained on {run.config.data.name}'s training split alone; "
        f"commit {(Workdir(best).environment()[0]['git'] or {}).get('commit')}.\n"
    )


def write_summary(workdir: Path, output: Path) -> None:
    """README.md with a row for each configuration, accuracy by class, and the curves."""
    paths = runs_below(workdir)
    if not paths:
        return
    groups = group_runs(read_runs(paths, above=workdir))
    header = (
        "runs",
        "seeds",
        "epochs",
        "best epoch (%)",
        "last epoch (%)",
        "images/s",
        "compile s",
        "whole run s",
    )
    rows = [(*header, "peak MiB"), *(row(group) for group in groups)]
    start = Workdir(paths[0]).environment()[-1]
    long = [group for group in groups if group.runs[0].config.epochs > 1]
    if long:
        for name, png in comparison_report(long).pictures.items():
            (output / name).write_bytes(png)
    text = [
        "# The paper's recipe",
        f"Mean ± standard deviation over the seeds; {start['devices'][0]}, driver {start['driver']}, "
        f"jax {start['versions']['jax']}, Python {start['versions']['python']}. Images per second are the median "
        "epoch's, without evaluation and compilation; compile and whole-run seconds and peak memory are medians of "
        "the runs that were not interrupted. The best epoch is chosen on the test set, as the paper's 91.26 % is.",
        as_markdown(rows),
        *(f"![{name}]({name})" for name in ("accuracy.png", "loss.png") if long),
        "Last epoch, accuracy by class in percent; the paper's Table 1 has the mean "
        f"{100 * PAPER_TABLE_MEAN:.2f}:",
        as_markdown(class_rows(long)),
    ]
    (output / "README.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print(text[2])


def row(group: RunGroup) -> tuple[str, ...]:
    starts = [Workdir(run.path).environment() for run in group.runs]
    whole = [entries[0] for entries in starts if len(entries) == 1 and "seconds" in entries[0]]
    rates = [rate for run in group.runs for rate in run.values("images_per_second")[1]]

    def median(key: str, scale: float = 1.0) -> str:
        values = [entry[key] / scale for entry in whole if entry.get(key) is not None]
        return f"{statistics.median(values):,.0f}" if values else "-"

    return (
        group.name,
        str(len(group.runs)),
        "/".join(sorted({str(len(run.epochs)) for run in group.runs})),
        mean_and_spread(group.best("test_accuracy"), 100),
        mean_and_spread(group.last("test_accuracy"), 100),
        f"{statistics.median(rates):,.0f}",
        median("compile_seconds"),
        median("seconds"),
        median("peak_device_bytes", 2**20),
    )


def class_rows(groups: list[RunGroup]) -> list[tuple[str, ...]]:
    evaluations: list[list[dict[str, Any]]] = [
        [record for run in group.runs if (record := Workdir(run.path).evaluation())] for group in groups
    ]
    names = groups[0].runs[0].config.dataset.class_names if groups else ()
    rows = [("class", *(group.name for group in groups))]
    for name in names:
        cells = [mean_and_spread([r["per_class_accuracy"][name] for r in each], 100) for each in evaluations]
        rows.append((name, *cells))
    return rows


if __name__ == "__main__":
    run_command(main)
