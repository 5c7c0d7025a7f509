"""Splits: the hold-out, and data sets that are not what their facts or a network's say."""

import dataclasses

import numpy as np
import pytest

from jaxresnet.config.schema import DataConfig
from jaxresnet.data.info import DatasetInfo
from jaxresnet.data.sources import open_source
from jaxresnet.data.sources.cifar10 import INFO as CIFAR10
from jaxresnet.data.sources.digits import INFO, Digits
from jaxresnet.data.splits import Split, holdout_indices, load_split, load_splits
from jaxresnet.errors import UserError

DIGITS = open_source(DataConfig(name="digits"))


@pytest.mark.parametrize("examples", [0, 1, 10, 37, 300])
def test_holdout_is_stratified(examples: int):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [100, 50, 200, 33]))
    held_out = holdout_indices(labels, examples)
    assert len(set(held_out.tolist())) == examples
    counts = np.bincount(labels[held_out], minlength=4)
    np.testing.assert_allclose(counts, examples * np.array([100, 50, 200, 33]) / 383, atol=1)


def test_holdout_and_training_split_share_nothing_and_miss_nothing():
    whole = load_split(DIGITS, "train")
    train, validation = (
        load_split(DIGITS, name, validation_examples=150) for name in ("train", "validation")
    )
    assert (len(train.labels), len(validation.labels)) == (1292, 150)
    both = np.concatenate([train.images, validation.images]).reshape(1442, -1)
    np.testing.assert_array_equal(
        np.sort(both.astype(int) @ np.arange(3072)),
        np.sort(whole.images.reshape(1442, -1).astype(int) @ np.arange(3072)),
    )
    np.testing.assert_allclose(np.bincount(validation.labels), 15, atol=1)
    together = load_splits(DIGITS, {"validation", "test"}, validation_examples=150)
    assert set(together) == {"validation", "test"}
    np.testing.assert_array_equal(together["validation"].images, validation.images)


def test_a_split_need_not_have_examples_of_each_class(monkeypatch: pytest.MonkeyPatch):
    few = Split(np.zeros((1442, 32, 32, 3), np.uint8), np.arange(1442) % 3 + 4)
    monkeypatch.setattr(Digits, "read", lambda self, split: few)
    np.testing.assert_array_equal(load_split(DIGITS, "train").labels, few.labels)


def test_a_hold_out_of_all_examples_of_a_class_is_refused(monkeypatch: pytest.MonkeyPatch):
    labels = np.where(np.arange(1442) == 700, 7, 2)
    monkeypatch.setattr(
        Digits, "read", lambda self, split: Split(np.zeros((1442, 32, 32, 3), np.uint8), labels)
    )
    assert 7 in load_splits(DIGITS, {"train"})["train"].labels
    with pytest.raises(UserError, match="each class beside the 100 held out, found none of 7: add examples"):
        load_splits(DIGITS, {"train", "validation"}, validation_examples=100)


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
def test_a_foreign_data_set_is_refused(
    monkeypatch: pytest.MonkeyPatch, images: np.ndarray, labels: np.ndarray, problem: str
):
    monkeypatch.setattr(Digits, "read", lambda self, split: Split(images, labels))
    with pytest.raises(
        UserError, match=rf"train split is not that of digits: expected uint8 .*found .*{problem}"
    ):
        load_split(DIGITS, "train")


@pytest.mark.parametrize(
    ("trained_on", "problem"),
    [
        (
            CIFAR10,
            r"expected images \(32, 32, 3\) of airplane, .*, truck, found \(32, 32, 3\) of 0, 1, .*, 9$",
        ),
        (
            dataclasses.replace(INFO, class_names=INFO.class_names[::-1]),
            r"of 9, 8, 7, .*, found \(32, 32, 3\) of 0, 1, 2, ",
        ),
        (
            dataclasses.replace(INFO, image_shape=(28, 28, 3)),
            r"expected images \(28, 28, 3\) of .*, found \(32, 32, 3\) of ",
        ),
    ],
    ids=["other classes", "another order", "another size"],
)
def test_data_that_a_network_was_not_trained_on_is_refused(trained_on: DatasetInfo, problem: str):
    with pytest.raises(
        UserError, match=rf"the data set digits is not what the network was trained on: .*{problem}"
    ) as caught:
        load_split(DIGITS, "test", expected=trained_on)
    assert "\n" not in str(caught.value)


def test_the_same_classes_and_size_are_enough():
    renamed = dataclasses.replace(INFO, name="more digits", train_examples=9, mean=(0.1, 0.2, 0.3))
    assert len(load_split(DIGITS, "test", expected=renamed).labels) == 355
