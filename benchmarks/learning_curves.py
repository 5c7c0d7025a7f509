"""Learning curves of JAX and PyTorch side by side: the same network and recipe on the same batches.

    python benchmarks/learning_curves.py --output results/parity

trains the paper's network at a quarter of its width, by configs/paper_coupled.toml, in both frameworks with each
of the seeds, and writes a table (README.md) and a figure. Both take the batches of our pipeline, so they see the
same augmented images in the same order; initial weights and dropout are each framework's own. Runs that are done
are not done again, so it can be stopped and started, or started once for each framework at the same time.
Needs PyTorch, matplotlib and CIFAR-10.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np

from jaxresnet.config import Config, load_config
from jaxresnet.data import evaluation_batches, load_split, train_batches
from jaxresnet.loop import fit
from jaxresnet.optimizer import make_schedule
from jaxresnet.runtime import quiet_libraries
from jaxresnet.workdir import Workdir, write_json

ROOT = Path(__file__).parent.parent
FRAMEWORKS = {"jax": "JAX", "pytorch": "PyTorch"}
FIGURES = {"train_loss": "training loss", "test_loss": "test loss", "test_accuracy": "test accuracy"}


def make_config(seed: int, epochs: int, cpu_devices: int) -> Config:
    """The paper's recipe with PyTorch's weight decay, on a quarter of the width."""
    paper = load_config(ROOT / "configs" / "paper_coupled.toml").model_dump()
    quarter = [channels // 4 for channels in paper["model"]["stage_channels"]]
    paper["model"] |= {"stem_channels": paper["model"]["stem_channels"] // 4, "stage_channels": quarter}
    return Config.model_validate(paper | {"seed": seed, "epochs": epochs, "cpu_devices": cpu_devices})


def train_jax(config: Config, workdir: Path, output: Path) -> None:
    """A run like any other; its folder stays beside the output, so that it resumes."""
    fit(config, workdir, "cpu")
    output.mkdir(parents=True, exist_ok=True)
    for name in ("config.toml", "environment.json", "metrics.jsonl"):
        shutil.copy(workdir / name, output)


def train_pytorch(config: Config, output: Path) -> None:
    """The same run in PyTorch's idiom; writes the same metrics.jsonl."""
    import torch
    from pytorch_twin import ResNet, make_optimizer

    mean = torch.tensor(config.dataset.mean).view(1, 3, 1, 1)
    std = torch.tensor(config.dataset.std).view(1, 3, 1, 1)

    def prepare(image: np.ndarray) -> torch.Tensor:
        return (torch.from_numpy(np.array(image)).permute(0, 3, 1, 2) / 255 - mean) / std

    torch.manual_seed(config.seed)
    network = ResNet(config).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(config, network)
    schedule = make_schedule(config)
    test = load_split(config.data, "test")
    batches = train_batches(config, load_split(config.data, "train"))
    records, step = [], 0
    for epoch in range(1, config.epochs + 1):
        began, loss_sum, correct, count = time.monotonic(), 0.0, 0, 0
        network.train()
        while step < config.steps(epoch):
            batch = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = float(schedule(step))
            labels = torch.tensor(batch.label).long()
            optimizer.zero_grad()
            logits = network(prepare(batch.image))
            loss = torch.nn.functional.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            step += 1
            loss_sum += loss.item() * len(labels)
            correct += (logits.argmax(1) == labels).sum().item()
            count += len(labels)
        seconds = time.monotonic() - began
        record = {
            "epoch": epoch,
            "step": step,
            "learning_rate": optimizer.param_groups[0]["lr"],
            "train_loss": loss_sum / count,
            "train_accuracy": correct / count,
        }
        network.eval()
        loss_sum, correct = 0.0, 0
        with torch.no_grad():
            for batch in evaluation_batches(test, config.batch_size):
                labels = torch.tensor(batch.label[batch.mask]).long()
                logits = network(prepare(batch.image[batch.mask]))
                loss_sum += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
                correct += (logits.argmax(1) == labels).sum().item()
        record |= {"test_loss": loss_sum / len(test.labels), "test_accuracy": correct / len(test.labels)}
        records.append(record | {"seconds": round(seconds, 3)})
        print("pytorch, seed", config.seed, records[-1], flush=True)
    output.mkdir(parents=True, exist_ok=True)
    write_json(
        output / "environment.json", [{"torch": torch.__version__, "threads": torch.get_num_threads()}]
    )
    (output / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def summarise(output: Path) -> None:
    """Write the table and the figure of the runs that are there, if both frameworks have some."""
    curves = {}
    for framework in FRAMEWORKS:
        runs = [
            Workdir(path.parent).metrics() for path in sorted(output.glob(f"{framework}_*/metrics.jsonl"))
        ]
        if not runs:
            return
        curves[framework] = {key: np.array([[e[key] for e in run] for run in runs]) for key in FIGURES}
    lines = [
        "# Learning curves in JAX and PyTorch",
        "",
        "The paper's network at a quarter of its width (316,498 parameters), the paper's recipe with coupled weight",
        "decay, CIFAR-10, the same batches in both frameworks; initial weights and dropout are each framework's",
        "own. Mean ± standard deviation over "
        f"{' and '.join(str(len(curves[f]['test_loss'])) for f in FRAMEWORKS)} seeds; the last column is the "
        "difference of the means in",
        "units of its standard error. Made by `python benchmarks/learning_curves.py --output results/parity`.",
        "",
        "| | epoch | JAX | PyTorch | difference | / standard error |",
        "|---|---|---|---|---|---|",
    ]
    for key, title in FIGURES.items():
        ours, theirs = curves["jax"][key], curves["pytorch"][key]
        for epoch in range(ours.shape[1]):
            cells, means, errors = [], [], []
            for values in (ours[:, epoch], theirs[:, epoch]):
                scale, digits = (100, 2) if "accuracy" in key else (1, 4)
                spread = values.std(ddof=1) if len(values) > 1 else float("nan")
                cells.append(f"{scale * values.mean():.{digits}f} ± {scale * spread:.{digits}f}")
                means.append(scale * values.mean())
                errors.append((scale * spread) ** 2 / len(values))
            difference = means[0] - means[1]
            cells += [f"{difference:+.{digits}f}", f"{difference / np.sqrt(sum(errors)):+.1f}"]
            unit = " (%)" if "accuracy" in key else ""
            lines.append(f"| {title}{unit} | {epoch + 1} | {' | '.join(cells)} |")
    (output / "README.md").write_text("\n".join([*lines, "", "![curves](curves.png)", ""]))

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(FIGURES), figsize=(12, 3.6), layout="constrained")
    for axis, (key, title) in zip(axes, FIGURES.items(), strict=True):
        for framework, style in zip(FRAMEWORKS, ("-", "--"), strict=True):
            values = curves[framework][key]
            epochs = np.arange(1, values.shape[1] + 1)
            (line,) = axis.plot(epochs, values.mean(0), style, marker="o", label=FRAMEWORKS[framework])
            axis.fill_between(epochs, values.min(0), values.max(0), color=line.get_color(), alpha=0.2)
        axis.set(title=title, xlabel="epoch", xticks=epochs)
        axis.grid(alpha=0.3)
    axes[0].legend(title=f"mean and range,\n{len(values)} seeds")
    figure.savefig(output / "curves.png", dpi=120)
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--workdirs", type=Path, default=Path("runs/parity"), help="folder of the JAX runs")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--frameworks", nargs="+", choices=list(FRAMEWORKS), default=list(FRAMEWORKS))
    parser.add_argument("--cpu-devices", type=int, default=1, help="virtual devices of JAX's CPU backend")
    args = parser.parse_args()
    quiet_libraries()
    for seed in args.seeds:
        config = make_config(seed, args.epochs, args.cpu_devices)
        for framework in args.frameworks:
            name = f"{framework}_seed{seed}"
            output = args.output / name
            if (output / "metrics.jsonl").exists():
                continue
            if framework == "jax":
                train_jax(config, args.workdirs / name, output)
            else:
                train_pytorch(config, output)
    summarise(args.output)


if __name__ == "__main__":
    main()
