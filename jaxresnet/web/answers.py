"""What a trained network tells about a picture, and what there is to tell about the network, without a page."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxresnet.data.pictures import Fit, read_picture
from jaxresnet.data.sources import reopen_source
from jaxresnet.data.splits import load_split
from jaxresnet.errors import UserError
from jaxresnet.reporting.text import interval_of, one_line
from jaxresnet.runs.records import EvaluationRecord, read_evaluation
from jaxresnet.runs.workdir import Workdir
from jaxresnet.trained.load import TrainedNetwork
from jaxresnet.trained.shipped import find_network

MOST_EXAMPLES = 20
"""As many examples as fit on the page."""

SHOWN_PIXELS = 256
"""The smaller side of an enlarged image has at least as many pixels."""


@dataclass(frozen=True)
class Answer:
    """A network's answer for one picture.

    `probabilities` has an entry for each class, in their order. `seen` is the image that the network was given,
    enlarged: uint8 [kH, kW, 3], or [kH, kW] if it is grey.
    """

    probabilities: dict[str, float]
    seen: np.ndarray


class Example(NamedTuple):
    """An image of the test split, uint8 [H, W, 3] or [H, W], and the name of its true class."""

    image: np.ndarray
    true_class: str


def answer(network: TrainedNetwork, path: Path, fit: Fit) -> Answer:
    """The network's answer for the picture in a file. Raises UserError as `read_picture` does."""
    image = read_picture(path, network.info.image_shape, fit)
    [probabilities] = np.asarray(network.probabilities(image[None])).tolist()
    return Answer(dict(zip(network.class_names, probabilities, strict=True)), enlarged(image))


def enlarged(image: np.ndarray) -> np.ndarray:
    """An image, uint8 [H, W, C], with each pixel as a square, as `drawable`.

    >>> enlarged(np.zeros((32, 16, 3), np.uint8)).shape
    (512, 256, 3)
    """
    times = -(-SHOWN_PIXELS // min(image.shape[:2]))
    return drawable(image.repeat(times, axis=0).repeat(times, axis=1))


def drawable(image: np.ndarray) -> np.ndarray:
    """An image, [H, W, C], as libraries draw it: without the last axis if C is 1."""
    return image[..., 0] if image.shape[2] == 1 else image


def find_examples(network: TrainedNetwork, directory: str = "") -> list[Example]:
    """The first image of each class in the test split, of MOST_EXAMPLES classes at most.

    The data set is looked for as `reopen_source` does, and not downloaded. Raises UserError if it is not there, is
    damaged, or is not the one that the network was trained on.
    """
    source = reopen_source(network.config, directory)
    if not source.at_hand:
        raise UserError(
            f"{network.info.name} is not on this machine: --data.dir or TFDS_DATA_DIR may name its folder"
        )
    images, labels = load_split(source, "test", expected=network.info)
    first = {int(label): position for position, label in reversed(list(enumerate(labels)))}
    return [
        Example(drawable(images[first[label]]), network.class_names[label])
        for label in sorted(first)[:MOST_EXAMPLES]
    ]


def known_evaluation(name: Path | str, network: TrainedNetwork, *, average: bool) -> EvaluationRecord | None:
    """The evaluation of just these weights that is kept in the folder of their run, which `name` means.

    None if there is none, as for a file of weights. Raises UserError if its file is damaged.
    """
    path = find_network(name)
    if path.is_dir():
        for checkpoint in (network.checkpoint, "latest"):
            record = read_evaluation(Workdir(path).evaluation_path(checkpoint, average=average))
            if record and (record.step, record.average) == (network.step, average):
                return record
    return None


def network_name(name: Path | str) -> str:
    """A short printable name: that of a run's folder, of a file without its suffix, or of shipped weights."""
    path = Path(name).resolve()
    return one_line(path.stem if path.suffix == ".safetensors" else path.name)


def facts_of(network: TrainedNetwork, record: EvaluationRecord | None) -> list[str]:
    """What is known about a network, in short phrases; `record` is its evaluation."""
    height, width, channels = network.info.image_shape
    facts = [
        f"{network.parameters:,} parameters",
        f"{network.info.classes} classes of {one_line(network.info.name)}",
        f"sees {width}x{height} pixels{', grey' if channels == 1 else ''}",
    ]
    if record:
        chosen = f"; chosen on the {network.selected_on} split" if network.selected_on else ""
        interval = interval_of(record.accuracy, record.examples)
        facts.insert(0, f"test accuracy {record.accuracy:.2%} ({interval}{chosen})")
    return facts


def warm_up(network: TrainedNetwork) -> None:
    """Compile what `answer` needs, so that the first picture need not wait."""
    network.probabilities(np.zeros((1, *network.info.image_shape), np.uint8)).block_until_ready()
