"""The losses of single examples, by value."""

import math

import jax.numpy as jnp
import numpy as np

from jaxresnet.learning.losses import LOSSES, cross_entropy, mse

LOGITS = jnp.asarray([[0.0, math.log(3)], [0.0, 0.0], [math.log(3), 0.0]])
TARGETS = jnp.asarray([[0.0, 1.0], [0.5, 0.5], [0.0, 1.0]])


def test_cross_entropy():
    np.testing.assert_allclose(
        cross_entropy(LOGITS, TARGETS), [math.log(4 / 3), math.log(2), math.log(4)], rtol=1e-6
    )


def test_mse_is_that_of_the_probabilities():
    np.testing.assert_allclose(mse(LOGITS, TARGETS), [1 / 16, 0, 9 / 16], rtol=1e-6)


def test_losses_have_the_names_of_the_setting():
    assert dict(LOSSES) == {"cross_entropy": cross_entropy, "mse": mse}
