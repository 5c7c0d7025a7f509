"""Batches as a pure function of seed and step."""

import time
from itertools import islice
from typing import Any

import numpy as np
from helpers import plan_of
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxresnet.config.schema import Config
from jaxresnet.data.batches import Batch, evaluation_batches, train_batches
from jaxresnet.data.splits import Split

PLAIN: dict[str, Any] = {
    "augment.horizontal_flip": False,
    "augment.crop_padding": 0,
    "augment.rotation_degrees": 0,
    "augment.brightness": 0,
}


def numbered(examples: int) -> Split:
    """Images that carry their own number, so that a batch tells what is in it."""
    images = np.zeros((examples, 4, 4, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(examples) // 256, np.arange(examples) % 256
    return Split(images, np.arange(examples, dtype=np.int32) % 10)


def numbers(batch: Batch) -> list[int]:
    return (batch.image[:, 0, 0, 0].astype(int) * 256 + batch.image[:, 0, 0, 1]).tolist()


def config(**values: object) -> Config:
    """A configuration for the digits, whose training split has 1,442 examples, without augmentation."""
    return Config().replace({"data.name": "digits"} | PLAIN | values)


def test_epochs_are_permutations_and_no_example_is_left_out():
    run = config(batch_size=100, epochs=3)
    batches = list(train_batches(run, numbered(1442)))
    assert len(batches) == plan_of(run).total_steps == 43
    order = [number for batch in batches for number in numbers(batch)]
    epochs = [order[e * 1442 : (e + 1) * 1442] for e in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(1442))
    assert len(set(epochs[2])) == len(epochs[2]) == 4300 - 2 * 1442
    assert abs(np.corrcoef(epochs[0], epochs[1])[0, 1]) < 0.1
    for batch in batches:
        assert batch.image.shape == (100, 4, 4, 3)
        assert batch.image.dtype == np.uint8
        assert batch.label.dtype == np.int32
        assert batch.mask.all()
        np.testing.assert_array_equal(batch.label, np.array(numbers(batch)) % 10)


@settings(max_examples=4)
@given(st.data())
def test_any_seed_batch_size_holdout_and_start_give_the_same_batches(data: st.DataObject):
    """Epochs are permutations, and batch k is the same wherever one starts."""
    held_out = data.draw(st.integers(0, 1300), "hold-out")
    examples = 1442 - held_out
    plan = plan_of(
        settings={
            "seed": data.draw(st.integers(0, 2**31 - 1), "seed"),
            "epochs": data.draw(st.integers(1, 3), "epochs"),
            "batch_size": data.draw(st.integers(max(1, examples // 20), examples), "batch size"),
            "data.name": "digits",
            "data.validation_examples": held_out,
        }
    )
    run, split = plan.config, numbered(examples)
    order = [number for batch in train_batches(run.replace(PLAIN), split) for number in numbers(batch)]
    assert len(order) == plan.total_steps * run.batch_size
    for epoch in range(run.epochs):
        part = order[epoch * examples : (epoch + 1) * examples]
        assert len(set(part)) == len(part)
    start = data.draw(st.integers(0, plan.total_steps), "start")
    from_zero = list(train_batches(run, split))[start:]
    from_there = list(train_batches(run, split, start))
    assert len(from_there) == len(from_zero) == plan.total_steps - start
    for expected, found in zip(from_zero, from_there, strict=True):
        np.testing.assert_array_equal(found.image, expected.image)
        np.testing.assert_array_equal(found.label, expected.label)


def test_seeds_give_other_orders_and_other_augmentation():
    split = numbered(1442)
    first = [numbers(next(train_batches(config(seed=seed, batch_size=50), split))) for seed in (0, 0, 1)]
    assert first[0] == first[1] != first[2]
    white = Split(np.full((1442, 4, 4, 3), 100, np.uint8), split.labels)
    brightness = []
    for seed in (0, 1):
        run = config(seed=seed, batch_size=50).replace({"augment.brightness": 0.2})
        brightness.append(next(train_batches(run, white)).image[:, 0, 0, 0].tolist())
    assert brightness[0] != brightness[1]


def test_starting_late_takes_no_longer():
    run, split = config(batch_size=100, epochs=100_000), numbered(1442)
    next(train_batches(run, split))
    began = time.monotonic()
    next(train_batches(run, split, 1_000_000))
    assert time.monotonic() - began < 5  # drawing a million batches would take minutes


def test_batches_stop_at_the_end_of_the_run():
    batches = train_batches(config(batch_size=1442, epochs=2), numbered(1442), 1)
    assert len(list(islice(batches, 5))) == 1


def test_evaluation_counts_every_example_once_at_any_batch_size():
    split = numbered(23)
    for size in (1, 5, 8, 23, 50):
        batches = list(evaluation_batches(split, size))
        assert {len(batch.label) for batch in batches} == {size}
        seen = [n for batch in batches for n, real in zip(numbers(batch), batch.mask, strict=True) if real]
        assert seen == list(range(23))
        assert sum(batch.mask.sum() for batch in batches) == 23
