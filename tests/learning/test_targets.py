"""Targets made from labels."""

import jax.numpy as jnp
import numpy as np

from jaxresnet.learning.targets import soft_targets


def test_targets_are_certain_of_the_label():
    targets = soft_targets(jnp.asarray([2, 0, 2], jnp.int32), 4)
    assert targets.dtype == jnp.float32
    np.testing.assert_array_equal(targets, [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0]])


def test_a_batch_without_examples_has_targets_without_rows():
    assert soft_targets(jnp.zeros(0, jnp.int32), 3).shape == (0, 3)
