"""Metric sums, by value."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxresnet.learning.losses import cross_entropy
from jaxresnet.learning.metrics import Metrics


def metrics_of(logits: jax.Array, labels: np.ndarray, mask: jax.Array, sizes: list[int]) -> Metrics:
    metrics, start = Metrics.empty(4), 0
    targets = jnp.eye(4)[labels]
    for size in sizes:
        part = slice(start, start + size)
        losses = cross_entropy(logits[part], targets[part])
        metrics = metrics.add(logits[part], labels[part], losses, mask[part])
        start += size
    return metrics


def test_sums_are_the_examples_own():
    generator = np.random.default_rng(0)
    logits = jnp.asarray(generator.normal(size=(30, 4)), jnp.float32)
    labels, mask = generator.integers(0, 3, 30), generator.random(30) < 0.7
    metrics = metrics_of(logits, labels, jnp.asarray(mask), [30])
    predicted = np.asarray(logits).argmax(1)
    expected = np.zeros((4, 4), int)
    for true, guess, counted in zip(labels, predicted, mask, strict=True):
        expected[true, guess] += counted
    np.testing.assert_array_equal(metrics.confusion, expected)
    assert metrics.count == mask.sum()
    assert metrics.accuracy == ((labels == predicted) & mask).sum() / mask.sum()
    losses = np.asarray(cross_entropy(logits, jnp.eye(4)[labels]))
    assert metrics.loss == pytest.approx(losses[mask].mean(), rel=1e-6)
    per_class = metrics.per_class_accuracy
    assert per_class[3] is None
    assert per_class[1] == ((labels == predicted) & mask)[labels == 1].sum() / mask[labels == 1].sum()


@settings(max_examples=5)
@given(cuts=st.sets(st.integers(1, 29)), seed=st.integers(0, 2**32 - 1), masked=st.sets(st.integers(0, 29)))
def test_any_split_into_batches_gives_the_same_sums(cuts: set[int], seed: int, masked: set[int]):
    generator = np.random.default_rng(seed)
    logits = jnp.asarray(generator.normal(size=(30, 4)), jnp.float32)
    labels, mask = generator.integers(0, 4, 30), jnp.asarray([i not in masked for i in range(30)])
    whole = metrics_of(logits, labels, mask, [30])
    parts = metrics_of(logits, labels, mask, np.diff([0, *sorted(cuts), 30]).tolist())
    np.testing.assert_array_equal(parts.confusion, whole.confusion)
    np.testing.assert_allclose(parts.loss_sum, whole.loss_sum, rtol=1e-5)
    assert whole.count == 30 - len(masked)


def test_a_masked_example_that_is_not_finite_counts_for_nothing():
    logits = jnp.asarray([[1.0, 0, 0, 0], [jnp.nan] * 4])
    metrics = metrics_of(logits, np.zeros(2, int), jnp.asarray([True, False]), [2])
    assert metrics.count == 1
    assert math.isfinite(metrics.loss)


def test_no_example_has_no_accuracy():
    assert math.isnan(Metrics.empty(4).accuracy)
    assert math.isnan(Metrics.empty(4).loss)
