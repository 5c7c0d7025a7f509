"""The input pipeline: whole, without each operation, and beside one that takes each example on its own."""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxresnet.config.schema import AugmentConfig, Config
from jaxresnet.data.batches import train_batches
from jaxresnet.data.sources import open_source
from jaxresnet.data.splits import Split, load_split
from jaxresnet.machine.workarounds import load_tensorflow
from speed_parts.timing import Repeated, in_turns

OFF = {"horizontal_flip": False, "crop_padding": 0, "rotation_degrees": 0.0, "brightness": 0.0}
"""The augmentation's settings that switch each operation off."""


def measure_input(config: Config, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Images per second of the pipeline and its variants."""
    split = load_split(open_source(config.data), "train", validation_examples=0)
    variants: dict[str, dict[str, Any]] = {"all operations": {}}
    variants |= {f"without {name}": {name: value} for name, value in OFF.items()}
    variants["no operation"] = OFF
    streams: dict[str, Iterator[Any]] = {}
    for name, values in variants.items():
        settings = {f"augment.{key}": value for key, value in values.items()}
        streams[name] = train_batches(config.replace({**settings, "epochs": 10_000}), split)
    streams["one example at a time, in tf.data"] = example_batches(config, split)
    functions = {name: draw(stream) for name, stream in streams.items()}
    for function in functions.values():
        function(20)  # past what was prepared ahead
    times = in_turns(functions, rounds, seconds)
    return [
        {"pipeline": name, "images_per_second": config.batch_size / statistics.median(values)}
        for name, values in times.items()
    ]


def draw(stream: Iterator[Any]) -> Repeated:
    """A function that takes that many batches from the stream."""

    def run(steps: int) -> None:
        for _ in range(steps):
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
