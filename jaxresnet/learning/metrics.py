"""Metrics as sums that stay on the device."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


class Metrics(struct.PyTreeNode):
    """Sums over examples. Ratios are computed from them outside jit.

    `loss_sum` float32 []. `confusion` int32 [C, C]: rows are true classes, columns are predicted ones. `nonfinite_step`
    int32 []: the number of the first step (counted from 1) whose loss or gradient was not finite, or 0.
    """

    loss_sum: Any
    confusion: Any
    nonfinite_step: Any

    @classmethod
    def empty(cls, classes: int) -> "Metrics":
        """Sums over no examples."""
        return cls(
            loss_sum=jnp.float32(0),
            confusion=jnp.zeros((classes, classes), jnp.int32),
            nonfinite_step=jnp.int32(0),
        )

    def add(self, logits: Any, labels: Any, losses: Any, mask: Any) -> "Metrics":
        """The sums with a batch added.

        `logits` float [B, C], `labels` int [B], `losses` float [B], `mask` bool [B]. Examples with a false mask only
        fill up a batch, and are not counted.

        >>> metrics = Metrics.empty(2).add(jnp.eye(2), jnp.array([0, 0]), jnp.array([0.5, 1.5]), jnp.ones(2, bool))
        >>> metrics.loss, metrics.accuracy
        (1.0, 0.5)
        """
        classes = logits.shape[-1]
        # A matrix product of one-hot rows, because a scatter would be slow on a GPU. float32 holds the counts of one
        # batch exactly.
        true = jax.nn.one_hot(labels, classes) * mask[:, None]
        predicted = jax.nn.one_hot(jnp.argmax(logits, -1), classes)
        counts = jnp.einsum("bt,bp->tp", true, predicted, precision=jax.lax.Precision.HIGHEST)
        return self.replace(
            loss_sum=self.loss_sum + jnp.sum(jnp.where(mask, losses, 0)),
            confusion=self.confusion + counts.astype(jnp.int32),
        )

    @property
    def count(self) -> int:
        """Number of examples counted."""
        return int(self.confusion.sum())

    @property
    def loss(self) -> float:
        """Mean loss per example; NaN if there are no examples."""
        return float(self.loss_sum) / self.count if self.count else float("nan")

    @property
    def accuracy(self) -> float:
        """Share of the examples that are classified correctly, 0 to 1; NaN if there are no examples."""
        return int(self.confusion.trace()) / self.count if self.count else float("nan")

    @property
    def per_class_accuracy(self) -> list[float | None]:
        """For each true class, the share of its examples that are classified correctly; None if it has none."""
        totals = self.confusion.sum(axis=1)
        return [int(self.confusion[c, c]) / int(total) if total else None for c, total in enumerate(totals)]
