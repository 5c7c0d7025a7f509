"""Learning curves of JAX and PyTorch side by side: the same network and recipe on the same batches.

    python benchmarks/learning_curves.py --output results/parity

trains the paper's network at a quarter of its width, by configs/paper_coupled.toml, in both frameworks with each
of the seeds, and writes a table (README.md), a figure, and the numbers of both (curves.json). Both take the batches of
our pipeline, so they see the same augmented images in the same order; initial weights and dropout are each framework's
own. The runs are in --workdirs. Those that are done are not done again, so it can be stopped and started, or started
once for each framework at the same time. Needs PyTorch, matplotlib and CIFAR-10.
"""

import argparse
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxresnet.config.files import find_config, load_config
from jaxresnet.config.schema import Config
from jaxresnet.data.sources import open_source
from jaxresnet.errors import run_command
from jaxresnet.plan import resolve
from jaxresnet.reporting.tables import mean_and_spread
from jaxresnet.runs.files import write_json, write_whole
from jaxresnet.runs.workdir import Workdir

if TYPE_CHECKING:
    from jax.sharding import Mesh

FRAMEWORKS = {"jax": "JAX", "pytorch": "PyTorch"}
FIGURES = {"train_loss": "training loss", "test_loss": "test loss", "test_accuracy": "test accuracy"}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--workdirs", type=Path, default=Path("runs/parity"), help="folder of the runs")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--frameworks", nargs="+", choices=list(FRAMEWORKS), default=list(FRAMEWORKS))
    parser.add_argument("--cpu-devices", type=int, default=1, help="virtual devices of JAX's CPU backend")
    args = parser.parse_args(argv)
    from jaxresnet.machine.workarounds import own_process

    own_process()
    from jaxresnet.machine.devices import start_devices

    mesh = start_devices("cpu", args.cpu_devices)
    for seed in args.seeds:
        config = make_config(seed, args.epochs, args.cpu_devices)
        for framework in args.frameworks:
            train(framework, config, args.workdirs / f"{framework}_seed{seed}", mesh)
    curves = collect(args.workdirs, args.epochs)
    if all(curves[framework]["seeds"] for framework in FRAMEWORKS):
        args.output.mkdir(parents=True, exist_ok=True)
        write_json(args.output / "curves.json", curves)
        write_table(curves, args.output / "README.md")
        draw(curves, args.output / "curves.png")


