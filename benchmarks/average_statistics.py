"""BatchNorm statistics for an average of the weights: the average of the statistics, against computing them anew.

    python benchmarks/average_statistics.py runs/recipes/recipe/seed0 runs/recipes/recipe/seed1 --output FILE.json

A run with `optimizer.ema_decay` averages the statistics as it averages the weights. The other way sets each of them to
the mean over training batches, as the averaged weights see them. Both are evaluated on the validation split, or on the
test split if the run held nothing out.
"""

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxresnet.data.batches import train_batches
from jaxresnet.data.sources import reopen_source
from jaxresnet.data.splits import load_splits
from jaxresnet.errors import UserError, run_command
from jaxresnet.learning.learner import make_learner
from jaxresnet.learning.state import Variables
from jaxresnet.learning.step import preprocess
from jaxresnet.machine.devices import shard_batch, start_devices
from jaxresnet.machine.workarounds import own_process
from jaxresnet.network.cpu_convolution import convolution_for
from jaxresnet.reporting.tables import as_markdown
from jaxresnet.runs.files import write_json
from jaxresnet.trained.evaluation import evaluate_whole
from jaxresnet.trained.load import TrainedNetwork, load_run

MOMENTUM = 0.9
"""That of the network's BatchNorm: the new running statistics of a step are 0.9 * old + 0.1 * the batch's."""


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs that keep an average")
    parser.add_argument("--batches", type=int, default=100, help="number of training batches (default: 100)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file to write")
    args = parser.parse_args(argv)
    own_process()
    # One device: among several of a CPU, steps that are not waited for can block each other.
    mesh = start_devices("auto", 1)
    found = {"/".join(run.resolve().parts[-2:]): compare(run, args.batches, mesh) for run in args.runs}
    rows = [("run", *next(iter(found.values())))]
    rows += [(run, *(f"{value:.2%}" for value in values.values())) for run, values in found.items()]
    print(as_markdown(rows))
    if args.output:
        write_json(args.output, found)


def compare(run: Path, batches: int, mesh: Mesh) -> dict[str, float]:
    """The accuracies (0 to 1) of the weights, of their average, and of the average with computed statistics."""
    raw, average = load_run(run, mesh=mesh), load_run(run, mesh=mesh, average=True)
    config = raw.config.replace({"resolution.sizes": (), "resolution.shares": ()})
    if config.freeze_stages:
        raise UserError(
            f"{run}: expected a run without frozen stages, whose statistics are not of its batches"
        )
    name = "validation" if config.data.validation_examples else "test"
    splits = load_splits(reopen_source(config), {"train", name}, config.data.validation_examples)
    images = [batch.image for batch in islice(train_batches(config, splits["train"]), batches)]
    computed = average.variables | {"batch_stats": mean_statistics(average, images)}
    learner = make_learner(raw.plan, convolution_for(mesh))

    def accuracy(variables: Variables) -> float:
        return evaluate_whole(learner, variables, splits[name], config.batch_size, mesh).accuracy

    variants = {"weights": raw.variables, "average": average.variables, "average, computed anew": computed}
    return {words: accuracy(variables) for words, variables in variants.items()}


def mean_statistics(network: TrainedNetwork, images: Sequence) -> dict:
    """The means over batches of uint8 images [B, H, W, C] of each layer's batch statistics."""
    model = make_learner(network.plan, convolution_for(network.mesh)).model
    zeros = jax.tree.map(jnp.zeros_like, network.variables["batch_stats"])

    @jax.jit
    def add(total: dict, batch: jax.Array) -> dict:
        variables = network.variables | {"batch_stats": zeros}
        _, new = model.apply(
            variables,
            preprocess(network.info, batch),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return jax.tree.map(lambda t, n: t + n / (1 - MOMENTUM), total, new["batch_stats"])

    total = zeros
    for batch in images:
        total = add(total, shard_batch(network.mesh, batch))
    return jax.tree.map(lambda t: t / len(images), total)


if __name__ == "__main__":
    run_command(main)
