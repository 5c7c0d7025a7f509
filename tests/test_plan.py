"""A configuration meets its data set: the sums derived from the two, and what does not fit."""

import dataclasses
from typing import Any

import pytest
from helpers import plan_of

from jaxresnet.config.schema import Config
from jaxresnet.data.sources.cifar10 import INFO
from jaxresnet.errors import UserError
from jaxresnet.plan import MAX_STEPS, resolve
from jaxresnet.reporting.progress import schedule_notes


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
    (
        {"resolution.sizes": (16, 24), "resolution.shares": (0.5,)},
        "resolution.sizes and shares: expected equal lengths, found 2 and 1",
    ),
    (
        {"resolution.sizes": (24, 16), "resolution.shares": (0.3, 0.3)},
        "resolution.sizes: expected increasing sizes below the image size 32, found [24, 16]",
    ),
    (
        {"resolution.sizes": (16, 32), "resolution.shares": (0.3, 0.3)},
        "resolution.sizes: expected increasing sizes below the image size 32, found [16, 32]",
    ),
    (
        {"resolution.sizes": (16, 20), "resolution.shares": (0.3, 0.3)},
        "resolution.sizes: expected sizes whose sides the product of model.stage_strides divides, 8, found 20",
    ),
    (
        {"resolution.sizes": (8, 16, 24), "resolution.shares": (0.7, 0.2, 0.1)},
        "resolution.shares: expected a sum below 1, since the rest is at the image size, found 1",
    ),
    (
        {"freeze_stages": 2},
        "freeze_stages: needs init, the network to take the weights from, found 2 without it",
    ),
    (
        {"freeze_stages": 5, "init": "a"},
        "freeze_stages: expected at most the 4 stages of the network, found 5",
    ),
    ({"augment.cutout": 33}, "augment.cutout: expected at most the image size 32, found 33"),
]


@pytest.mark.parametrize(("settings", "problem"), BAD_SETTINGS, ids=lambda value: str(value)[:50])
def test_what_does_not_fit_the_data_is_told_in_one_line(settings: dict[str, Any], problem: str):
    with pytest.raises(UserError) as caught:
        plan_of(settings=settings)
    assert str(caught.value) == problem
    assert caught.value.exit_code == 2


def test_all_problems_are_told_at_once():
    config = Config().replace({"augment.crop_padding": 40, "batch_size": 60_000})
    with pytest.raises(UserError) as caught:
        resolve(config, INFO)
    assert str(caught.value).splitlines() == [
        "augment.crop_padding: expected less than the image size 32, found 40",
        "batch_size: expected at most the 50000 training examples, found 60000",
    ]


def test_the_bounds_themselves_fit():
    assert plan_of(settings={"epochs": 5_497_558}).total_steps <= MAX_STEPS
    assert plan_of(settings={"batch_size": 50_000}).total_steps == 40
    assert plan_of(settings={"data.validation_examples": 49_872}).train_examples == 128
    assert plan_of(
        settings={"augment.crop_padding": 31, "augment.cutout": 32, "model.stage_strides": (1, 2, 4, 4)}
    )


def test_the_phases_of_the_papers_run():
    plan = plan_of(settings={"resolution.sizes": (16, 24), "resolution.shares": (0.25, 0.35)})
    # A quarter of 15,625 steps is 3,906.25, and 0.6 of them are 9,375.
    assert plan.phases == [(0, 3906, (16, 16)), (3906, 9375, (24, 24)), (9375, 15_625, (32, 32))]
    sides = {0: 16, 3905: 16, 3906: 24, 9374: 24, 9375: 32, 15_624: 32, 15_625: 32}
    assert {step: plan.size_at(step) for step in sides} == {step: (n, n) for step, n in sides.items()}
    assert plan.pixels(3900, 3910) == 6 * 16**2 + 4 * 24**2
    assert plan.pixels(9375, 15_625) == 6250 * 32**2
    assert plan_of().phases == [(0, 15_625, (32, 32))]


def test_a_phase_without_a_step_is_left_out_and_the_last_one_has_one():
    settings = {"epochs": 1, "data.name": "digits", "resolution.sizes": (8, 16, 24)}
    one = plan_of(settings=settings | {"batch_size": 1442, "resolution.shares": (0.1, 0.1, 0.7)})
    assert one.phases == [(0, 1, (32, 32))]
    most = plan_of(settings=settings | {"batch_size": 600, "resolution.shares": (0.5, 1e-9, 0.49)})
    assert most.phases == [(0, 1, (8, 8)), (1, 2, (32, 32))]
    nearly = {"resolution.sizes": (8,), "resolution.shares": (1 - 2**-53,)}
    assert plan_of(settings=nearly).phases == [(0, 15_624, (8, 8)), (15_624, 15_625, (32, 32))]


def test_the_sizes_of_oblong_images_are_their_shorter_sides():
    oblong = dataclasses.replace(INFO, image_shape=(32, 64, 3))
    schedule = {"resolution.sizes": (16,), "resolution.shares": (0.5,)}
    assert resolve(Config().replace(schedule), oblong).size_at(0) == (16, 32)
    uneven = dataclasses.replace(INFO, image_shape=(32, 48, 3))
    config = Config().replace(schedule | {"model.stage_strides": (1, 2, 2, 2)})
    assert resolve(config, uneven).size_at(0) == (16, 24)
    with pytest.raises(UserError, match="divides, 8, found 8"):  # it would be 8 x 12
        resolve(config.replace({"resolution.sizes": (8,)}), uneven)


def test_strides_divide_both_sides_of_an_image():
    oblong = dataclasses.replace(INFO, image_shape=(32, 24, 3))
    assert resolve(Config(), oblong).info.image_shape == (32, 24, 3)
    wide = dataclasses.replace(INFO, name="folder", image_shape=(64, 100, 3))
    with pytest.raises(
        UserError, match=r"divides the image size 100, found 8; data.image_size 64 would fit$"
    ):
        resolve(Config(), wide)
    strides = {"model.stage_strides": (1, 2, 64, 64)}
    with pytest.raises(UserError, match=r"divides the image size 64, found 8192$"):  # 8192 would be refused
        resolve(Config().replace(strides), wide)
    with pytest.raises(UserError, match="divides the image size 24, found 16"):
        resolve(Config().replace({"model.stage_strides": (2, 2, 2, 2)}), oblong)


def test_another_configuration_of_a_plan_is_checked_too():
    plan = plan_of()
    other = plan.with_config(plan.config.replace({"epochs": 1}))
    assert (other.total_steps, other.info) == (390, plan.info)
    with pytest.raises(UserError, match="batch_size: expected at most the 50000"):
        plan.with_config(plan.config.replace({"batch_size": 50_001}))


def test_a_warm_up_that_does_not_end_before_the_run_is_noted():
    rising = {"optimizer.warmup": 0.1, "optimizer.schedule": "constant", "epochs": 20}
    [note] = schedule_notes(plan_of(settings=rising), None)
    assert note.startswith("note: the learning rate rises to step 7,812, to the end of the run or beyond")
    assert schedule_notes(plan_of(settings=rising | {"epochs": 21}), None) == []
    [note] = schedule_notes(plan_of(settings={"optimizer.warmup": 0.2}), None)
    assert note.startswith("note: the learning rate rises to step 15,625, ")
    assert (
        schedule_notes(plan_of(settings={"optimizer.warmup": 0.2, "optimizer.schedule_epochs": 0}), None)
        == []
    )
