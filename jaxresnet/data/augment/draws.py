"""Random numbers as functions of a seed, and the shapes that they are drawn for."""

from typing import Any, NamedTuple, TypeVar, cast

import tensorflow as tf

P = TypeVar("P", bound=tuple[tf.Tensor, ...])

TRIVIAL, CUTOUT, ERASING, MIXING = range(1, 5)
"""The streams of random numbers of each step, one for each kind. The basic kinds draw from the step's seed itself."""


class Part(NamedTuple):
    """Some of the images of a batch: their places in it, int [n], and `size`, the number of images of the whole batch.

    Random numbers are drawn for the whole batch, so that an image changes in the same way in whatever part it is.
    """

    rows: Any
    size: int


def whole_of(images: tf.Tensor, part: Part | None) -> tf.Tensor | tf.TensorSpec:
    """What has the shape [B, H, W, C] of the whole batch, of which `images` are a part; None means all of it."""
    return images if part is None else tf.TensorSpec([part.size, *shape_of(images)[1:]], images.dtype)


def in_part(parameters: P, part: Part | None) -> P:
    """The parameters of the part's images. `parameters` is a named tuple of tensors [B], for the whole batch."""
    if part is None:
        return parameters
    return type(parameters)(*(tf.gather(each, part.rows) for each in parameters))


def stream(seed: tf.Tensor, kind: int) -> tf.Tensor:
    """The seed of one of the streams above in the step with this seed; both are int tensors of shape [2]."""
    return cast(tf.Tensor, tf.random.fold_in(seed, kind, alg="philox"))


def uniforms(count: int, batch_size: int, seed: tf.Tensor) -> list[tf.Tensor]:
    """`count` independent tensors of uniform numbers from 0 up to and without 1, each float32 [batch_size].

    They are one draw: TensorFlow makes a seed into a stream by 20 small operations, which cost more than the numbers.
    """
    return tf.unstack(tf.random.stateless_uniform([count, batch_size], seed, alg="philox"))


def whole(uniform: tf.Tensor, limit: int | tf.Tensor) -> tf.Tensor:
    """Uniform numbers from 0 up to and without 1 as int32, uniform from 0 up to and without `limit`."""
    return tf.cast(uniform * tf.cast(limit, tf.float32), tf.int32)


def shape_of(images: tf.Tensor | tf.TensorSpec) -> list[int]:
    """The shape of a batch, as numbers. It is known also while TensorFlow only builds a graph."""
    return cast(list[int], images.shape.as_list())
