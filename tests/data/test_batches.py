"""Batches as a pure function of seed and step."""

import hashlib
import time
from itertools import islice
from typing import Any

import numpy as np
import pytest
from helpers import plan_of
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxresnet.config.schema import NO_AUGMENTATION, Config, DataConfig
from jaxresnet.data.batches import Batch, evaluation_batches, train_batches, zero_batch
from jaxresnet.data.sources import open_source
from jaxresnet.data.splits import Split, load_split

EVERYTHING: dict[str, Any] = {
    "augment.alternating_flip": True,
    "augment.padding": "reflect",
    "augment.crop_padding": 2,
    "augment.trivial_augment": True,
    "augment.cutout": 2,
    "augment.random_erasing": 0.5,
    "augment.mixup": 0.5,
    "augment.cutmix": 1.0,
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
    return Config().replace({"data.name": "digits", **NO_AUGMENTATION, **values})


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
    order = [
        number for batch in train_batches(run.replace(NO_AUGMENTATION), split) for number in numbers(batch)
    ]
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


def test_a_late_start_gives_the_same_batches_with_everything_on():
    run, split = (
        config(batch_size=120, epochs=3).replace({**EVERYTHING, "augment.horizontal_flip": True}),
        numbered(500),
    )
    from_zero, from_there = (list(train_batches(run, split, start)) for start in (0, 5))
    assert (len(from_zero), len(from_there)) == (12, 7)
    for expected, found in zip(from_zero[5:], from_there, strict=True):
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kinds", ["the paper's", "everything", "mixup", "CutMix"])
def test_parts_of_a_batch_are_those_of_the_whole(kinds: str):
    """To the bit, wherever the batch is cut, so that several processes train on the batch of one."""
    settings: dict[str, Any] = {
        "the paper's": {},
        "everything": EVERYTHING | {"augment.horizontal_flip": True},
        "mixup": {"augment.mixup": 0.5},
        "CutMix": {"augment.cutmix": 1.0},
    }[kinds]
    run = Config().replace({"data.name": "digits", "seed": 3, "batch_size": 12, **settings})
    split = load_split(open_source(DataConfig(name="digits")), "train")
    split = Split(split.images[:40], split.labels[:40])
    whole = next(train_batches(run, split, 3))  # it ends in the next epoch
    parts = [next(train_batches(run, split, 3, own)) for own in (slice(0, 5), slice(5, 12))]
    for field, expected in zip(zip(*parts, strict=True), whole, strict=True):
        if expected is None:
            assert set(field) == {None}
        else:
            assert [len(each) for each in field] == [5, 7]
            np.testing.assert_array_equal(np.concatenate(field), expected, strict=True)


def test_the_papers_batches_are_those_of_the_first_version():
    """To the bit: what a version adds, and is off, must not change them."""
    run = Config().replace({"data.name": "digits", "seed": 3})
    split = load_split(open_source(DataConfig(name="digits")), "train")
    for step, digest in (
        (0, "8c813b223eac573d004cc8b2065fb29070b69f56956be9da895684ac31386464"),
        (11, "265656011e3983c5402767ded6c0e8d7a49e8c38bc71f944476ef9ebd8338d34"),
    ):
        batch = next(train_batches(run, split, step))
        assert hashlib.sha256(batch.image.tobytes()).hexdigest() == digest
        assert batch.label[:8].tolist() == {0: [9, 2, 7, 7, 7, 0, 2, 3], 11: [1, 6, 8, 8, 9, 7, 9, 7]}[step]
        assert (batch.other, batch.share) == (None, None)


def flips_by_example(run: Config) -> dict[int, list[bool]]:
    """Whether each of 300 examples was mirrored in each of its epochs, by the example's number."""
    images = np.zeros((300, 4, 4, 3), np.uint8)
    images[:, 1, :, 0], images[:, 1, :, 1] = (np.arange(300) // 256)[:, None], (np.arange(300) % 256)[:, None]
    images[:, 0, 0, 2] = 255  # on the left
    mirrored: dict[int, list[bool]] = {}
    for batch in train_batches(run, Split(images, np.zeros(300, np.int32))):
        for image in batch.image.astype(int):
            mirrored.setdefault(image[1, 0, 0] * 256 + image[1, 0, 1], []).append(image[0, 3, 2] == 255)
    return mirrored


def test_an_alternating_flip_mirrors_every_other_epoch():
    settings = {"augment.horizontal_flip": True, "augment.alternating_flip": True}
    mirrored = flips_by_example(config(batch_size=70, epochs=4, **settings))
    assert all(
        flips in ([a, not a, a, not a][: len(flips)] for a in (True, False)) for flips in mirrored.values()
    )
    assert sorted(len(flips) for flips in mirrored.values()) == [3] * 10 + [4] * 290
    first = {number: flips[0] for number, flips in mirrored.items()}
    assert 120 < sum(first.values()) < 180
    other = flips_by_example(config(batch_size=75, epochs=1, seed=1, **settings))
    assert 120 < sum(flips == [first[number]] for number, flips in other.items()) < 180


def test_mixed_batches_name_the_partner_and_the_part():
    """And an example batch has the shapes and dtypes of a real one."""
    split, mixings = numbered(200), ({}, {"augment.mixup": 0.5}, {"augment.cutmix": 1.0})
    plain, *mixed = (next(train_batches(config(batch_size=50, **mixing), split)) for mixing in mixings)
    for batch in mixed:
        np.testing.assert_array_equal(batch.label, plain.label)
        np.testing.assert_array_equal(batch.other, np.roll(plain.label, 1))
        assert batch.share.min() > 0
        assert batch.share.max() <= 1
        assert batch.share.std() > 0.05
    for batch, mixing in zip((plain, *mixed), mixings, strict=True):
        example = zero_batch(config(batch_size=50, **mixing), (4, 4, 3))
        for name, field in example._asdict().items():
            real = getattr(batch, name)
            assert (field is None) == (real is None) == (name in ("other", "share") and not mixing)
            assert field is None or (field.shape, field.dtype) == (real.shape, real.dtype), name


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
