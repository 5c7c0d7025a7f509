"""Losses per example, and metrics as sums that stay on the device."""

import jax
import jax.numpy as jnp
import optax
from flax import struct


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy in nats [B] of logits [B, C] against class probabilities [B, C]."""
    return optax.losses.softmax_cross_entropy(logits, targets)


def mse(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Squared error [B] of softmax(logits) [B, C] against class probabilities [B, C], averaged over classes."""
    return jnp.mean(jnp.square(jax.nn.softmax(logits) - targets), axis=-1)


LOSSES = {"cross_entropy": cross_entropy, "mse": mse}
"""Loss functions by the configuration's `loss`."""


@struct.dataclass
class Metrics:
    """Sums over examples; every ratio is one division outside jit.

    `loss_sum` float32 []; `confusion` int32 [C, C], rows are true classes, columns predicted ones;
    `nonfinite_step` int32 [], the number of the first step (counted from 1) whose loss or gradient
    was not finite, 0 if there was none.
    """

    loss_sum: jax.Array
    confusion: jax.Array
    nonfinite_step: jax.Array

    @classmethod
    def empty(cls, classes: int) -> "Metrics":
        """Sums over no example."""
        return cls(
            loss_sum=jnp.float32(0),
            confusion=jnp.zeros((classes, classes), jnp.int32),
            nonfinite_step=jnp.int32(0),
        )

    def add(self, logits: jax.Array, targets: jax.Array, losses: jax.Array, mask: jax.Array) -> "Metrics":
        """The sums with a batch added.

        `logits` and `targets` are float [B, C], `losses` float [B], `mask` bool [B]; examples with a
        false mask, which only fill a batch up, count for nothing. A target's class is its largest entry.
        """
        classes = targets.shape[-1]
        # As a matrix product of one-hot rows: a scatter would be slow on a GPU. Float32 holds the
        # counts of one batch exactly.
        true = jax.nn.one_hot(jnp.argmax(targets, -1), classes) * mask[:, None]
        predicted = jax.nn.one_hot(jnp.argmax(logits, -1), classes)
        counts = jnp.einsum("bt,bp->tp", true, predicted, precision=jax.lax.Precision.HIGHEST)
        return self.replace(
            loss_sum=self.loss_sum + jnp.sum(jnp.where(mask, losses, 0)),
            confusion=self.confusion + counts.astype(jnp.int32),
        )

    @property
    def count(self) -> int:
        """Examples counted."""
        return int(self.confusion.sum())

    @property
    def loss(self) -> float:
        """Mean loss per example; NaN over no example."""
        return float(self.loss_sum) / self.count if self.count else float("nan")

    @property
    def accuracy(self) -> float:
        """Share of examples classified correctly, 0 to 1; NaN over no example."""
        return int(self.confusion.trace()) / self.count if self.count else float("nan")

    @property
    def per_class_accuracy(self) -> list[float | None]:
        """Share of each true class's examples classified correctly; None for a class without examples."""
        totals = self.confusion.sum(axis=1)
        return [int(self.confusion[c, c]) / int(total) if total else None for c, total in enumerate(totals)]
