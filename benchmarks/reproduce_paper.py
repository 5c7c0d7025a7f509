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
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from jaxresnet.config.files import find_config
from jaxresnet.config.flags import ArgumentParser, add_setting_arguments, setting_arguments
from jaxresnet.errors import Interrupted, UserError, run_command
from jaxresnet.reporting.tables import as_markdown, mean_and_spread
from jaxresnet.runs.groups import RunGroup, group_runs, read_histories
from jaxresnet.runs.workdir import Workdir
from jaxresnet.sweep import sweep

PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
KEPT = ("config.toml", "dataset.json", "metrics.jsonl", "evaluation.json", "environment.json")
COLUMNS = (
    "runs", "seeds", "epochs", "best epoch (%)", "last epoch (%)", "images/s", "compile s", "whole run s", "peak MiB",
)  # fmt: skip


def main(argv: Sequence[str]) -> None:
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
    from jaxresnet.machine.workarounds import own_process

    own_process()
    timer = None
    if args.minutes:
        timer = stop_after(60 * args.minutes)
    failed: dict[Path, str] = {}
    stopped = None
    try:
        run_all(args, precision, settings, failed)
    except Interrupted as error:
        stopped = error
    if timer:
        timer.cancel()
    collect(args.workdir, args.output)
    write_summary(args.workdir, args.output)
    if not stopped and not failed:
        export_weights(args.workdir / precision, args.output, args.device)
    if stopped:
        raise stopped
    if failed:
        raise UserError("\n".join(f"{path}: {said}" for path, said in failed.items()))


def run_all(
    args: argparse.Namespace, precision: str, settings: Mapping[str, Any], failed: dict[Path, str]
) -> None:
    """All sweeps; adds to `failed` what the runs that failed said. Raises Interrupted as `sweep` does."""
    paper, coupled = find_config("paper"), find_config("paper_coupled")

    def run(configs: list[Path], seeds: list[int], folder: Path | str, settings: Mapping[str, Any]) -> None:
        failed.update(sweep(configs, seeds, args.workdir / folder, settings, args.device))

    for each in PRECISIONS:
        run([paper], [0], Path("one_epoch", each), {**settings, "precision": each, "epochs": 1})
    run([paper, coupled], args.seeds, precision, {**settings, "precision": precision})
    for each in PRECISIONS:
        if each != precision:
            run([paper], args.seeds[:1], each, {**settings, "precision": each})


def stop_after(seconds: float) -> threading.Timer:
    """Have this process receive SIGTERM then, which a sweep passes on to its run; else it ends the script here."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise Interrupted("the time is up", number)

    signal.signal(signal.SIGTERM, interrupt)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    return timer


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
    from jaxresnet.machine.devices import start_devices
    from jaxresnet.trained.load import load_run
    from jaxresnet.trained.weights import save_weights

    evaluations = {run: Workdir(run).evaluation() for run in runs_below(workdir)}
    accuracies = {run: evaluation.accuracy for run, evaluation in evaluations.items() if evaluation}
    best = max(accuracies, key=lambda run: accuracies[run])
    file, record = output / "weights.safetensors", output / "weights_evaluation.json"
    # On the CPU, because a process of JAX's takes most of a GPU's memory for itself.
    network = load_run(best, mesh=start_devices("cpu", 1))
    save_weights(file, network.plan, network.variables)
    command = [sys.executable, "-m", "jaxresnet.evaluate", "--weights", str(file), "--output", str(record)]
    if network.config.data.dir:
        command += ["--data.dir", network.config.data.dir]
    subprocess.run([*command, "--device", device], check=True)
    found = json.loads(record.read_text())["accuracy"]
    name, git = best.relative_to(workdir.parent), Workdir(best).starts.read()[0].git or {}
    (output / "WEIGHTS.md").write_text(
        f"`weights.safetensors` ({file.stat().st_size:,} bytes): the last step of `{name}`, chosen among "
        f"{len(accuracies)} runs by test accuracy, so optimistic.\n"
        f"Test accuracy of the run {accuracies[best]:.2%}, of the file evaluated again {found:.2%}. "
        f"Configuration: `{name}/config.toml`; trained on {network.info.name}'s training split alone; "
        f"commit {git.get('commit')}.\n"
    )


def write_summary(workdir: Path, output: Path) -> None:
    """README.md with a row for each configuration, accuracy by class, and the curves."""
    from jaxresnet.reporting.comparison_page import comparison_report
    from jaxresnet.reporting.sections.paper import PAPER_TABLE_MEAN

    paths = runs_below(workdir)
    if not paths:
        return
    groups = group_runs(read_histories(paths, above=workdir))
    start = Workdir(paths[0]).starts.read()[-1]
    long = [group for group in groups if group.histories[0].config.epochs > 1]
    if long:
        for name, png in comparison_report(long).pictures.items():
            (output / name).write_bytes(png)
    text = [
        "# The paper's recipe",
        f"Mean ± standard deviation over the seeds; {start.devices[0]}, driver {start.driver}, "
        f"jax {start.versions['jax']}, Python {start.versions['python']}. Images per second are the median "
        "epoch's, without evaluation and compilation; compile and whole-run seconds and peak memory are medians of "
        "the runs that were not interrupted. The best epoch is chosen on the test set, as the paper's 91.26 % is.",
        as_markdown([COLUMNS, *(row(group) for group in groups)]),
        *(f"![{name}]({name})" for name in ("accuracy.png", "loss.png") if long),
        "Last epoch, accuracy by class in percent; the paper's Table 1 has the mean "
        f"{100 * PAPER_TABLE_MEAN:.2f}:",
        as_markdown(class_rows(long)),
    ]
    (output / "README.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print(text[2])


def row(group: RunGroup) -> tuple[str, ...]:
    """A group's row of the table, under COLUMNS."""
    whole = [
        history.starts[0]
        for history in group.histories
        if len(history.starts) == 1 and len(history.epochs) == history.config.epochs
    ]
    epochs = [record for history in group.histories for record in history.epochs]

    def median(values: Sequence[float | None], scale: float = 1.0) -> str:
        known = [value / scale for value in values if value is not None]
        return f"{statistics.median(known):,.0f}" if known else "-"

    return (
        group.name,
        str(len(group.histories)),
        "/".join(sorted({str(len(history.epochs)) for history in group.histories})),
        mean_and_spread(group.best_accuracies("test"), 100),
        mean_and_spread(group.last_accuracies("test"), 100),
        median([record.images_per_second for record in epochs]),
        median([start.compile_seconds for start in whole]),
        median([start.seconds for start in whole]),
        median([start.peak_device_bytes for start in whole], 2**20),
    )


def class_rows(groups: list[RunGroup]) -> list[tuple[str, ...]]:
    """A header, and a row for each class with the groups' accuracies."""
    evaluations = [
        [record for history in group.histories if (record := history.workdir.evaluation())]
        for group in groups
    ]
    names = groups[0].histories[0].plan.info.class_names if groups else ()
    rows = [("class", *(group.name for group in groups))]
    for name in names:
        found = [[record.per_class_accuracy[name] for record in each] for each in evaluations]
        known = [[accuracy for accuracy in each if accuracy is not None] for each in found]
        rows.append((name, *(mean_and_spread(accuracies, 100) for accuracies in known)))
    return rows


if __name__ == "__main__":
    run_command(main)
