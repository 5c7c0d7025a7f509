"""The operations on pixel values, beside Pillow's."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from jaxresnet.data.augment import colour


def pictures() -> np.ndarray:
    """Noise, one colour, an image of few greys, a dark one, one of few values, and smooth ones."""
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (8, 7, 7, 3), dtype=np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(s).resize((32, 32), Image.Resampling.BICUBIC)) for s in small]
    )
    images[0] = random.integers(0, 256, (32, 32, 3))
    images[1] = 77
    images[2] = images[2, :, :, :1] // 64 * 64
    images[3] = images[3] // 4 + 30
    images[4] = np.where(images[4] < 20, images[4], 200)
    return images


IMAGES = pictures()
FACTORS = [0.01, 0.7, 1.0, 1.3, 1.99]
Operation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def assert_as_in_pillow(found: tf.Tensor, reference: Callable[[Image.Image], Image.Image], within: int):
    """The results are Pillow's to within that many grey values."""
    expected = np.stack([np.asarray(reference(Image.fromarray(image))) for image in IMAGES])
    assert np.abs(found.numpy().astype(int) - expected).max() <= within


@pytest.mark.parametrize(
    ("ours", "pillows"),
    [
        (colour.brighten, ImageEnhance.Brightness),
        (colour.saturate, ImageEnhance.Color),
        (colour.change_contrast, ImageEnhance.Contrast),
        (colour.sharpen, ImageEnhance.Sharpness),
    ],
)
def test_enhancements_are_pillows(ours: Operation, pillows: type):
    """Pillow cuts decimals off, so it is darker by half a grey value."""
    for factor in FACTORS:
        found = ours(tf.constant(IMAGES), tf.fill([len(IMAGES)], np.float32(factor)))
        assert_as_in_pillow(found, lambda image, f=factor: pillows(image).enhance(f), within=1)


def test_a_factor_of_one_changes_nothing():
    for operation in (colour.brighten, colour.saturate, colour.change_contrast, colour.sharpen):
        np.testing.assert_array_equal(operation(tf.constant(IMAGES), tf.ones(len(IMAGES))), IMAGES)


def test_each_image_has_its_own_factor():
    factors = tf.constant(np.linspace(0.2, 1.8, len(IMAGES)), tf.float32)
    for operation in (colour.brighten, colour.saturate, colour.change_contrast, colour.sharpen):
        together = operation(tf.constant(IMAGES), factors)
        alone = [operation(tf.constant(IMAGES[i : i + 1]), factors[i : i + 1])[0] for i in range(len(IMAGES))]
        np.testing.assert_array_equal(together, np.stack(alone))


def test_posterize_and_solarize_are_pillows():
    count = len(IMAGES)
    for bits in range(1, 9):
        found = colour.posterize(tf.constant(IMAGES), tf.fill([count], float(bits)))
        assert_as_in_pillow(found, lambda image, b=bits: ImageOps.posterize(image, b), within=0)
    for threshold in (0.0, 8.5, 100.0, 246.5, 255.0):
        found = colour.solarize(tf.constant(IMAGES), tf.fill([count], threshold))
        assert_as_in_pillow(
            found, lambda image, t=threshold: ImageOps.solarize(image, math.ceil(t)), within=0
        )


def test_autocontrast_and_equalize_are_pillows():
    assert_as_in_pillow(colour.stretch_contrast(tf.constant(IMAGES)), ImageOps.autocontrast, within=1)
    assert_as_in_pillow(colour.equalize(tf.constant(IMAGES)), ImageOps.equalize, within=0)


def test_the_whole_range_is_used_after_autocontrast():
    stretched = colour.stretch_contrast(tf.constant(IMAGES[3:])).numpy()
    assert (stretched.min((1, 2)) == 0).all()
    assert (stretched.max((1, 2)) == 255).all()


def test_grey_images_of_one_channel_are_taken_too():
    grey = IMAGES[..., :1]
    factors = tf.fill([len(grey)], np.float32(0.4))
    np.testing.assert_array_equal(colour.saturate(tf.constant(grey), factors), grey)
    in_colour = np.repeat(grey, 3, axis=3)
    for operation in (colour.change_contrast, colour.sharpen):
        expected = operation(tf.constant(in_colour), factors)[:, :, :, :1]
        np.testing.assert_array_equal(operation(tf.constant(grey), factors), expected)
    np.testing.assert_array_equal(
        colour.equalize(tf.constant(grey)), colour.equalize(tf.constant(in_colour))[:, :, :, :1]
    )


@pytest.mark.parametrize("shape", [(3, 1, 1, 3), (3, 8, 1, 3), (3, 1, 8, 1), (3, 2, 5, 4)])
def test_images_without_inner_pixels_are_not_sharpened(shape: tuple[int, ...]):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(colour.sharpen(tf.constant(images), tf.constant([0.0, 0.5, 2.0])), images)


def test_no_image_is_no_problem():
    none, factors = tf.zeros([0, 32, 32, 3], tf.uint8), tf.zeros([0])
    for operation in (colour.brighten, colour.saturate, colour.change_contrast, colour.sharpen):
        assert operation(none, factors).shape == (0, 32, 32, 3)
    for operation in (colour.stretch_contrast, colour.equalize):
        assert operation(none).shape == (0, 32, 32, 3)
