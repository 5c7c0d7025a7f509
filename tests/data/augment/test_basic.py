"""The paper's four kinds and their maps, each alone and by value."""

from typing import Literal

import numpy as np
import pytest
import tensorflow as tf

from jaxresnet.config.schema import NO_AUGMENTATION, AugmentConfig, Config
from jaxresnet.data.augment import augment
from jaxresnet.data.augment.affine import transform
from jaxresnet.data.augment.basic import (
    BasicParameters,
    alternating_flips,
    basic_maps,
    draw_basic,
    draw_first_flips,
)
from jaxresnet.data.augment.colour import brighten

OFF = Config().replace(NO_AUGMENTATION).augment
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def moved(
    images: np.ndarray = IMAGES, padding: Literal["black", "reflect"] = "black", **given: float
) -> np.ndarray:
    """Each image moved with the same parameters; what is not given changes nothing."""
    values = {"flip": False, "shift_y": 0.0, "shift_x": 0.0, "angle": 0.0, "brightness": 1.0} | given
    filled = BasicParameters(**{key: tf.fill([len(images)], tf.constant(v)) for key, v in values.items()})
    return transform(tf.constant(images), basic_maps(filled, *images.shape[1:3]), padding).numpy()


def padded(pixels: int, padding: str) -> np.ndarray:
    """The images with that many pixels more on each side, by NumPy."""
    width = (pixels, pixels)
    return np.pad(IMAGES, ((0, 0), width, width, (0, 0)), "constant" if padding == "black" else "symmetric")


def test_a_flipped_image_is_the_mirror():
    np.testing.assert_array_equal(moved(flip=True), IMAGES[:, :, ::-1])


@pytest.mark.parametrize("padding", ["black", "reflect"])
@pytest.mark.parametrize(("dy", "dx"), [(3, 0), (-4, 0), (0, 2), (0, -1), (4, -3)])
def test_a_shift_moves_by_whole_pixels_and_fills(dy: int, dx: int, padding: Literal["black", "reflect"]):
    expected = padded(4, padding)[:, 4 + dy : 36 + dy, 4 + dx : 36 + dx]
    found = moved(padding=padding, shift_y=float(dy), shift_x=float(dx))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("turns", [1, 2, 3, -1])
def test_rotation_by_right_angles_is_numpys(turns: int):
    """Counter-clockwise is positive."""
    np.testing.assert_array_equal(moved(angle=90.0 * turns), np.rot90(IMAGES, turns, axes=(1, 2)))


def test_shift_comes_before_flip_before_rotation():
    shifted = padded(4, "black")[:, 6:38, 3:35]
    expected = np.rot90(shifted[:, :, ::-1], axes=(1, 2))
    np.testing.assert_array_equal(moved(shift_y=2.0, shift_x=-1.0, flip=True, angle=90.0), expected)


@pytest.mark.parametrize("padding", ["black", "reflect"])
def test_a_small_rotation_samples_the_nearest_pixel(padding: Literal["black", "reflect"]):
    found = moved(padding=padding, angle=15.0)
    canvas = padded(8, padding)
    cos, sin = np.cos(np.radians(15)), np.sin(np.radians(15))
    for y, x in [(5, 20), (16, 3), (25, 25), (0, 0), (31, 4), (0, 31)]:
        # The pixel at (x, y) came from where turning it back clockwise, as seen, leads.
        dx, dy = x - 15.5, y - 15.5
        source_x, source_y = round(15.5 + cos * dx - sin * dy), round(15.5 + sin * dx + cos * dy)
        np.testing.assert_array_equal(found[:, y, x], canvas[:, source_y + 8, source_x + 8])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_any_size_and_number_of_channels_are_moved(channels: int):
    images = np.random.default_rng(1).integers(0, 256, (2, 5, 8, channels), dtype=np.uint8)
    np.testing.assert_array_equal(moved(images, flip=True), images[:, :, ::-1])
    np.testing.assert_array_equal(moved(images, angle=180.0), images[:, ::-1, ::-1])
    np.testing.assert_array_equal(moved(images, shift_x=1.0)[:, :, :-1], images[:, :, 1:])


def test_brightness_multiplies_and_clips():
    images = np.full((6, 1, 1, 3), 100, np.uint8)
    images[1], images[2] = 200, 101
    factors = tf.constant([1.2, 1.3, 0.5, 0.8, 1.0, 0.0])
    found = brighten(tf.constant(images), factors).numpy()[:, 0, 0, 0]
    np.testing.assert_array_equal(found, [120, 255, 50, 80, 100, 0])  # 50.5 rounds to the even 50


