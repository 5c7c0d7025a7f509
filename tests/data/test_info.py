"""The facts of a data set, and those that cannot be."""

import dataclasses
from typing import Any

import pytest

from jaxresnet.data.info import DatasetInfo

GREY = DatasetInfo(
    name="grey",
    image_shape=(8, 6, 1),
    class_names=("no", "yes"),
    train_examples=10,
    test_examples=0,
    mean=(0.5,),
    std=(0.25,),
)


def test_classes_are_counted():
    assert GREY.classes == 2


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"mean": (0.5, 0.5, 0.5)},
            r"expected mean and std of 1 channels, found \(0.5, 0.5, 0.5\) and \(0.25,\)",
        ),
        ({"std": ()}, r"expected mean and std of 1 channels, found \(0.5,\) and \(\)"),
        ({"image_shape": (8, 6, 3)}, "expected mean and std of 3 channels"),
        ({"class_names": ()}, r"expected different class names, found \[\]"),
        (
            {"class_names": ("yes", "no", "yes")},
            r"expected different class names, found \['yes', 'no', 'yes'\]",
        ),
    ],
)
def test_facts_at_odds_with_each_other_are_refused(fields: dict[str, Any], problem: str):
    with pytest.raises(ValueError, match=problem):
        dataclasses.replace(GREY, **fields)
