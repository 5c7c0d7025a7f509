"""The input pipeline: as it is, without each operation, with each other one, and beside one of single examples."""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxresnet.config.schema import NO_AUGMENTATION, AugmentConfig, Config
from jaxresnet.data.batches import train_batches
from jaxresnet.data.sources import open_source
from jaxresnet.data.splits import Split, load_split
from jaxresnet.machine.workarounds import load_tensorflow
from speed_parts.timing import Repeated, in_turns

PAPERS = ("horizontal_flip", "crop_padding", "rotation_degrees", "brightness")
"""The operations that the paper names: each is left out once."""
OTHERS: dict[str, Any] = {
    "alternating_flip": True,
    "padding": "reflect",
    "trivial_augment": True,
    "cutout": 8,
    "random_erasing": 0.25,
    "mixup": 0.2,
    "cutmix": 1.0,
}
"""The operations that go past the paper: each is added once."""
FAST = {"horizontal_flip": True, "crop_padding": 4, "padding": "reflect", "cutout": 8}
"""What recipes for few epochs use."""
EXAMPLES = 10_000
"""So many examples, as each variant keeps its own copy of them; they are still more than a cache holds."""

BATCHES = 20
"""What is timed at once: several times what a pipeline prepares ahead."""


def variants(config: Config) -> dict[str, Config]:
    """The configurations whose pipelines are measured, the given one first."""
    settings: dict[str, dict[str, Any]] = {"as configured": {}}
    for name in PAPERS:
        settings[f"without {name}"] = {name: NO_AUGMENTATION[f"augment.{name}"]}
    for name, value in OTHERS.items():
        settings[f"and {name} = {value}"] = {"horizontal_flip": True, name: value}
    off = {name.removeprefix("augment."): value for name, value in NO_AUGMENTATION.items()}
    settings["no operation"] = off
    settings["flip, reflected crop, cutout"] = off | FAST
    for name in ("trivial_augment", "mixup", "cutmix"):
        settings[f"flip, reflected crop, cutout, {name}"] = off | FAST | {name: OTHERS[name]}
    return {
        title: config.replace(
            {"epochs": 10_000} | {f"augment.{name}": value for name, value in values.items()}
        )
        for title, values in settings.items()
    }


def measure_input(config: Config, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Images per second of the pipeline and its variants, in turns."""
    whole = load_split(open_source(config.data), "train", validation_examples=0)
    split = Split(whole.images[:EXAMPLES], whole.labels[:EXAMPLES])
    streams: dict[str, Iterator[Any]] = {
        title: train_batches(variant, split) for title, variant in variants(config).items()
    }
    streams["one example at a time, in tf.data"] = example_batches(config, split)
    times = in_turns({name: draw(stream) for name, stream in streams.items()}, rounds, seconds)
    images = BATCHES * config.batch_size
    first = statistics.median(times["as configured"])
    return [
        {
            "pipeline": name,
            "images_per_second": images / statistics.median(values),
            "ratio": f"{first / statistics.median(values):.2f}",
            "microseconds": (statistics.median(values) - first) / images * 1e6,
        }
        for name, values in times.items()
    ]


def draw(stream: Iterator[Any]) -> Repeated:
    """A function that takes that many times BATCHES from the stream."""

    def run(steps: int) -> None:
        for _ in range(steps * BATCHES):
            next(stream)

    return run


def example_batches(config: Config, split: Split) -> Iterator[Any]:
    """The same operations as most tf.data pipelines do them: on each example, then batched."""
    tf = load_tensorflow()
    augment = example_augmentation(config.augment, split.images.shape[1:])
    data = tf.data.Dataset.from_tensor_slices((split.images, split.labels)).repeat()
    data = data.shuffle(10_000).map(augment, num_parallel_calls=tf.data.AUTOTUNE)
    return data.batch(config.batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def example_augmentation(settings: AugmentConfig, image_shape: tuple[int, ...]) -> Callable[..., Any]:
    """A function (image, label) -> (changed image, label) of TensorFlow's tensors."""
    tf = load_tensorflow()
    pad, center = settings.crop_padding, (image_shape[0] - 1) / 2

    def augment(image: Any, label: Any) -> tuple[Any, Any]:
        image = tf.image.random_flip_left_right(image)
        image = tf.image.random_crop(tf.pad(image, [[pad, pad], [pad, pad], [0, 0]]), image_shape)
        angle = tf.random.uniform([], -settings.rotation_degrees, settings.rotation_degrees) * (np.pi / 180)
        cosine, sine = tf.cos(angle), tf.sin(angle)
        across, down = center - cosine * center + sine * center, center - sine * center - cosine * center
        image = tf.raw_ops.ImageProjectiveTransformV3(
            images=image[None],
            transforms=tf.stack([cosine, -sine, across, sine, cosine, down, 0.0, 0.0])[None],
            output_shape=image_shape[:2],
            interpolation="NEAREST",
            fill_mode="CONSTANT",
            fill_value=0.0,
        )[0]
        factor = tf.random.uniform([], 1 - settings.brightness, 1 + settings.brightness)
        return tf.cast(tf.clip_by_value(tf.cast(image, tf.float32) * factor, 0, 255), tf.uint8), label

    return augment
