"""Rectangles in images, and covering them with grey: Cutout and Random Erasing."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from jaxresnet.data.augment.draws import shape_of, uniforms, whole

GREY = 128
"""What covers an image. It is near the mean of CIFAR-10's channels (125, 123 and 114), so after the normalisation near
0, as in Cutout's paper and in the code of Random Erasing's authors, whose paper prefers random values. Black would be
two standard deviations from it, and move BatchNorm's statistics."""
AREAS = (0.02, 0.33)
"""The smallest and the largest area that Random Erasing covers, as parts of the image."""
ASPECT_RATIOS = (0.3, 3.3)
"""The smallest and the largest height of an erased rectangle, in widths."""


class Boxes(NamedTuple):
    """A rectangle for each image: rows `top` to `bottom` - 1, columns `left` to `right` - 1, int32 [B].

    It may lie partly outside the image, and is empty where bottom <= top.
    """

    top: tf.Tensor
    left: tf.Tensor
    bottom: tf.Tensor
    right: tf.Tensor


def draw_cutout(side: int, images: tf.Tensor | tf.TensorSpec, seed: tf.Tensor) -> Boxes:
    """Draw a square of `side` pixels for each image (DeVries & Taylor 2017, arXiv:1708.04552).

    Its centre is anywhere in the image, so part of it may lie outside. `seed` is an int tensor of shape [2].
    """
    batch_size, height, width, _ = shape_of(images)
    uniform = uniforms(2, batch_size, seed)
    top, left = whole(uniform[0], height) - side // 2, whole(uniform[1], width) - side // 2
    return Boxes(top, left, top + side, left + side)


def draw_erasing(probability: float, images: tf.Tensor | tf.TensorSpec, seed: tf.Tensor) -> Boxes:
    """Draw, with this probability, a rectangle inside each image; elsewhere an empty one.

    As Random Erasing (Zhong et al. 2017, arXiv:1708.04896), with torchvision's bounds: the area is uniform, the
    logarithm of the aspect ratio too. A rectangle that is longer than the image is cut to its length, which happens
    to 2 of 1,000 square images; torchvision draws again. `seed` is an int tensor of shape [2].
    """
    batch_size, height, width, _ = shape_of(images)
    uniform = uniforms(5, batch_size, seed)
    area = (AREAS[0] + uniform[0] * (AREAS[1] - AREAS[0])) * (height * width)
    lowest, highest = (math.log(ratio) for ratio in ASPECT_RATIOS)
    ratio = tf.exp(lowest + uniform[1] * (highest - lowest))
    rows = tf.minimum(tf.cast(tf.round(tf.sqrt(area * ratio)), tf.int32), height)
    columns = tf.minimum(tf.cast(tf.round(tf.sqrt(area / ratio)), tf.int32), width)
    top, left = whole(uniform[2], height - rows + 1), whole(uniform[3], width - columns + 1)
    rows = tf.where(uniform[4] < probability, rows, 0)
    return Boxes(top, left, top + rows, left + columns)


def inside(boxes: Boxes, images: tf.Tensor) -> tf.Tensor:
    """Where the boxes are: bool [B, H, W * C], for images [B, H, W, C].

    Columns and channels are one axis, because TensorFlow's broadcasting over a last axis of 3 takes twice as long.
    """
    _, height, width, channels = shape_of(images)
    row, column = tf.range(height), tf.repeat(tf.range(width), channels)
    rows = (row >= boxes.top[:, None]) & (row < boxes.bottom[:, None])
    columns = (column >= boxes.left[:, None]) & (column < boxes.right[:, None])
    return rows[:, :, None] & columns[:, None, :]


def cover(images: tf.Tensor, several: Sequence[Boxes]) -> tf.Tensor:
    """Cover uint8 images [B, H, W, C] with grey where one of `several` boxes is. Returns the same shape and dtype."""
    covered = inside(several[0], images)
    for boxes in several[1:]:
        covered |= inside(boxes, images)
    grey = tf.constant(GREY, images.dtype)
    return tf.reshape(tf.where(covered, grey, tf.reshape(images, covered.shape)), images.shape)
