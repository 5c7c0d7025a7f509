"""Augmentation on the host: draw parameters from a seed, then apply them to a whole uint8 batch.

Drawing and applying are separate functions, so that each can be tested by value. All functions are stateless: the same
seed and images always give the same result.
"""

import math
from typing import NamedTuple, cast

import tensorflow as tf

from jaxresnet.config.schema import AugmentConfig


class AugmentParameters(NamedTuple):
    """The random parameters of a batch: tensors of shape [B], one entry per image.

    `flip` bool: mirror left and right. `shift_y`, `shift_x` float32, whole pixels: the output at (y, x) is the input at
    (y + shift_y, x + shift_x), or black outside the image. `angle` float32, degrees, counter-clockwise as one sees the
    image, like numpy.rot90. `brightness` float32: a factor for the pixel values.
    """

    flip: tf.Tensor
    shift_y: tf.Tensor
    shift_x: tf.Tensor
    angle: tf.Tensor
    brightness: tf.Tensor


def draw_parameters(config: AugmentConfig, batch_size: int, seed: tf.Tensor) -> AugmentParameters:
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

    return AugmentParameters(
        flip=(uniform(seeds[0], 0, 1) < 0.5) & config.horizontal_flip,
        shift_y=shift(seeds[1]),
        shift_x=shift(seeds[2]),
        angle=uniform(seeds[3], -config.rotation_degrees, config.rotation_degrees),
        brightness=uniform(seeds[4], 1 - config.brightness, 1 + config.brightness),
    )


def move(images: tf.Tensor, parameters: AugmentParameters) -> tf.Tensor:
    """Shift, then flip, then rotate uint8 images [B, H, W, C]. Returns images of the same shape and dtype.

    The three are one affine map with nearest sampling. Three separate passes would give other values in about 2 % of
    the pixels: there a crop cuts content off before the rotation, and one map keeps it. Nearest sampling, because
    TensorFlow's bilinear sampling of uint8 rounds down and so darkens an image. It is also torchvision's default for
    rotations.
    """
    _, height, width, _ = _shape(images)
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    radians = parameters.angle * (math.pi / 180)
    cos, sin = tf.cos(radians), tf.sin(radians)
    mirror = tf.where(parameters.flip, -1.0, 1.0)
    # ImageProjectiveTransformV3 takes the map from output positions (x, y) to input positions
    # (a0 x + a1 y + a2, b0 x + b1 y + b2). As y points down, a counter-clockwise rotation of the picture reads its
    # input at R (x, y), with R = [[cos, -sin], [sin, cos]] and both positions relative to the centre.
    a0, a1 = mirror * cos, -mirror * sin
    b0, b1 = sin, cos
    a2 = centre_x + parameters.shift_x - a0 * centre_x - a1 * centre_y
    b2 = centre_y + parameters.shift_y - b0 * centre_x - b1 * centre_y
    zero = tf.zeros_like(cos)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([a0, a1, a2, b0, b1, b2, zero, zero], axis=1),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )


def _shape(images: tf.Tensor) -> list[int]:
    """The shape of a batch, as numbers. It is known also while TensorFlow only builds a graph."""
    return cast(list[int], images.shape.as_list())


def brighten(images: tf.Tensor, parameters: AugmentParameters) -> tf.Tensor:
    """Multiply uint8 images [B, H, W, C] by their brightness factors. The results are rounded and at most 255."""
    scaled = tf.cast(images, tf.float32) * parameters.brightness[:, None, None, None]
    return tf.cast(tf.round(tf.minimum(scaled, 255.0)), tf.uint8)


def augment(config: AugmentConfig, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Change uint8 images [B, H, W, C] at random, as `config` says. Returns images of the same shape and dtype.

    `seed` is an int tensor of shape [2]. With everything switched off the images are returned unchanged.
    """
    parameters = draw_parameters(config, _shape(images)[0], seed)
    if config.horizontal_flip or config.crop_padding or config.rotation_degrees:
        images = move(images, parameters)
    if config.brightness:
        images = brighten(images, parameters)
    return images