def make_config(seed: int, epochs: int, cpu_devices: int) -> Config:
    """The paper's recipe with PyTorch's weight decay, on a quarter of the width."""
    paper = load_config(find_config("paper_coupled"))
    return paper.replace(
        {
            "seed": seed,
            "epochs": epochs,
            "cpu_devices": cpu_devices,
            "model.stem_channels": paper.model.stem_channels // 4,
            "model.stage_channels": [channels // 4 for channels in paper.model.stage_channels],
        }
    )


def train(framework: str, config: Config, workdir: Path, mesh: "Mesh") -> None:
    """A run in one of the frameworks, unless it is done: JAX's is like any other, and resumes."""
    from jaxresnet.fit import fit

    if framework == "jax":
        fit(config, workdir, mesh)
    elif len(Workdir(workdir).epochs.read()) != config.epochs:
        from pytorch_run import PytorchRun

        lines = []
        for record in PytorchRun(resolve(config, open_source(config.data).info)).epochs():
            print("pytorch, seed", config.seed, record, flush=True)
            lines.append(json.dumps(record.as_json()) + "\n")
        workdir.mkdir(parents=True, exist_ok=True)
        write_whole(workdir / "metrics.jsonl", "".join(lines))


def collect(workdirs: Path, epochs: int) -> dict[str, Any]:
    """The content of curves.json: each framework's runs of that many epochs, by seed, a list of each value by epoch."""
    curves: dict[str, Any] = {}
    for framework in FRAMEWORKS:
        seeds = {}
        for folder in sorted(workdirs.glob(f"{framework}_seed*")):
            records = Workdir(folder).epochs.read()
            if len(records) == epochs:
                values = {key: [getattr(record, key) for record in records] for key in (*FIGURES, "seconds")}
                seeds[folder.name.rpartition("seed")[2]] = values
        curves[framework] = {"version": version(workdirs, framework), "seeds": seeds}
    return curves


def version(workdirs: Path, framework: str) -> str | None:
    """The framework's version: JAX's as its runs have it."""
    if framework == "jax":
        starts = [start for folder in workdirs.glob("jax_seed*") for start in Workdir(folder).starts.read()]
        return starts[-1].versions["jax"] if starts else None
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def values_of(curves: dict[str, Any], framework: str, key: str) -> np.ndarray:
    """A value of all runs of a framework, float64 [seeds, epochs]."""
    return np.array([run[key] for run in curves[framework]["seeds"].values()])


def write_table(curves: dict[str, Any], file: Path) -> None:
    """Write the table, around the figure's link, and print it."""
    counts = [str(len(curves[framework]["seeds"])) for framework in FRAMEWORKS]
    lines = [
        "# Learning curves in JAX and PyTorch",
        "",
        "The paper's network at a quarter of its width (316,498 parameters), the paper's recipe with coupled weight",
        "decay, CIFAR-10, the same batches in both frameworks; initial weights and dropout are each framework's",
        f"own. Mean ± standard deviation over {' and '.join(counts)} seeds; the last column is the difference of the "
        "means in",
        "units of its standard error. Made by `python benchmarks/learning_curves.py --output results/parity` from",
        "the numbers in [curves.json](curves.json).",
        "",
        "| | epoch | JAX | PyTorch | difference | / standard error |",
        "|---|---|---|---|---|---|",
    ]
    for key, title in FIGURES.items():
        ours, theirs = values_of(curves, "jax", key), values_of(curves, "pytorch", key)
        unit, scale, digits = (" (%)", 100, 2) if "accuracy" in key else ("", 1, 4)
        for epoch in range(ours.shape[1]):
            cells = compare(scale * ours[:, epoch], scale * theirs[:, epoch], digits)
            lines.append(f"| {title}{unit} | {epoch + 1} | {' | '.join(cells)} |")
    text = "\n".join([*lines, "", "![curves](curves.png)", ""])
    file.write_text(text, encoding="utf-8")
    print(text)


def compare(ours: np.ndarray, theirs: np.ndarray, digits: int) -> list[str]:
    """The cells of one value: means with their spreads, the difference, and that over its standard error."""
    cells, errors = [], []
    for values in (ours, theirs):
        spread = values.std(ddof=1) if len(values) > 1 else float("nan")
        cells.append(mean_and_spread(list(values), digits=digits))
        errors.append(spread**2 / len(values))
    difference = ours.mean() - theirs.mean()
    ratio = difference / np.sqrt(sum(errors))
    return [*cells, f"{difference:+.{digits}f}", f"{ratio:+.1f}" if np.isfinite(ratio) else ""]


def draw(curves: dict[str, Any], file: Path) -> None:
    """Each value by epoch, both frameworks in one plot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(FIGURES), figsize=(12, 3.6), layout="constrained")
    for axis, (key, title) in zip(axes, FIGURES.items(), strict=True):
        for (framework, name), style in zip(FRAMEWORKS.items(), ("-", "--"), strict=True):
            values = values_of(curves, framework, key)
            epochs = np.arange(1, values.shape[1] + 1)
            (line,) = axis.plot(epochs, values.mean(0), style, marker="o", label=name)
            axis.fill_between(epochs, values.min(0), values.max(0), color=line.get_color(), alpha=0.2)
            axis.set_xticks(epochs)
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
    seeds = len(curves["pytorch"]["seeds"])
    axes[0].legend(title=f"mean and range,\n{seeds} seeds")
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    run_command(main)
