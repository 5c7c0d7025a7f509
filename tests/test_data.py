"""Data sets, the hold-out, and batches as a pure function of seed and step."""

import os
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxresnet import data
from jaxresnet.batch import Batch
from jaxresnet.config import AugmentConfig, Config, DataConfig
from jaxresnet.data import Split, evaluation_batches, holdout_indices, load_split, load_splits, train_batches
from jaxresnet.errors import UserError

PLAIN = {"horizontal_flip": False, "crop_padding": 0, "rotation_degrees": 0, "brightness": 0}
OFF = AugmentConfig.model_validate(PLAIN)


def numbered(examples: int) -> Split:
    """Images that carry their own number, so that a batch tells what is in it."""
    images = np.zeros((examples, 4, 4, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(examples) // 256, np.arange(examples) % 256
    return Split(images, np.arange(examples, dtype=np.int32) % 10)


def numbers(batch: Batch) -> list[int]:
    return (batch.image[:, 0, 0, 0].astype(int) * 256 + batch.image[:, 0, 0, 1]).tolist()


def config(**fields: object) -> Config:
    """A configuration for the digits, whose training split has 1,442 examples."""
    return Config.model_validate({"data": {"name": "digits"}, "augment": PLAIN} | fields)


def test_epochs_are_permutations_and_no_example_is_left_out():
    run = config(batch_size=100, epochs=3)
    batches = list(train_batches(run, numbered(1442)))
    assert len(batches) == run.total_steps == 43
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


@settings(max_examples=6)
@given(st.data())
def test_any_seed_batch_size_holdout_and_start_give_the_same_batches(data: st.DataObject):
    """Epochs are permutations, and batch k is the same wherever one starts."""
    held_out = data.draw(st.integers(0, 1300), "hold-out")
    examples = 1442 - held_out
    run = Config.model_validate(
        {
            "seed": data.draw(st.integers(0, 2**31 - 1), "seed"),
            "epochs": data.draw(st.integers(1, 3), "epochs"),
            "batch_size": data.draw(st.integers(max(1, examples // 20), examples), "batch size"),
            "data": {"name": "digits", "validation_examples": held_out},
        }
    )
    split = numbered(examples)
    order = [
        n for batch in train_batches(run.model_copy(update={"augment": OFF}), split) for n in numbers(batch)
    ]
    assert len(order) == run.total_steps * run.batch_size
    for epoch in range(run.epochs):
        part = order[epoch * examples : (epoch + 1) * examples]
        assert len(set(part)) == len(part)
    start = data.draw(st.integers(0, run.total_steps), "start")
    from_zero = list(train_batches(run, split))[start:]
    from_there = list(train_batches(run, split, start))
    assert len(from_there) == len(from_zero) == run.total_steps - start
    for expected, found in zip(from_zero, from_there, strict=True):
        np.testing.assert_array_equal(found.image, expected.image)
        np.testing.assert_array_equal(found.label, expected.label)


def test_seeds_give_other_orders_and_other_augmentation():
    split = numbered(1442)
    first = [numbers(next(train_batches(config(seed=seed, batch_size=50), split))) for seed in (0, 0, 1)]
    assert first[0] == first[1] != first[2]
    flips = []
    for seed in (0, 1):
        run = config(seed=seed, batch_size=50, augment=PLAIN | {"brightness": 0.2})
        white = Split(np.full((1442, 4, 4, 3), 100, np.uint8), split.labels)
        flips.append(next(train_batches(run, white)).image[:, 0, 0, 0].tolist())
    assert flips[0] != flips[1]


def test_starting_late_takes_no_longer():
    run, split = config(batch_size=100, epochs=100_000), numbered(1442)
    next(train_batches(run, split))
    began = time.monotonic()
    next(train_batches(run, split, 1_000_000))
    assert time.monotonic() - began < 5  # drawing a million batches would take minutes


def test_evaluation_counts_every_example_once_at_any_batch_size():
    split = numbered(23)
    for size in (1, 5, 8, 23, 50):
        batches = list(evaluation_batches(split, size))
        assert {len(batch.label) for batch in batches} == {size}
        seen = [n for batch in batches for n, real in zip(numbers(batch), batch.mask, strict=True) if real]
        assert seen == list(range(23))
        assert sum(batch.mask.sum() for batch in batches) == 23


@pytest.mark.parametrize("examples", [0, 1, 10, 37, 300])
def test_holdout_is_stratified(examples: int):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [100, 50, 200, 33]))
    held_out = holdout_indices(labels, examples)
    assert len(set(held_out.tolist())) == examples
    counts = np.bincount(labels[held_out], minlength=4)
    np.testing.assert_allclose(counts, examples * np.array([100, 50, 200, 33]) / 383, atol=1)


def test_holdout_and_training_split_share_nothing_and_miss_nothing():
    whole = load_split(DataConfig(name="digits"), "train")
    held_out = DataConfig(name="digits", validation_examples=150)
    train, validation = load_split(held_out, "train"), load_split(held_out, "validation")
    assert (len(train.labels), len(validation.labels)) == (1292, 150)
    both = np.concatenate([train.images, validation.images]).reshape(1442, -1)
    np.testing.assert_array_equal(
        np.sort(both.astype(int) @ np.arange(3072)),
        np.sort(whole.images.reshape(1442, -1).astype(int) @ np.arange(3072)),
    )
    np.testing.assert_allclose(np.bincount(validation.labels), 15, atol=1)


def test_digits():
    digits = DataConfig(name="digits")
    train, test = load_split(digits, "train"), load_split(digits, "test")
    info = Config(data=digits).dataset
    assert train.images.shape == (info.train_examples, *info.image_shape)
    assert test.images.shape == (info.test_examples, *info.image_shape)
    assert train.images.dtype == np.uint8
    assert train.images.max() == 255
    np.testing.assert_array_equal(train.labels[:10], np.arange(10))
    np.testing.assert_array_equal(np.bincount(test.labels), [35, 36, 35, 36, 36, 36, 36, 35, 34, 36])
    scaled = train.images / 255
    np.testing.assert_allclose(scaled.mean((0, 1, 2)), info.mean, atol=1e-4)
    np.testing.assert_allclose(scaled.std((0, 1, 2)), info.std, atol=1e-4)
    # Every grey 8x8 pixel is a block of 4x4 equal pixels in three equal channels.
    blocks = train.images.reshape(-1, 8, 4, 8, 4, 3)
    assert (blocks == blocks[:, :, :1, :, :1, :1]).all()


def prepared_cifar10() -> bool:
    return bool(list(Path(os.environ.get("TFDS_DATA_DIR", "")).glob("cifar10/*/dataset_info.json")))


with_cifar10 = pytest.mark.skipif(
    not (os.environ.get("TFDS_DATA_DIR") and prepared_cifar10()),
    reason="TFDS_DATA_DIR holds no prepared CIFAR-10",
)


@with_cifar10
def test_real_cifar10():
    splits = load_splits(DataConfig(validation_examples=5000), {"train", "validation", "test"})
    train, validation, test = splits["train"], splits["validation"], splits["test"]
    assert len(validation.labels) == 5000
    train = Split(*(np.concatenate(parts) for parts in zip(train, validation, strict=True)))
    info = Config().dataset
    assert train.images.shape == (50_000, 32, 32, 3)
    assert test.images.shape == (10_000, 32, 32, 3)
    assert set(np.bincount(train.labels)) == {5000}
    assert set(np.bincount(test.labels)) == {1000}
    mean = train.images.mean((0, 1, 2)) / 255
    square = np.square(train.images, dtype=np.uint16).mean((0, 1, 2)) / 255**2
    np.testing.assert_allclose(mean, info.mean, atol=1e-4)
    np.testing.assert_allclose(np.sqrt(square - mean**2), info.std, atol=1e-4)


def damaged_copy(folder: Path, damage) -> str:
    """A folder with CIFAR-10 whose test split's file is damaged."""
    (source,) = Path(os.environ["TFDS_DATA_DIR"]).glob("cifar10/*")
    copy = folder / "cifar10" / source.name
    copy.mkdir(parents=True)
    for path in source.iterdir():
        if "-test." in path.name:
            (copy / path.name).write_bytes(damage(bytearray(path.read_bytes())))
        else:
            (copy / path.name).symlink_to(path)
    return str(folder)


def flip(content: bytearray) -> bytearray:
    content[len(content) // 2] ^= 1
    return content


@with_cifar10
@pytest.mark.parametrize(
    ("damage", "problem"),
    [(flip, "corrupted record"), (lambda content: content[:-50], "truncated record")],
    ids=["flipped", "truncated"],
)
def test_a_damaged_file_is_named(tmp_path: Path, capfd, damage, problem: str):
    directory = damaged_copy(tmp_path, damage)
    with pytest.raises(UserError, match=rf"{tmp_path}/\S*-test\.tfrecord\S*: {problem} .*; remove") as caught:
        load_split(DataConfig(dir=directory), "test")
    assert caught.value.exit_code == 1
    assert len(str(caught.value).splitlines()) == 1
    assert "Op:" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("images", "labels", "problem"),
    [
        (np.zeros((1442, 32, 32, 3), np.uint8), np.full(1442, 10), "labels 10 to 10"),
        (np.zeros((1442, 32, 32, 3), np.uint8), np.arange(1442) % 10 - 1, "labels -1 to 8"),
        (np.zeros((1441, 32, 32, 3), np.uint8), np.arange(1441) % 10, r"images \(1441, 32, 32, 3\)"),
        (np.zeros((1442, 28, 28, 1), np.uint8), np.arange(1442) % 10, r"images \(1442, 28, 28, 1\)"),
        (np.zeros((1442, 32, 32, 3), np.float32), np.arange(1442) % 10, "float32 images"),
        (np.zeros((0, 32, 32, 3), np.uint8), np.arange(0), r"images \(0, 32, 32, 3\);"),
    ],
)
def test_a_foreign_data_set_is_refused(monkeypatch, images: np.ndarray, labels: np.ndarray, problem: str):
    monkeypatch.setattr(data, "_load_digits", lambda split: Split(images, labels))
    with pytest.raises(
        UserError, match=rf"train split is not that of digits: expected uint8 .*found .*{problem}"
    ):
        load_split(DataConfig(name="digits"), "train")


def test_missing_data_without_a_network_fails_fast_with_the_ways_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "CIFAR10_URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")  # nothing listens
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        load_split(DataConfig(dir=str(tmp_path)), "train")
    assert time.monotonic() - began < 15
    assert caught.value.exit_code == 1
    for part in ("TFDS_DATA_DIR", "--config configs/digits.toml", str(tmp_path)):
        assert part in str(caught.value)
    assert "162 MiB" in capsys.readouterr().out


def test_a_host_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "PROBE_SECONDS", 0.5)

    def hang(*_: object, **__: object) -> None:
        time.sleep(3)
        raise OSError("too late")

    monkeypatch.setattr(data.urllib.request, "urlopen", hang)
    began = time.monotonic()
    with pytest.raises(UserError, match="no answer"):
        load_split(DataConfig(dir=str(tmp_path)), "train")
    assert time.monotonic() - began < 2.5


def test_batches_stop_at_the_end_of_the_run():
    batches = train_batches(config(batch_size=1442, epochs=2), numbered(1442), 1)
    assert len(list(islice(batches, 5))) == 1
