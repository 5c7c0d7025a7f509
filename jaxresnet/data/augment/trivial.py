"""TrivialAugment in its wide variant (Mueller & Hutter 2021, arXiv:2103.10158): one random operation on each image.

Operations, strengths and signs are those of torchvision's TrivialAugmentWide.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jaxresnet.data.augment import colour
from jaxresnet.data.augment.affine import AffineMaps, around_centre
from jaxresnet.data.augment.draws import uniforms, whole

STRENGTHS = 31
"""Number of equally likely strengths of an operation."""

_SIGNED = {
    "shear_x": np.linspace(0, 0.99, STRENGTHS),
    "shear_y": np.linspace(0, 0.99, STRENGTHS),
    "translate_x": np.trunc(np.linspace(0, 32, STRENGTHS)),
    "translate_y": np.trunc(np.linspace(0, 32, STRENGTHS)),
    "rotate": np.linspace(0, 135, STRENGTHS),
    "brightness": np.linspace(0, 0.99, STRENGTHS),
    "colour": np.linspace(0, 0.99, STRENGTHS),
    "contrast": np.linspace(0, 0.99, STRENGTHS),
    "sharpness": np.linspace(0, 0.99, STRENGTHS),
}
_UNSIGNED = {
    "posterize": 8 - np.round(np.arange(STRENGTHS) / 5),
    "solarize": np.linspace(255, 0, STRENGTHS),
    "autocontrast": np.zeros(STRENGTHS),
    "equalize": np.zeros(STRENGTHS),
}
BINS = {"identity": np.zeros(STRENGTHS)} | _SIGNED | _UNSIGNED
"""The strengths of each of the 14 operations. A sign is drawn too where positive and negative ones have a meaning."""
NAMES = list(BINS)
COLOURS = ["brightness", "colour", "contrast", "sharpness", *_UNSIGNED]
"""The operations that change values. The others are affine maps."""


class TrivialParameters(NamedTuple):
    """`operation` int32 [B]: a position in NAMES. `strength` float32 [B], in that operation's unit, with its sign."""

    operation: tf.Tensor
    strength: tf.Tensor


def draw_trivial(batch_size: int, seed: tf.Tensor) -> TrivialParameters:
    """Draw an operation and a strength for each of `batch_size` images. `seed` is an int tensor of shape [2]."""
    uniform = uniforms(3, batch_size, seed)
    operation, place = whole(uniform[0], len(NAMES)), whole(uniform[1], STRENGTHS)
    table = tf.constant(np.stack(list(BINS.values())), tf.float32)
    signed = tf.constant([name in _SIGNED for name in NAMES])
    strength = tf.gather_nd(table, tf.stack([operation, place], axis=1))
    negative = (uniform[2] < 0.5) & tf.gather(signed, operation)
    return TrivialParameters(operation, tf.where(negative, -strength, strength))


def trivial_maps(parameters: TrivialParameters, height: int, width: int) -> AffineMaps:
    """The maps of shear, translation and rotation, for images of this size; the identity for other operations.

    A shear keeps the image's upper left corner in its place, a rotation its centre.
    """

    def strength_of(name: str) -> tf.Tensor:
        return tf.where(parameters.operation == NAMES.index(name), parameters.strength, 0.0)

    shear_y, shear_x = strength_of("shear_y"), strength_of("shear_x")
    radians = strength_of("rotate") * (math.pi / 180)
    cos, sin = tf.cos(radians), tf.sin(radians)
    linear = cos, shear_x - sin, shear_y + sin, cos
    shift_y = shear_y * (width / 2) - strength_of("translate_y")
    shift_x = shear_x * (height / 2) - strength_of("translate_x")
    return around_centre(linear, shift_y, shift_x, height, width)


def change_colours(images: tf.Tensor, parameters: TrivialParameters) -> tf.Tensor:
    """Apply the operations that change values to the uint8 images [B, H, W, C] that drew them.

    The batch is divided by operation: an image costs only what its own operation does.
    """
    first = NAMES.index(COLOURS[0])
    group = tf.maximum(parameters.operation - first + 1, 0)
    groups = len(COLOURS) + 1
    others, *parts = tf.dynamic_partition(images, group, groups)
    _, *strengths = tf.dynamic_partition(parameters.strength, group, groups)
    rows = tf.dynamic_partition(tf.range(tf.size(group)), group, groups)
    changed = [
        _change(name, part, strength) for name, part, strength in zip(COLOURS, parts, strengths, strict=True)
    ]
    return tf.ensure_shape(tf.dynamic_stitch(rows, [others, *changed]), images.shape)


def _change(name: str, images: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    match name:
        case "brightness":
            return colour.brighten(images, 1 + strength)
        case "colour":
            return colour.saturate(images, 1 + strength)
        case "contrast":
            return colour.change_contrast(images, 1 + strength)
        case "sharpness":
            return colour.sharpen(images, 1 + strength)
        case "posterize":
            return colour.posterize(images, strength)
        case "solarize":
            return colour.solarize(images, strength)
        case "autocontrast":
            return colour.stretch_contrast(images)
        case _:
            return colour.equalize(images)
