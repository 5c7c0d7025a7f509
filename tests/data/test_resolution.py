"""Smaller training images: what the resizing computes, and that all else in a batch stays as it was."""

import numpy as np
import pytest
import tensorflow as tf

from jaxresnet.config.schema import Config, DataConfig
from jaxresnet.data.batches import train_batches
from jaxresnet.data.resolution import Phase, resize
from jaxresnet.data.sources import open_source
from jaxresnet.data.splits import Split, load_split

SCHEDULE = {"resolution.sizes": (16, 24), "resolution.shares": (0.25, 0.35)}
MIXING = {"augment.mixup": 0.5, "augment.cutmix": 1.0}


def area_means(images: np.ndarray, size: int) -> np.ndarray:
    """By the definition: each new pixel's share of every old one, in float64."""
    side = images.shape[1]
    edges = np.arange(size + 1) * side / size
    old = np.arange(side)
    shares = np.clip(np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old), 0, None)
    shares *= size / side
    return np.einsum("ih,jw,bhwc->bijc", shares, shares, images.astype(float), optimize=True)


@pytest.fixture(scope="module")
def split() -> Split:
    return load_split(open_source(DataConfig(name="digits")), "train")


def test_halving_is_the_mean_of_four_pixels_with_halves_to_the_even():
    image = np.array([[0, 1, 9, 9], [0, 1, 9, 9], [255, 255, 1, 2], [255, 254, 2, 1]], np.uint8)
    phases = [Phase(0, 1, (2, 2)), Phase(1, 2, (4, 4))]
    batch = image[None, :, :, None]
    resized = resize(tf.constant(batch), tf.constant(0, tf.int64), phases)
    assert resized.dtype == tf.uint8
    assert resized.numpy()[0, :, :, 0].tolist() == [[0, 9], [255, 2]]  # of 0.5, 9, 254.75 and 1.5
    np.testing.assert_array_equal(resize(tf.constant(batch), tf.constant(1, tf.int64), phases), batch)


def test_batches_are_those_of_the_full_size_made_smaller(split: Split):
    """Order, draws, labels and shares are the same; batch k is the same wherever one starts."""
    full = Config().replace({"data.name": "digits", "epochs": 1, "batch_size": 120, **MIXING})
    config = full.replace(SCHEDULE)
    expected, found = (list(train_batches(each, split)) for each in (full, config))
    assert [batch.image.shape[1] for batch in found] == [16] * 3 + [24] * 4 + [32] * 5
    for own, batch in zip(expected, found, strict=True):
        assert batch.image.dtype == np.uint8
        for name in ("label", "mask", "other", "share"):
            np.testing.assert_array_equal(getattr(own, name), getattr(batch, name))
        means = area_means(own.image, batch.image.shape[1])
        # Float32 may lie on the other side of a half.
        assert np.abs(batch.image - means).max() <= 0.5 + 1e-4
    for one, other in zip(found[5:], train_batches(config, split, 5), strict=True):
        np.testing.assert_array_equal(one.image, other.image)
