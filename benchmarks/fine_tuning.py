"""What fine-tuning brings with few pictures, and what a step with frozen stages costs.

    python benchmarks/fine_tuning.py --output results/fine_tuning

A network learns scikit-learn's digits 0 to 4. From its weights, others learn the digits 5 to 9 from ten pictures of
each, with none, three or all four stages frozen, beside some that begin with random weights; all by the settings of
configs/digits.toml. Then train steps of configs/cpu.toml are timed in turns, by CPU time, with its first stages frozen.
Runs that are done are not done again.
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from jaxresnet.config.files import dump_config, find_config, load_config
from jaxresnet.data.batches import zero_batch
from jaxresnet.data.sources import open_source
from jaxresnet.errors import UserError, run_command
from jaxresnet.fit import fit
from jaxresnet.learning.learner import make_hyperparameters, make_learner, random_key
from jaxresnet.learning.state import make_init
from jaxresnet.learning.step import make_train_step
from jaxresnet.machine.devices import replicated, shard_batch, start_devices
from jaxresnet.machine.environment import describe_environment
from jaxresnet.machine.workarounds import own_process
from jaxresnet.network.cpu_convolution import convolution_for
from jaxresnet.plan import resolve
from jaxresnet.reporting.tables import as_markdown, mean_and_spread
from jaxresnet.runs.files import write_json, write_whole
from jaxresnet.runs.workdir import Workdir
from jaxresnet.sweep import sweep

PICTURES, EPOCHS, BATCH_SIZE = 10, 20, 10
STARTS = {"random": None, "fine_tuned": 0, "three_stages_frozen": 3, "head_alone": 4}
"""The ways to begin: the number of frozen stages; None for random weights."""
FROZEN = (0, 1, 2, 3, 4)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--workdir", type=Path, default=Path("runs/fine_tuning"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--rounds", type=int, default=15, help="train steps of each kind")
    args = parser.parse_args(argv)
    own_process()
    mesh = start_devices("cpu", 2)
    accuracies = train_all(args.workdir.absolute(), args.seeds)
    seconds = time_steps(mesh, args.rounds)
    start = describe_environment(mesh, "float32", ["python", "benchmarks/fine_tuning.py", *argv])
    args.output.mkdir(parents=True, exist_ok=True)
    record = {"accuracies": accuracies, "cpu_seconds_of_a_step": seconds}
    machine = {"cpu": start.cpu, "cpu_flags": start.cpu_flags, "versions": start.versions}
    write_json(args.output / "fine_tuning.json", record | machine)
    text = page(accuracies, seconds, f"{start.cpu}, {start.cpu_cores} cores, jax {start.versions['jax']}")
    write_whole(args.output / "README.md", text)
    print(text)


def draw_folders(workdir: Path) -> tuple[Path, Path]:
    """Folders with the digits 0 to 4, and 5 to 9, as pictures of 32 x 32. A fifth of each class is for the test."""
    import sklearn.datasets

    digits: Any = sklearn.datasets.load_digits()
    folders = workdir / "low", workdir / "high"
    for digit in range(10):
        indices = np.flatnonzero(digits.target == digit)
        cut = len(indices) - len(indices) // 5
        train = indices[: cut if digit < 5 else PICTURES]
        for part, chosen in (("train", train), ("test", indices[cut:])):
            place = folders[digit >= 5] / part / f"digit {digit}"
            place.mkdir(parents=True, exist_ok=True)
            for index in chosen:
                pixels = np.round(digits.images[index] * 255 / 16).astype(np.uint8)
                Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(
                    place / f"{index}.png"
                )
    return folders


def train_all(workdir: Path, seeds: Sequence[int]) -> dict[str, list[float]]:
    """The test accuracy (0 to 1) after the last step of each way to begin, by seed."""
    low, high = draw_folders(workdir)
    digits, configs = load_config(find_config("digits")), workdir / "configs"
    digits = digits.replace({"data.name": "folder"})
    source = workdir / "source"
    fit(digits.replace({"data.dir": str(low), "epochs": 12}), source)
    configs.mkdir(exist_ok=True)
    for name, frozen in STARTS.items():
        settings = {"data.dir": str(high), "epochs": EPOCHS, "batch_size": BATCH_SIZE}
        if frozen is not None:
            settings |= {"init": str(source), "freeze_stages": frozen}
        write_whole(configs / f"{name}.toml", dump_config(digits.replace(settings)))
    failed = sweep([configs / f"{name}.toml" for name in STARTS], seeds, workdir / "runs", device="cpu")
    if failed:
        raise UserError("\n".join(f"{path}: {said}" for path, said in failed.items()))
    found: dict[str, list[float]] = {}
    for name in STARTS:
        records = [Workdir(workdir / "runs" / name / f"seed{seed}").evaluation() for seed in seeds]
        found[name] = [record.accuracy for record in records if record]
    return found


def time_steps(mesh: Mesh, rounds: int) -> dict[int, float]:
    """The median CPU seconds of a train step of configs/cpu.toml, by the number of frozen stages."""
    config = load_config(find_config("cpu"))
    info = open_source(config.data).outline
    steps, states, times = {}, {}, {frozen: list[float]() for frozen in FROZEN}
    for frozen in FROZEN:
        plan = resolve(config.replace({"init": "any", "freeze_stages": frozen}), info)
        learner = make_learner(plan, convolution_for(mesh))
        batch = shard_batch(mesh, zero_batch(plan.config, info.image_shape))
        init = jax.jit(make_init(learner), out_shardings=replicated(mesh))
        step = jax.jit(make_train_step(learner), out_shardings=replicated(mesh), donate_argnums=1)
        states[frozen] = init(random_key(0))
        hyperparameters = make_hyperparameters(plan)
        steps[frozen] = lambda state, step=step, batch=batch, given=hyperparameters: step(given, state, batch)
    for number in range(rounds + 1):
        for frozen, step in steps.items():
            began = time.process_time()
            states[frozen], _ = step(states[frozen])
            jax.block_until_ready(states[frozen])
            if number:  # the first one compiles
                times[frozen].append(time.process_time() - began)
    return {frozen: statistics.median(each) for frozen, each in times.items()}


def page(accuracies: Mapping[str, Sequence[float]], seconds: Mapping[int, float], machine: str) -> str:
    rows: list[tuple[str, ...]] = [
        ("begins with", "runs", "test accuracy (%)", "difference by seed", "standard error")
    ]
    for name, each in accuracies.items():
        differences = [100 * (ours - theirs) for ours, theirs in zip(each, accuracies["random"], strict=True)]
        mean = statistics.mean(differences)
        several = len(differences) > 1  # of one alone there is no standard error
        error = f"{statistics.stdev(differences) / len(differences) ** 0.5:.2f}" if several else ""
        against = ("", "") if name == "random" else (f"{mean:+.2f}", error)
        rows.append((name.replace("_", " "), str(len(each)), mean_and_spread(each, 100), *against))
    costs = [("frozen stages", "CPU seconds", "to none")]
    costs += [(str(n), f"{each:.3f}", f"{each / seconds[0]:.2f}") for n, each in seconds.items()]
    return f"""# Fine-tuning

{machine}. Made by `python benchmarks/fine_tuning.py --output results/fine_tuning`.

## With few pictures

{PICTURES} training pictures of each of the digits 5 to 9, 177 for the test, {EPOCHS} epochs; the weights are of a
network that knows the digits 0 to 4. Mean ± standard deviation over the seeds.

{as_markdown(rows)}

## What frozen stages save

A train step of `configs/cpu.toml`, medians of steps in turns.

{as_markdown(costs)}
"""


if __name__ == "__main__":
    run_command(main)
