"""Targets of training: class probabilities. Only this module makes them from the labels of a batch."""

import jax
import jax.numpy as jnp
import optax

from jaxresnet.data.batches import Batch


def soft_targets(labels: jax.Array, classes: int) -> jax.Array:
    """Class probabilities float32 [B, C] for labels int [B].

    >>> import jax.numpy as jnp
    >>> soft_targets(jnp.array([2]), 3).tolist()
    [[0.0, 0.0, 1.0]]
    """
    return jax.nn.one_hot(labels, classes)


def train_targets(batch: Batch, classes: int, smoothing: float = 0.0) -> jax.Array:
    """Class probabilities float32 [B, C] for a training batch.

    Where it has pairs of images mixed, both labels have their share. `smoothing` is the share, from 0 to 1, that is
    then spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567).
    """
    targets = soft_targets(batch.label, classes)
    if batch.other is not None:
        share = batch.share[:, None]
        targets = share * targets + (1 - share) * soft_targets(batch.other, classes)
    return optax.smooth_labels(targets, smoothing) if smoothing else targets


def counted_labels(batch: Batch) -> jax.Array:
    """The labels int32 [B] by which training images count as classified correctly: of mixed ones the larger part's."""
    if batch.other is None:
        return batch.label
    return jnp.where(batch.share < 0.5, batch.other, batch.label)
