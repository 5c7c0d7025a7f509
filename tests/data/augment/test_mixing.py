"""Mixup and CutMix: the weights, the pixels and the shares."""

import numpy as np
import pytest
import tensorflow as tf

from jaxresnet.config.schema import AugmentConfig
from jaxresnet.data.augment.mixing import MixingParameters, cutmix, draw_mixing, mix, mixup

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
NUMBERED = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None, None], (64, 32, 32, 3))
"""Images of one value each, so that a pixel tells whose it is."""


def parameters(weights: list[float], centres: list[tuple[int, int]] | None = None) -> MixingParameters:
    y, x = np.array(centres or [(0, 0)] * len(weights), np.int32).T
    return MixingParameters(tf.constant(weights, tf.float32), tf.constant(y), tf.constant(x))


def test_mixup_weighs_each_image_with_the_one_before_it():
    weights = [1.0, 0.25, 0.5, 0.9, 1e-6]
    mixed, share = mixup(tf.constant(IMAGES), parameters(weights))
    own = np.array(weights)[:, None, None, None]
    expected = own * IMAGES + (1 - own) * np.roll(IMAGES, 1, axis=0)
    np.testing.assert_allclose(mixed, expected, atol=0.501)
    np.testing.assert_array_equal(share, np.array(weights, np.float32))
    np.testing.assert_array_equal(mixed[0], IMAGES[0])
    np.testing.assert_array_equal(mixed[4], IMAGES[3])


def test_cutmix_pastes_a_rectangle_and_tells_what_is_left():
    # Of 6 x 8 pixels: half a side of 3 x sqrt(1 - weight) rows and 4 x sqrt(1 - weight) columns.
    weights = [1.0, 0.75, 0.75, 0.25, 1e-6]
    centres = [(3, 4), (3, 4), (0, 7), (3, 1), (3, 4)]
    mixed, share = cutmix(tf.constant(IMAGES), parameters(weights, centres))
    expected, partners = IMAGES.copy(), np.roll(IMAGES, 1, axis=0)
    for i, (rows, columns) in {
        1: (slice(2, 4), slice(2, 6)),
        2: (slice(0, 1), slice(5, 8)),  # cut off at the corner
        3: (slice(1, 5), slice(0, 4)),
        4: (slice(1, 5), slice(1, 7)),
    }.items():
        expected[i, rows, columns] = partners[i, rows, columns]
    np.testing.assert_array_equal(mixed, expected)
    np.testing.assert_allclose(share, [1, 1 - 8 / 48, 1 - 3 / 48, 1 - 16 / 48, 1 - 24 / 48], rtol=1e-6)


def test_cutmixs_share_is_the_area_that_is_left():
    drawn = draw_mixing(1.0, tf.constant(NUMBERED), tf.constant([1, 2]))
    mixed, share = cutmix(tf.constant(NUMBERED), drawn)
    kept = (mixed.numpy() == NUMBERED).mean((1, 2, 3))
    np.testing.assert_allclose(share, kept, rtol=1e-6)
    partners = np.roll(NUMBERED, 1, axis=0)
    assert ((mixed.numpy() == NUMBERED) | (mixed.numpy() == partners)).all()
    assert 0.4 < kept.mean() < 0.8  # more than half: what reaches beyond the border is kept


@pytest.mark.parametrize("alpha", [5e-324, 0.01, 0.2, 1.0, 100.0])
def test_weights_have_the_beta_distribution(alpha: float):
    size = 20_000
    drawn = draw_mixing(alpha, tf.zeros([size, 32, 24, 1], tf.uint8), tf.constant([3, 4]))
    weight, y, x = (tensor.numpy() for tensor in drawn)
    assert (weight > 0).all()
    assert (weight <= 1).all()
    assert weight.mean() == pytest.approx(0.5, abs=0.015)
    assert weight.var() == pytest.approx(1 / (8 * alpha + 4), abs=0.005)
    if alpha == 1:
        np.testing.assert_allclose(np.histogram(weight, 10, (0, 1))[0] / size, 0.1, atol=0.01)
    assert (np.unique(y) == np.arange(32)).all()
    assert (np.unique(x) == np.arange(24)).all()
    assert np.abs(np.corrcoef([weight, y, x]) - np.eye(3)).max() < 0.03


def test_one_of_both_is_drawn_for_each_batch():
    config, images = AugmentConfig(mixup=1.0, cutmix=1.0), tf.constant(NUMBERED)
    mix_by = tf.function(lambda seed: mix(config, images, seed), autograph=False)
    by_area = []
    for step in range(40):
        mixed, share = mix_by(tf.constant([1, step]))
        kept = (mixed.numpy() == NUMBERED).mean((1, 2, 3))
        by_area.append(np.allclose(share, kept, rtol=1e-6))
        if not by_area[-1]:
            np.testing.assert_allclose(
                mixed[5:, 0, 0, 0],
                share[5:] * np.arange(5, 64) + (1 - share[5:]) * np.arange(4, 63),
                atol=0.501,
            )
    assert 10 < sum(by_area) < 30


def test_each_alone_is_that_one_in_every_batch():
    images, seeds = tf.constant(NUMBERED), [tf.constant([1, step]) for step in range(5)]
    for seed in seeds:
        mixed, share = mix(AugmentConfig(cutmix=1.0), images, seed)
        np.testing.assert_allclose(share, (mixed.numpy() == NUMBERED).mean((1, 2, 3)), rtol=1e-6)
        mixed, share = mix(AugmentConfig(mixup=100.0), images, seed)
        assert share.numpy().min() > 0.3
        assert share.numpy().max() < 0.7
