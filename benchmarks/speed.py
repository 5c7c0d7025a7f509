"""Speed on this machine: train step, evaluation, smaller images, convolutions, input pipeline and a run's start.

    python benchmarks/speed.py --output results/speed/cpu

JAX and PyTorch (if installed) train the same network on the same arrays in turns, a round each, so that what else the
machine does falls on all alike; a table gives medians, the range over the rounds, and the share of the rate at which
the device multiplies large matrices in the same process. Writes README.md and speed.json. --config and --batch-size
choose the network; --only steps convolutions ... some of the parts. The parts are in benchmarks/speed_parts.
"""

import argparse
import contextlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxresnet.config.files import find_config, load_config
from jaxresnet.data.sources import open_source
from jaxresnet.errors import run_command
from jaxresnet.machine.huge_pages import use_huge_pages
from jaxresnet.plan import Plan, resolve

if TYPE_CHECKING:
    from jax.sharding import Mesh

PARTS = ("steps", "sizes", "convolutions", "input", "start")


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    changed = {"batch_size": args.batch_size, "cpu_devices": args.cpu_devices}
    config = load_config(args.config).replace({name: value for name, value in changed.items() if value})
    plan = resolve(config, open_source(config.data).info)

    # Here, so that --help and a wrong flag are answered at once.
    from jaxresnet.machine.workarounds import own_process

    own_process()
    from speed_parts.report import report

    from jaxresnet.machine.devices import automatic_cpu_devices, start_devices

    mesh = start_devices(args.device, config.cpu_devices or automatic_cpu_devices(config.batch_size))
    results = facts(args, plan, mesh)
    args.output.mkdir(parents=True, exist_ok=True)
    measures = measurements(args, plan, mesh)
    for part in args.only:
        print("measuring:", part, flush=True)
        results[part] = measures[part]()
        # After each part, so that a stop loses one part at most.
        (args.output / "speed.json").write_text(json.dumps(results, indent=2) + "\n")
        (args.output / "README.md").write_text(report(results))
    print(report(results))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--config", type=find_config, default="paper_coupled")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--cpu-devices", type=int)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each contender in each round")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    return parser.parse_args(argv)


def facts(args: argparse.Namespace, plan: Plan, mesh: "Mesh") -> dict[str, Any]:
    """By what, on what and with what was measured."""
    from jaxresnet.machine.environment import describe_environment
    from jaxresnet.runs.files import to_json

    environment = describe_environment(mesh, "float32", sys.argv)
    versions = {name: environment.versions[name] for name in ("python", "jax", "flax")}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["torch"] = importlib.metadata.version("torch")
    return {
        "command": " ".join(["python", "benchmarks/speed.py", *sys.argv[1:]]),
        "config": args.config.name,
        "batch_size": plan.config.batch_size,
        "environment": to_json(environment),
        "versions": versions,
    }


def measurements(args: argparse.Namespace, plan: Plan, mesh: "Mesh") -> dict[str, Callable[[], Any]]:
    """What measures each of the PARTS."""
    from speed_parts.convolutions import measure_convolutions
    from speed_parts.input import measure_input
    from speed_parts.start import measure_start
    from speed_parts.steps import measure_sizes, measure_steps

    return {
        "steps": lambda: measure_steps(plan, args.precisions, mesh, args.rounds, args.seconds),
        "sizes": lambda: measure_sizes(plan, mesh, args.rounds, args.seconds),
        "convolutions": lambda: measure_convolutions(plan, mesh, min(args.seconds, 0.2)),
        "input": lambda: measure_input(plan.config, args.rounds, args.seconds),
        "start": lambda: measure_start(args.config, plan, args.device),
    }


if __name__ == "__main__":
    use_huge_pages()
    run_command(main)
