"""What training costs: images per second and memory against batch size, width, devices and epochs.

    python benchmarks/cost_curves.py --output results/speed/curves

Each point is a process of its own, so that its peak memory is its own: it compiles the paper's train step with one
setting changed, on a CPU, and takes steps for some seconds. The epochs are those of a run of configs/digits.toml.
Writes README.md, curves.png and curves.json.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jaxresnet.comparison import as_markdown
from jaxresnet.config import Config, load_config
from jaxresnet.memory import use_huge_pages
from jaxresnet.workdir import write_json

ROOT = Path(__file__).parent.parent
USUAL = {"batch": 128, "width": 1.0, "devices": 2}
CURVES = {
    "batch": [16, 32, 64, 128, 256, 512],
    "width": [1 / 8, 1 / 4, 1 / 2, 1.0],
    "devices": [1, 2, 4],
}
LABELS = {"batch": "batch size", "width": "width, of the paper's", "devices": "virtual devices"}


def setting(batch: int, width: float, devices: int) -> Config:
    """The paper's configuration with these three."""
    fields = load_config(ROOT / "configs" / "paper.toml").model_dump()
    model = fields["model"]
    fields["model"] = model | {
        "stem_channels": int(width * model["stem_channels"]),
        "stage_channels": [int(width * channels) for channels in model["stage_channels"]],
    }
    return Config.model_validate(fields | {"batch_size": batch, "cpu_devices": devices})


def measure(config: Config, seconds: float) -> dict[str, float]:
    """One point, in this process."""
    import jax
    from speed import jax_contender

    from jaxresnet.runtime import quiet_libraries, start_devices

    quiet_libraries()
    contender = jax_contender(config, config.precision, start_devices("cpu", config.cpu_devices))
    contender.train(1)
    times, began = [], time.perf_counter()
    while time.perf_counter() - began < seconds or len(times) < 3:
        start = time.perf_counter()
        contender.train(1)
        times.append(time.perf_counter() - start)
    return {
        "images_per_second": config.batch_size / statistics.median(times),
        "seconds_per_step": statistics.median(times),
        "compile_seconds": contender.facts["compile_seconds"],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "devices": jax.local_device_count(),
    }


def epochs_of_a_run(output: Path) -> list[dict[str, float]]:
    """Seconds, images per second and resident memory of each epoch of the digits, as it ends."""
    command = ["-m", "jaxresnet.train", "--config", str(ROOT / "configs" / "digits.toml"), "--device", "cpu"]
    rows = []
    with subprocess.Popen(
        [sys.executable, *command, "--workdir", str(output)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("epoch"):
                status = Path(f"/proc/{process.pid}/status").read_text()
                rows.append({"resident_mib": int(status.partition("VmRSS:")[2].split()[0]) / 1024})
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [
        row | {"images_per_second": record["images_per_second"]}
        for row, record in zip(rows, records, strict=True)
    ]


def draw(results: dict[str, Any], file: Path) -> None:
    """Rates above, memory below, a column for each thing that changes."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(13, 5.5), layout="constrained", sharex="col")
    for column, (name, label) in enumerate(LABELS.items()):
        rows = results[name]
        for row, key in enumerate(("images_per_second", "peak_mib")):
            axes[row, column].plot([each[name] for each in rows], [each[key] for each in rows], "o-")
            axes[row, column].set_xscale("log", base=2)
            axes[row, column].set_xticks([each[name] for each in rows], [f"{each[name]:g}" for each in rows])
        axes[1, column].set_xlabel(label)
    epochs = range(1, len(results["epochs"]) + 1)
    for row, key in enumerate(("images_per_second", "resident_mib")):
        axes[row, 3].plot(epochs, [each[key] for each in results["epochs"]], "o-")
    axes[1, 3].set_xlabel("epoch (digits)")
    axes[0, 0].set_ylabel("images/s")
    axes[1, 0].set_ylabel("MiB")
    for axis in axes.flat:
        axis.set_ylim(0, 1.1 * max(line.get_ydata().max() for line in axis.lines))
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


def report(results: dict[str, Any]) -> str:
    """The table under the figure."""
    table = [("", "images/s", "seconds a step", "peak MiB of the process", "seconds to compile")]
    for name, label in LABELS.items():
        for row in results[name]:
            table.append(
                (
                    f"{label} {row[name]:g}",
                    f"{row['images_per_second']:.3g}",
                    f"{row['seconds_per_step']:.3g}",
                    f"{row['peak_mib']:,.0f}",
                    f"{row['compile_seconds']:.1f}",
                )
            )
    environment = results["environment"]
    return "\n\n".join(
        [
            "# What training costs",
            f"{environment['cpu']}, {environment['cpu_cores']} cores; jax {environment['versions']['jax']}; the "
            "paper's network in float32 with batches of 128 on two virtual devices but for what is named; made by "
            "`python benchmarks/cost_curves.py`.",
            "![images per second and memory against batch size, width, devices and epochs](curves.png)",
            as_markdown(table),
        ]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each point")
    parser.add_argument("--one", help="batch,width,devices: print this point as JSON")
    args = parser.parse_args()
    if args.one:
        batch, width, devices = args.one.split(",")
        print(json.dumps(measure(setting(int(batch), float(width), int(devices)), args.seconds)))
        return
    if args.output is None:
        parser.error("expected --output")
    from jaxresnet.runtime import describe_environment, start_devices

    args.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "environment": describe_environment(start_devices("cpu", 2), "float32", sys.argv)
    }
    points: dict[str, dict[str, float]] = {}
    for name, values in CURVES.items():
        results[name] = []
        for value in values:
            point = ",".join(map(str, (USUAL | {name: value}).values()))
            if point not in points:
                command = [sys.executable, __file__, "--one", point, "--seconds", str(args.seconds)]
                out = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ
                ).stdout
                points[point] = json.loads(out.splitlines()[-1])
            results[name].append(points[point] | {name: value})
            print(name, results[name][-1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        results["epochs"] = epochs_of_a_run(Path(folder))
    write_json(args.output / "curves.json", results)
    draw(results, args.output / "curves.png")
    (args.output / "README.md").write_text(report(results) + "\n")


if __name__ == "__main__":
    use_huge_pages()
    main()
