"""Mixing the images of a batch in pairs: mixup and CutMix. Each image's partner is the one before it in the batch."""

from typing import NamedTuple

import tensorflow as tf

from jaxresnet.config.schema import AugmentConfig
from jaxresnet.data.augment.draws import Part, in_part, shape_of, uniforms, whole, whole_of
from jaxresnet.data.augment.erasing import Boxes, inside


class MixingParameters(NamedTuple):
    """The random parameters of a batch.

    `weight` float32 [B] in (0, 1]: an image's own part, of its values or of its area. `centre_y`, `centre_x` int32 [B]:
    the middle of the rectangle that CutMix takes from the partner.
    """

    weight: tf.Tensor
    centre_y: tf.Tensor
    centre_x: tf.Tensor


def draw_mixing(
    alpha: float | tf.Tensor, images: tf.Tensor | tf.TensorSpec, seed: tf.Tensor
) -> MixingParameters:
    """Draw parameters for each image, with weights from Beta(alpha, alpha). `seed` is an int tensor of shape [2]."""
    batch_size, height, width, _ = shape_of(images)
    seeds = tf.unstack(tf.random.split(seed, 2, alg="philox"))
    alpha = tf.maximum(tf.cast(alpha, tf.float32), 1e-6)
    # A weight is the first of two gammas, divided by their sum. Gamma(alpha) is Gamma(alpha + 1) times a uniform number
    # to the power of 1 / alpha. Logarithms, because for a small alpha both gammas would be 0.
    *uniform, y, x = uniforms(4, batch_size, seeds[0])
    gammas = tf.random.stateless_gamma([2, batch_size], seeds[1], alpha + 1)
    logarithms = tf.math.log(gammas) + tf.math.log(1 - tf.stack(uniform)) / alpha
    weight = tf.sigmoid(logarithms[0] - logarithms[1])
    # Never 0: something of an image stays in it.
    return MixingParameters(tf.maximum(weight, 1e-6), whole(y, height), whole(x, width))


def mixup(images: tf.Tensor, parameters: MixingParameters) -> tuple[tf.Tensor, tf.Tensor]:
    """Mix uint8 images [B, H, W, C] with their partners' values (Zhang et al. 2017, arXiv:1710.09412).

    Returns images of the same shape and dtype, rounded, and each image's own part, float32 [B].
    """
    weight = parameters.weight[:, None, None, None]
    values = tf.cast(images, tf.float32)
    mixed = weight * values + (1 - weight) * tf.roll(values, 1, axis=0)
    return tf.cast(tf.round(mixed), tf.uint8), parameters.weight


def cutmix(images: tf.Tensor, parameters: MixingParameters) -> tuple[tf.Tensor, tf.Tensor]:
    """Paste a rectangle of the partner into each of the uint8 images [B, H, W, C] (Yun et al. 2019, arXiv:1905.04899).

    Its area is 1 - weight of the image, and less where it would reach beyond the image. Returns images of the same
    shape and dtype, and the part of its area that each image really keeps, float32 [B].
    """
    _, height, width, _ = shape_of(images)
    half = tf.sqrt(1 - parameters.weight) / 2
    half_y, half_x = tf.cast(half * height, tf.int32), tf.cast(half * width, tf.int32)
    boxes = Boxes(
        tf.maximum(parameters.centre_y - half_y, 0),
        tf.maximum(parameters.centre_x - half_x, 0),
        tf.minimum(parameters.centre_y + half_y, height),
        tf.minimum(parameters.centre_x + half_x, width),
    )
    pasted = inside(boxes, images)
    flat = tf.reshape(images, pasted.shape)
    mixed = tf.reshape(tf.where(pasted, tf.roll(flat, 1, axis=0), flat), images.shape)
    area = (boxes.bottom - boxes.top) * (boxes.right - boxes.left)
    return mixed, 1 - tf.cast(area, tf.float32) / (height * width)


def mix(
    config: AugmentConfig, images: tf.Tensor, seed: tf.Tensor, part: Part | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mix uint8 images [B, H, W, C] as `config` says; it must have mixup or cutmix, or one of them for each batch.

    `seed` is an int tensor of shape [2]. Returns images of the same shape and dtype, and each image's own part of the
    result, float32 [B] in (0, 1]. `part` says which of a batch's images these are, if they are not all: then the first
    one has no partner here, and its result is of no use.
    """
    whole_batch = whole_of(images, part)
    if not config.cutmix:
        return mixup(images, in_part(draw_mixing(config.mixup, whole_batch, seed), part))
    if not config.mixup:
        return cutmix(images, in_part(draw_mixing(config.cutmix, whole_batch, seed), part))
    seeds = tf.unstack(tf.random.split(seed, 2, alg="philox"))
    by_area = tf.random.stateless_uniform([], seeds[0], alg="philox") < 0.5
    drawn = in_part(draw_mixing(tf.where(by_area, config.cutmix, config.mixup), whole_batch, seeds[1]), part)
    return tf.cond(by_area, lambda: cutmix(images, drawn), lambda: mixup(images, drawn))
