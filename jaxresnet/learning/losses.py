"""Losses of each example, from logits and soft targets."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Loss = Callable[[jax.Array, jax.Array], jax.Array]
"""(logits [B, C], targets [B, C]) -> losses [B], all floating point."""


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy [B], in nats, of logits [B, C] against class probabilities [B, C].

    >>> float(cross_entropy(jnp.zeros((1, 4)), jnp.ones((1, 4)) / 4)[0] - jnp.log(4))
    0.0
    """
    return optax.losses.softmax_cross_entropy(logits, targets)


def mse(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Squared error [B] of softmax(logits) against class probabilities, both [B, C], averaged over the classes."""
    return jnp.mean(jnp.square(jax.nn.softmax(logits) - targets), axis=-1)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "mse": mse}
"""The loss functions, by the configuration's `loss`."""
