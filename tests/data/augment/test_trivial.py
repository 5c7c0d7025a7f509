"""TrivialAugment: the operations' strengths, their maps beside Pillow's, and that each image has its own operation."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from jaxresnet.data.augment.affine import compose, transform
from jaxresnet.data.augment.basic import BasicParameters, basic_maps
from jaxresnet.data.augment.trivial import (
    BINS,
    COLOURS,
    NAMES,
    TrivialParameters,
    change_colours,
    draw_trivial,
    trivial_maps,
)

IMAGES = np.random.default_rng(0).integers(40, 200, (4, 32, 32, 3), dtype=np.uint8)


def same_for_all(name: str, strength: float, images: int = 4) -> TrivialParameters:
    return TrivialParameters(tf.fill([images], NAMES.index(name)), tf.fill([images], np.float32(strength)))


def applied(parameters: TrivialParameters, images: np.ndarray = IMAGES) -> np.ndarray:
    moved = transform(tf.constant(images), trivial_maps(parameters, 32, 32), "black")
    return change_colours(moved, parameters).numpy()


def test_strengths_are_torchvisions():
    geometric = ["identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"]
    of_values = [
        "brightness",
        "colour",
        "contrast",
        "sharpness",
        "posterize",
        "solarize",
        "autocontrast",
        "equalize",
    ]
    assert geometric + of_values == NAMES
    assert of_values == COLOURS
    assert {len(strengths) for strengths in BINS.values()} == {31}
    np.testing.assert_allclose(BINS["shear_x"][[0, 1, 30]], [0, 0.033, 0.99])
    np.testing.assert_array_equal(BINS["translate_y"][[0, 1, 15, 29, 30]], [0, 1, 16, 30, 32])
    np.testing.assert_allclose(BINS["rotate"][[1, 30]], [4.5, 135])
    np.testing.assert_array_equal(BINS["posterize"][[0, 2, 3, 7, 8, 27, 28, 30]], [8, 8, 7, 7, 6, 3, 2, 2])
    np.testing.assert_allclose(BINS["solarize"][[0, 1, 30]], [255, 246.5, 0])


@pytest.mark.parametrize("strength", [-0.99, -0.33, 0.033, 0.495, 0.99])
def test_shears_are_those_of_the_reference(strength: float):
    """AutoAugment's own code calls Pillow like this."""
    for name, matrix in (("shear_x", (1, strength, 0, 0, 1, 0)), ("shear_y", (1, 0, 0, strength, 1, 0))):
        expected = [
            np.asarray(Image.fromarray(i).transform((32, 32), Image.Transform.AFFINE, matrix)) for i in IMAGES
        ]
        np.testing.assert_array_equal(applied(same_for_all(name, strength)), np.stack(expected))


@pytest.mark.parametrize("pixels", [-32, -3, 7, 30])
def test_translations_move_by_whole_pixels(pixels: int):
    canvas = np.pad(IMAGES, ((0, 0), (32, 32), (32, 32), (0, 0)))
    across, down = (applied(same_for_all(f"translate_{axis}", pixels)) for axis in "xy")
    np.testing.assert_array_equal(across, canvas[:, 32:64, 32 - pixels : 64 - pixels])
    np.testing.assert_array_equal(down, canvas[:, 32 - pixels : 64 - pixels, 32:64])


@pytest.mark.parametrize("degrees", [-90, -31.5, 4.5, 126])
def test_rotations_are_pillows(degrees: float):
    """But for the pixels that come from the middle between two."""
    expected = np.stack([np.asarray(Image.fromarray(image).rotate(degrees)) for image in IMAGES])
    assert (applied(same_for_all("rotate", degrees)) != expected).mean() < 0.005


def test_an_operations_map_follows_that_of_the_basic_kinds():
    values = {"flip": True, "shift_y": 2.0, "shift_x": -1.0, "angle": 0.0, "brightness": 1.0}
    basic = BasicParameters(**{name: tf.fill([4], tf.constant(value)) for name, value in values.items()})
    rotated = trivial_maps(same_for_all("rotate", 90), 32, 32)
    found = transform(tf.constant(IMAGES), compose(basic_maps(basic, 32, 32), rotated), "black")
    flipped = np.pad(IMAGES, ((0, 0), (4, 4), (4, 4), (0, 0)))[:, 6:38, 3:35][:, :, ::-1]
    np.testing.assert_array_equal(found, np.rot90(flipped, axes=(1, 2)))


def test_each_image_gets_its_own_operation():
    images = np.repeat(IMAGES, 7, axis=0)  # each operation twice, in a mixed order
    operations = np.random.default_rng(1).permutation(28).astype(np.int32) % 14
    strengths = np.array([BINS[NAMES[operation]][20] for operation in operations], np.float32)
    together = applied(TrivialParameters(tf.constant(operations), tf.constant(strengths)), images)
    for i, (operation, strength) in enumerate(zip(operations, strengths, strict=True)):
        name = NAMES[operation]
        alone = applied(same_for_all(name, strength, 1), images[i : i + 1])[0]
        np.testing.assert_array_equal(together[i], alone)
        assert np.array_equal(alone, images[i]) == (name == "identity"), name


def test_draws_are_uniform_and_signed_where_a_sign_has_a_meaning():
    size = 60_000
    operation, strength = (tensor.numpy() for tensor in draw_trivial(size, tf.constant([3, 4])))
    np.testing.assert_allclose(np.bincount(operation) / size, np.full(14, 1 / 14), atol=0.005)
    for number, name in enumerate(NAMES):
        own, known = strength[operation == number], BINS[name].astype(np.float32)
        signed = 1 <= number <= NAMES.index("sharpness")
        np.testing.assert_array_equal(np.unique(np.abs(own)), np.unique(known))
        assert (own < 0).mean() == pytest.approx(0.5 * 30 / 31 if signed else 0, abs=0.03)
        if signed:
            # Zero comes with both signs; the two translations' 31 numbers are all different too.
            counts = np.unique(np.abs(own), return_counts=True)[1]
            np.testing.assert_allclose(counts / len(own), 1 / 31, atol=0.015)
