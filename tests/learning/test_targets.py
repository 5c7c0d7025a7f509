"""Targets made from labels."""

import jax.numpy as jnp
import numpy as np

from jaxresnet.data.batches import Batch
from jaxresnet.learning.targets import counted_labels, soft_targets, train_targets


def test_targets_are_certain_of_the_label():
    targets = soft_targets(jnp.asarray([2, 0, 2], jnp.int32), 4)
    assert targets.dtype == jnp.float32
    np.testing.assert_array_equal(targets, [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0]])


def test_a_batch_without_examples_has_targets_without_rows():
    assert soft_targets(jnp.zeros(0, jnp.int32), 3).shape == (0, 3)


LABELS = jnp.asarray([2, 0], jnp.int32)
PLAIN = Batch(image=None, label=LABELS, mask=None)
MIXED = PLAIN._replace(other=jnp.asarray([3, 0], jnp.int32), share=jnp.asarray([0.75, 0.25], jnp.float32))


def test_plain_training_targets_are_the_labels():
    np.testing.assert_array_equal(train_targets(PLAIN, 4), soft_targets(LABELS, 4))


def test_smoothing_spreads_a_share_evenly():
    found = train_targets(PLAIN, 4, smoothing=0.2)
    np.testing.assert_allclose(found, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]], rtol=1e-6)


def test_both_labels_of_a_mixed_image_have_their_share():
    np.testing.assert_array_equal(train_targets(MIXED, 4), [[0, 0, 0.75, 0.25], [1, 0, 0, 0]])
    smooth = train_targets(MIXED, 4, smoothing=0.2)
    np.testing.assert_allclose(smooth[0], [0.05, 0.05, 0.65, 0.25], rtol=1e-6)


def test_mixed_images_count_by_their_larger_part():
    labels = MIXED._replace(other=jnp.asarray([3, 1], jnp.int32))
    assert counted_labels(labels).tolist() == [2, 1]  # shares of 0.75 and 0.25
    assert counted_labels(PLAIN).tolist() == [2, 0]
