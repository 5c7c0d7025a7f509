"""Make the files of weights that are shipped with the package, from a run on CIFAR-10:

    python benchmarks/ship_weights.py runs/paper --name paper
    python benchmarks/ship_weights.py runs/paper --checkpoint best --name paper_best

NAME.safetensors has the kernels in float16. NAME.md is its model card, with the accuracy of the file itself on all test
images and with what the rounding changed. NAME.npz holds what a test compares: `indices` int32 [500] of test images and
the `classes` uint8 [500] predicted of them, and `images` uint8 [8, 32, 32, 3] that are drawn, with their `logits`
float32 [8, 10], for a machine without CIFAR-10.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import jaxresnet
from jaxresnet.data.sources import reopen_source
from jaxresnet.data.splits import Split, load_split
from jaxresnet.errors import run_command
from jaxresnet.exporting.huggingface import model_card
from jaxresnet.exporting.origin import find_origin
from jaxresnet.exporting.request import Request
from jaxresnet.exporting.writing import export
from jaxresnet.learning.learner import make_learner
from jaxresnet.learning.metrics import Metrics
from jaxresnet.machine.devices import start_devices
from jaxresnet.machine.workarounds import own_process
from jaxresnet.network.cpu_convolution import convolution_for
from jaxresnet.runs.files import write_whole
from jaxresnet.trained.evaluation import metrics_of_logits, predict_split
from jaxresnet.trained.load import TrainedNetwork, load_network

COMPARED, DRAWN, BATCH = 500, 8, 200

USE = """```python
import jaxresnet

network = jaxresnet.load("{name}")
```

or as `{name}` in every command: `python -m jaxresnet.predict {name} photo.jpg`, `python -m jaxresnet.evaluate {name}`,
`python -m jaxresnet.train --init {name}`."""


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--checkpoint", default="latest", help="latest, best or a step (default: latest)")
    parser.add_argument("--average", action="store_true", help="the average of the weights")
    parser.add_argument("--name", required=True, help="of the files, and of the weights in every command")
    parser.add_argument("--output", type=Path, default=Path(jaxresnet.__file__).parent / "pretrained")
    args = parser.parse_args(argv)
    own_process()
    mesh = start_devices("auto", 2)
    original = load_network(args.run, args.checkpoint, mesh, average=args.average)
    request = Request(original, find_origin(args.run, original, average=args.average), half=True)
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / f"{args.name}.safetensors"
    export("safetensors", request, path)

    shipped, test = load_network(path, mesh=mesh), load_split(reopen_source(original.config), "test")
    before, after = (logits_of(network, test) for network in (original, shipped))
    metrics = metrics_of_logits(make_learner(shipped.plan), after, test.labels)
    changed = int((before.argmax(1) != after.argmax(1)).sum())
    right = int((before.argmax(1) == test.labels).sum())
    write_whole(path.with_suffix(".md"), card(request, args.name, metrics, changed, right))
    write_examples(path.with_suffix(".npz"), shipped, after)
    print(f"{path}: {path.stat().st_size:,} bytes, {metrics.accuracy:.2%}, {changed} predictions changed")


def logits_of(network: TrainedNetwork, split: Split) -> np.ndarray:
    learner = make_learner(network.plan, convolution_for(network.mesh))
    return predict_split(learner, network.variables, split, BATCH, network.mesh)


def card(request: Request, name: str, metrics: Metrics, changed: int, right: int) -> str:
    """The model card, with the accuracy of the file; `right` of the test images are right in the run's own float32."""
    info, examples = request.network.info, metrics.count
    origin = dataclasses.replace(
        request.origin,
        split="test",
        accuracy=metrics.accuracy,
        examples=examples,
        per_class_accuracy=dict(zip(info.class_names, metrics.per_class_accuracy, strict=True)),
    )
    rounding = (
        f"The kernels are rounded to float16, all else is float32. The class of {changed} of the {examples:,} test "
        f"images is another than with the run's own weights, which classify {right:,} of them correctly; the rounded "
        f"ones, {round(metrics.accuracy * examples):,}."
    )
    return model_card(
        Request(request.network, origin), name, USE.format(name=name), [rounding], licence="mit"
    )


def write_examples(path: Path, network: TrainedNetwork, logits: np.ndarray) -> None:
    """Write what a test compares; `logits` are those of all test images."""
    indices = np.sort(np.random.default_rng(0).choice(len(logits), COMPARED, replace=False)).astype(np.int32)
    images = draw_images(*network.info.image_shape)
    np.savez_compressed(
        path,
        indices=indices,
        classes=logits[indices].argmax(1).astype(np.uint8),
        images=images,
        logits=np.asarray(network.predict(images)),
    )


def draw_images(height: int, width: int, channels: int) -> np.ndarray:
    """Discs and stripes in random colours on a sloped ground, uint8 [DRAWN, H, W, C]."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width][..., None] / max(height, width)
    images = []
    for number in range(DRAWN):
        ground, ink = random.uniform(0, 255, (2, channels))
        centre, size = random.uniform(0.3, 0.7, 2), random.uniform(0.15, 0.35)
        disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < size**2
        stripes = np.sin(2 * np.pi * (x + y) / size) > 0
        images.append(np.where(stripes if number % 2 else disc, ink, ground * (0.5 + y / 2)))
    return np.array(images).astype(np.uint8)


if __name__ == "__main__":
    run_command(main)
