"""Affine maps of images: one for each image, put together, and applied to a whole batch in one pass."""

from typing import Literal, NamedTuple

import tensorflow as tf

from jaxresnet.data.augment.draws import shape_of


class AffineMaps(NamedTuple):
    """An affine map for each image, from output to input positions: float32 tensors of shape [B].

    The output at column x and row y is the input at column `a0 x + a1 y + a2` and row `b0 x + b1 y + b2`.
    """

    a0: tf.Tensor
    a1: tf.Tensor
    a2: tf.Tensor
    b0: tf.Tensor
    b1: tf.Tensor
    b2: tf.Tensor


def around_centre(
    linear: tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor],
    shift_y: tf.Tensor,
    shift_x: tf.Tensor,
    height: int,
    width: int,
) -> AffineMaps:
    """The maps with the linear parts (a0, a1, b0, b1) that take an image's centre to itself, and then shift it."""
    a0, a1, b0, b1 = linear
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    a2 = centre_x + shift_x - a0 * centre_x - a1 * centre_y
    b2 = centre_y + shift_y - b0 * centre_x - b1 * centre_y
    return AffineMaps(a0, a1, a2, b0, b1, b2)


def compose(first: AffineMaps, second: AffineMaps) -> AffineMaps:
    """The maps that change images as `first` does and then as `second` does."""
    # They lead from outputs to inputs: an output's position goes through `second`, then through `first`.
    return AffineMaps(
        first.a0 * second.a0 + first.a1 * second.b0,
        first.a0 * second.a1 + first.a1 * second.b1,
        first.a0 * second.a2 + first.a1 * second.b2 + first.a2,
        first.b0 * second.a0 + first.b1 * second.b0,
        first.b0 * second.a1 + first.b1 * second.b1,
        first.b0 * second.a2 + first.b1 * second.b2 + first.b2,
    )


def transform(images: tf.Tensor, maps: AffineMaps, padding: Literal["black", "reflect"]) -> tf.Tensor:
    """Apply the maps to uint8 images [B, H, W, C] with nearest sampling. Returns images of the same shape and dtype.

    `padding` says what is outside of an image: black, or the image mirrored at its border. The mirror image repeats
    the pixels at the border (c b a | a b c), like "symmetric" in numpy.pad and unlike "reflect" there. Nearest
    sampling, because TensorFlow's bilinear sampling of uint8 rounds down and so darkens an image. It is also
    torchvision's default for rotations.
    """
    _, height, width, channels = shape_of(images)
    zero = tf.zeros_like(maps.a0)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=_packed(images) if channels == 3 else images,
        transforms=tf.stack([*maps, zero, zero], axis=1),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT" if padding == "black" else "REFLECT",
    )
    return _unpacked(moved) if channels == 3 else moved


def _packed(images: tf.Tensor) -> tf.Tensor:
    """Each pixel as one number, int32 [B, H, W, 1]: TensorFlow then looks it up once, and not once for each channel."""
    return tf.bitcast(tf.pad(images, [[0, 0], [0, 0], [0, 0], [0, 1]]), tf.int32)[:, :, :, None]


def _unpacked(pixels: tf.Tensor) -> tf.Tensor:
    return tf.bitcast(tf.squeeze(pixels, 3), tf.uint8)[:, :, :, :3]
