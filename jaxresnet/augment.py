"""Augmentation on the host: draw parameters from a seed, then apply them to a whole uint8 batch.

Drawing and applying are apart, so that each can be tested by value. All of it is stateless: the same
seed and images give the same result, whatever came before.
"""

import math
from typing import NamedTuple

import tensorflow as tf

from jaxresnet.config import AugmentConfig


class AugmentParameters(NamedTuple):
    """One entry per image, in tensors of shape [B].

    `flip` bool: mirror left and right. `shift_y`, `shift_x` float32, whole pixels: the output shows at
    (y, x) what the input has at (y + shift_y, x + shift_x), and black outside. `angle` float32, degrees,
    counter-clockwise as seen, as numpy.rot90's. `brightness` float32: a factor on the pixel values.
    """

    flip: tf.Tensor
    shift_y: tf.Tensor
    shift_x: tf.Tensor
    angle: tf.Tensor
    brightness: tf.Tensor


def draw_parameters(config: AugmentConfig, batch_size: int, seed: tf.Tensor) -> AugmentParameters:
    """Independent draws for `batch_size` images; what is switched off is drawn as "no change".

    `seed` is an int tensor of shape [2]. Each of the five draws has a seed of its own split from it: drawn
    from one and the same seed, they would be functions of each other.
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
    """Shift, then flip, then rotate uint8 images [B, H, W, C], as one affine map with nearest sampling.

    One map differs from three passes in about 2 % of the pixels: it shows content that a crop would have
    cut before the rotation brings it back into view. Nearest, because TensorFlow's bilinear sampling of
    uint8 rounds down and darkens an image; it is torchvision's default for rotations, too.
    """
    height, width = images.shape[1], images.shape[2]
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    radians = parameters.angle * (math.pi / 180)
    cos, sin = tf.cos(radians), tf.sin(radians)
    mirror = tf.where(parameters.flip, -1.0, 1.0)
    # ImageProjectiveTransformV3 asks for the input position of each output position (x, y), rows of
    # (a0 x + a1 y + a2, b0 x + b1 y + b2). With y pointing down, turning the picture counter-clockwise
    # by an angle looks up R = [[cos, -sin], [sin, cos]] of (x, y), both relative to the centre.
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


def brighten(images: tf.Tensor, parameters: AugmentParameters) -> tf.Tensor:
    """Multiply uint8 images [B, H, W, C] by their brightness factors, rounded to the nearest of 0..255."""
    scaled = tf.cast(images, tf.float32) * parameters.brightness[:, None, None, None]
    return tf.cast(tf.round(tf.minimum(scaled, 255.0)), tf.uint8)


def augment(config: AugmentConfig, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Change uint8 images [B, H, W, C] at random, as `config` says, by a seed of shape [2].

    With everything switched off the images come back as they are.
    """
    parameters = draw_parameters(config, images.shape[0], seed)
    if config.horizontal_flip or config.crop_padding or config.rotation_degrees:
        images = move(images, parameters)
    if config.brightness:
        images = brighten(images, parameters)
    return images
