"""A configuration meets its data set: the sums derived from the two, and what does not fit."""

import dataclasses
from typing import Any

import pytest
from helpers import plan_of

from jaxresnet.config.schema import Config
from jaxresnet.data.cifar10 import INFO
from jaxresnet.errors import UserError
from jaxresnet.plan import MAX_STEPS, resolve


def test_epochs_end_at_floored_multiples():
    plan = plan_of()
    assert [plan.end_step(epoch) for epoch in (0, 1, 2, 39, 40)] == [0, 390, 781, 15_234, 15_625]
    assert plan.total_steps == 15_625
    assert plan.schedule_steps == 78_125
    assert plan.train_examples == 50_000
    assert plan_of(settings={"optimizer.schedule_epochs": 0}).schedule_steps == 15_625
    held_out = plan_of(settings={"data.validation_examples": 5000})
    assert (held_out.train_examples, held_out.total_steps) == (45_000, 14_062)


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"epochs": 1_000_000_000}, "epochs: expected at most 5497558 (2^31 - 1 steps), found 1000000000"),
    (
        {"model.stage_strides": (1, 2, 3, 2)},
        "model.stage_strides: expected a product that divides the image size 32, found 12",
    ),
    (
        {"data.validation_examples": 50_000},
        "data.validation_examples: expected fewer than the 50000 training examples of cifar10, found 50000",
    ),
    ({"batch_size": 50_001}, "batch_size: expected at most the 50000 training examples, found 50001"),
    (
        {"data.name": "digits", "data.validation_examples": 1400, "batch_size": 43},
        "batch_size: expected at most the 42 training examples, found 43",
    ),
    (
        {"augment.crop_padding": 32},
        "augment.crop_padding: expected less than the image size 32, found 32",
    ),
    ({"augment.cutout": 33}, "augment.cutout: expected at most the image size 32, found 33"),
]


@pytest.mark.parametrize(("settings", "problem"), BAD_SETTINGS, ids=lambda value: str(value)[:50])
def test_what_does_not_fit_the_data_is_told_in_one_line(settings: dict[str, Any], problem: str):
    with pytest.raises(UserError) as caught:
        plan_of(settings=settings)
    assert str(caught.value) == problem
    assert caught.value.exit_code == 2


def test_all_problems_are_told_at_once_each_with_its_source():
    config = Config().replace({"augment.crop_padding": 40, "batch_size": 60_000})
    with pytest.raises(UserError) as caught:
        resolve(config, INFO, source="config.toml: ")
    assert str(caught.value).splitlines() == [
        "config.toml: augment.crop_padding: expected less than the image size 32, found 40",
        "config.toml: batch_size: expected at most the 50000 training examples, found 60000",
    ]


def test_the_bounds_themselves_fit():
    assert plan_of(settings={"epochs": 5_497_558}).total_steps <= MAX_STEPS
    assert plan_of(settings={"batch_size": 50_000}).total_steps == 40
    assert plan_of(settings={"data.validation_examples": 49_872}).train_examples == 128
    assert plan_of(
        settings={"augment.crop_padding": 31, "augment.cutout": 32, "model.stage_strides": (1, 2, 4, 4)}
    )


def test_strides_divide_both_sides_of_an_image():
    oblong = dataclasses.replace(INFO, image_shape=(32, 24, 3))
    assert resolve(Config(), oblong).info.image_shape == (32, 24, 3)
    with pytest.raises(UserError, match="divides the image size 24, found 16"):
        resolve(Config().replace({"model.stage_strides": (2, 2, 2, 2)}), oblong)


def test_another_configuration_of_a_plan_is_checked_too():
    plan = plan_of()
    other = plan.with_config(plan.config.replace({"epochs": 1}))
    assert (other.total_steps, other.info) == (390, plan.info)
    with pytest.raises(UserError, match="batch_size: expected at most the 50000"):
        plan.with_config(plan.config.replace({"batch_size": 50_001}))