def test_no_change_is_the_identity_bit_for_bit():
    np.testing.assert_array_equal(moved(), IMAGES)
    np.testing.assert_array_equal(moved(padding="reflect"), IMAGES)
    np.testing.assert_array_equal(brighten(tf.constant(IMAGES), tf.ones(6)), IMAGES)
    np.testing.assert_array_equal(augment(OFF, tf.constant(IMAGES), tf.constant([0, 1])), IMAGES)


def draws(config: AugmentConfig, seed: tuple[int, int], size: int = 20_000) -> dict[str, np.ndarray]:
    drawn = draw_basic(config, size, tf.constant(seed))
    return {name: value.numpy().astype(np.float64) for name, value in drawn._asdict().items()}


def test_draws_fill_their_ranges():
    drawn = draws(AugmentConfig(crop_padding=4, rotation_degrees=15, brightness=0.2), (3, 4))
    assert drawn["flip"].mean() == pytest.approx(0.5, abs=0.02)
    for shift in ("shift_y", "shift_x"):
        values, counts = np.unique(drawn[shift], return_counts=True)
        np.testing.assert_array_equal(values, np.arange(-4, 5))
        np.testing.assert_allclose(counts / 20_000, 1 / 9, atol=0.01)
    for name, low, high in [("angle", -15, 15), ("brightness", 0.8, 1.2)]:
        assert low <= drawn[name].min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < drawn[name].max() <= high
        assert drawn[name].mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))


def test_draws_are_independent():
    """Of each other, from image to image, and from step to step."""
    one, next_step = (draws(AugmentConfig(), (3, step)) for step in (7, 8))
    rows = (
        list(one.values())
        + list(next_step.values())
        + [values[np.r_[1:20_000, 0]] for values in one.values()]
    )
    correlations = np.corrcoef(rows) - np.eye(15)
    assert np.abs(correlations).max() < 0.03  # 4 standard deviations of 20,000 independent pairs


@pytest.mark.parametrize("kind", ["horizontal_flip", "crop_padding", "rotation_degrees", "brightness"])
def test_each_kind_works_alone_and_can_be_switched_off(kind: str):
    values = {"horizontal_flip": True, "crop_padding": 4, "rotation_degrees": 15.0, "brightness": 0.2}
    fields = {
        "horizontal_flip": ["flip"],
        "crop_padding": ["shift_y", "shift_x"],
        "rotation_degrees": ["angle"],
    }
    changed = fields.get(kind, [kind])
    neutral = {"flip": 0, "shift_y": 0, "shift_x": 0, "angle": 0, "brightness": 1}
    only = AugmentConfig.model_validate(OFF.model_dump() | {kind: values[kind]})
    alone = draws(only, (0, 0), size=50)
    without = draws(AugmentConfig.model_validate(values | {kind: 0}), (0, 0), size=50)
    for name in neutral:
        assert (np.ptp(alone[name]) > 0) == (name in changed)
        assert (np.ptp(without[name]) > 0) == (name not in changed)
        assert alone[name][0] == neutral[name] or name in changed
    images = augment(only, tf.constant(IMAGES), tf.constant([0, 1]))
    assert not np.array_equal(images, IMAGES)


def test_an_alternating_flip_goes_by_each_images_own_epoch():
    first = tf.constant([True, False, True, False, True])
    # Steps of four from five examples: step 1 holds the last of epoch 0 and three of epoch 1.
    indices = tf.constant([4, 2, 1, 0], tf.int64)
    found = alternating_flips(first, indices, tf.constant(1, tf.int64))
    np.testing.assert_array_equal(found, [True, False, True, False])
    later = alternating_flips(first, indices, tf.constant(1 + 10 * 10**9, tf.int64))  # 8 * 10**9 epochs later
    np.testing.assert_array_equal(later, found)


def test_half_of_the_examples_are_mirrored_first_and_another_half_with_another_seed():
    one, same, other = (draw_first_flips(20_000, tf.constant([s, 1])).numpy() for s in (5, 5, 6))
    np.testing.assert_array_equal(one, same)
    assert one.mean() == pytest.approx(0.5, abs=0.02)
    assert (one == other).mean() == pytest.approx(0.5, abs=0.02)
