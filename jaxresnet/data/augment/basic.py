"""The paper's four: flip, shift, rotation and brightness."""

import math
from typing import NamedTuple

import tensorflow as tf

from jaxresnet.config.schema import AugmentConfig
from jaxresnet.data.augment.affine import AffineMaps, around_centre


class BasicParameters(NamedTuple):
    """The random parameters of a batch: tensors of shape [B], one entry per image.

    `flip` bool: mirror left and right. `shift_y`, `shift_x` float32, whole pixels: the output at (y, x) is the input at
    (y + shift_y, x + shift_x), or the padding outside the image. `angle` float32, degrees, counter-clockwise as one
    sees the image, like numpy.rot90. `brightness` float32: a factor for the pixel values.
    """

    flip: tf.Tensor
    shift_y: tf.Tensor
    shift_x: tf.Tensor
    angle: tf.Tensor
    brightness: tf.Tensor


def draw_basic(config: AugmentConfig, batch_size: int, seed: tf.Tensor) -> BasicParameters:
    """Draw parameters for `batch_size` images. Those that are switched off are drawn as "no change".

    `seed` is an int tensor of shape [2]. It is split into a seed for each of the five draws: with a common seed the
    draws would depend on each other.
    """
    seeds = tf.unstack(tf.random.split(seed, 5, alg="philox"))

    def uniform(key: tf.Tensor, low: float, high: float) -> tf.Tensor:
        return tf.random.stateless_uniform([batch_size], key, low, high, alg="philox")

    def shift(key: tf.Tensor) -> tf.Tensor:
        pixels = tf.random.stateless_uniform(
            [batch_size], key, -config.crop_padding, config.crop_padding + 1, tf.int32, alg="philox"
        )
        return tf.cast(pixels, tf.float32)

    return BasicParameters(
        flip=(uniform(seeds[0], 0, 1) < 0.5) & config.horizontal_flip,
        shift_y=shift(seeds[1]),
        shift_x=shift(seeds[2]),
        angle=uniform(seeds[3], -config.rotation_degrees, config.rotation_degrees),
        brightness=uniform(seeds[4], 1 - config.brightness, 1 + config.brightness),
    )


def draw_first_flips(examples: int, seed: tf.Tensor) -> tf.Tensor:
    """Draw which examples of a split are mirrored in their first epoch, bool [examples].

    `seed` is an int tensor of shape [2].
    """
    return tf.random.stateless_uniform([examples], seed, alg="philox") < 0.5


def alternating_flips(first_flips: tf.Tensor, indices: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """Which images of a step's batch are mirrored, bool [B]: those that were not in their previous epoch.

    `indices` int64 [B] are the batch's examples and `first_flips` comes from `draw_first_flips`. Each image counts by
    its own epoch: a batch can begin in one and end in the next.
    """
    batch_size, examples = tf.size(indices, tf.int64), tf.size(first_flips, tf.int64)
    epochs = (step * batch_size + tf.range(batch_size)) // examples
    return tf.gather(first_flips, indices) ^ (epochs % 2 == 1)


def basic_maps(parameters: BasicParameters, height: int, width: int) -> AffineMaps:
    """The maps that shift, then flip, then rotate images of this size.

    The three are one map. Three separate passes would give other values in about 2 % of the pixels: there a crop cuts
    content off before the rotation, and one map keeps it.
    """
    radians = parameters.angle * (math.pi / 180)
    cos, sin = tf.cos(radians), tf.sin(radians)
    mirror = tf.where(parameters.flip, -1.0, 1.0)
    # As y points down, a counter-clockwise rotation of the picture reads its input at R (x, y), with
    # R = [[cos, -sin], [sin, cos]] and both positions relative to the centre.
    linear = mirror * cos, -mirror * sin, sin, cos
    return around_centre(linear, parameters.shift_y, parameters.shift_x, height, width)
