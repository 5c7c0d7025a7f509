"""What training costs: images per second and memory against batch size, width, devices and epochs.

    python benchmarks/cost_curves.py --output results/speed/curves

Each point is a process of its own, so that its peak memory is its own: it compiles the paper's train step with one
setting changed, on a CPU, and takes steps for some seconds. The epochs are those of a run of configs/digits.toml.
Writes README.md, curves.png and curves.json.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxresnet.config.files import find_config, load_config
from jaxresnet.data.sources import open_source
from jaxresnet.errors import UserError, run_command
from jaxresnet.machine.huge_pages import use_huge_pages
from jaxresnet.plan import Plan, resolve
from jaxresnet.reporting.tables import as_markdown
from jaxresnet.runs.files import to_json, write_json
from jaxresnet.runs.workdir import Workdir

ROOT = Path(__file__).parent.parent
USUAL: dict[str, float] = {"batch": 128, "width": 1.0, "devices": 2}
CURVES: dict[str, list[float]] = {
    "batch": [16, 32, 64, 128, 256, 512],
    "width": [1 / 8, 1 / 4, 1 / 2, 1.0],
    "devices": [1, 2, 4],
}
LABELS = {"batch": "batch size", "width": "width, of the paper's", "devices": "virtual devices"}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each point")
    parser.add_argument("--one", help="batch,width,devices: print this point as JSON")
    args = parser.parse_args(argv)
    from jaxresnet.machine.workarounds import own_process

    own_process()
    if args.one:
        batch, width, devices = args.one.split(",")
        print(json.dumps(measure(setting(int(batch), float(width), int(devices)), args.seconds)))
    elif args.output is None:
        parser.error("expected --output")
    else:
        write_curves(args.output, args.seconds)


def setting(batch: int, width: float, devices: int) -> Plan:
    """The plan of the paper's configuration with these three."""
    paper = load_config(find_config("paper"))
    config = paper.replace(
        {
            "batch_size": batch,
            "cpu_devices": devices,
            "model.stem_channels": int(width * paper.model.stem_channels),
            "model.stage_channels": [int(width * channels) for channels in paper.model.stage_channels],
        }
    )
    return resolve(config, open_source(config.data).info)


def measure(plan: Plan, seconds: float) -> dict[str, float]:
    """One point, in this process."""
    from speed_parts.steps import jax_contender

    from jaxresnet.machine.devices import start_devices
    from jaxresnet.network.cpu_convolution import convolution_for

    mesh = start_devices("cpu", plan.config.cpu_devices)
    contender = jax_contender(plan, mesh, convolution_for(mesh))
    contender.train(1)
    times, began = [], time.perf_counter()
    while time.perf_counter() - began < seconds or len(times) < 3:
        start = time.perf_counter()
        contender.train(1)
        times.append(time.perf_counter() - start)
    return {
        "images_per_second": plan.config.batch_size / statistics.median(times),
        "seconds_per_step": statistics.median(times),
        "compile_seconds": contender.facts["compile_seconds"],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "devices": mesh.devices.size,
    }


def write_curves(output: Path, seconds: float) -> None:
    """Measure every point and the epochs, and write all files."""
    from jaxresnet.machine.devices import start_devices
    from jaxresnet.machine.environment import describe_environment

    output.mkdir(parents=True, exist_ok=True)
    environment = describe_environment(start_devices("cpu", 2), "float32", sys.argv)
    results: dict[str, Any] = {"environment": to_json(environment)}
    points: dict[str, dict[str, float]] = {}
    for name, values in CURVES.items():
        results[name] = []
        for value in values:
            point = ",".join(map(str, (USUAL | {name: value}).values()))
            if point not in points:
                points[point] = measure_apart(point, seconds)
            results[name].append(points[point] | {name: value})
            print(name, results[name][-1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        results["epochs"] = epochs_of_a_run(Path(folder, "digits"))
    write_json(output / "curves.json", results)
    draw(results, output / "curves.png")
    (output / "README.md").write_text(report(results) + "\n")


def measure_apart(point: str, seconds: float) -> dict[str, float]:
    """One point, in a process of its own."""
    command = [sys.executable, __file__, "--one", point, "--seconds", str(seconds)]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def epochs_of_a_run(workdir: Path) -> list[dict[str, float | None]]:
    """Images per second and resident memory of each epoch of the digits, as it ends."""
    command = [sys.executable, "-m", "jaxresnet.train", "--config", "digits", "--device", "cpu"]
    resident: list[float] = []
    with subprocess.Popen(
        [*command, "--workdir", str(workdir)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout or ():
            if line.startswith("epoch") and "  step " not in line:  # the end of an epoch
                status = Path(f"/proc/{process.pid}/status").read_text()
                resident.append(int(status.partition("VmRSS:")[2].split()[0]) / 1024)
    if process.returncode:
        raise UserError(f"the run of the digits ended with exit code {process.returncode}")
    return [
        {"resident_mib": mib, "images_per_second": record.images_per_second}
        for mib, record in zip(resident, Workdir(workdir).epochs.read(), strict=True)
    ]


def draw(results: dict[str, Any], file: Path) -> None:
    """Rates above, memory below, a column for each thing that changes."""
    import matplotlib

    matplotlib.use("Agg")
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


if __name__ == "__main__":
    use_huge_pages()
    run_command(main)
