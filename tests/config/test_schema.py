"""The typed settings: frozen, checked together, and replaced in one way."""

from typing import Any

import pytest

from jaxresnet.config.schema import (
    NO_AUGMENTATION,
    Config,
    differing_settings,
    setting_fields,
    setting_values,
)
from jaxresnet.errors import UserError


def test_configuration_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Config().epochs = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_every_setting_has_a_value_and_a_description():
    fields, values = setting_fields(), setting_values(Config())
    assert list(fields) == list(values)
    assert all(field.description for field in fields.values())
    assert {name: field.default for name, field in fields.items()} == values


def test_replacing_settings_leaves_the_others():
    config = Config().replace({"epochs": "5", "model.stage_blocks": (1, 1, 1, 1), "augment.brightness": 0})
    assert differing_settings(config, Config()) == {
        "epochs": (5, 40),
        "model.stage_blocks": ((1, 1, 1, 1), (2, 4, 4, 1)),
        "augment.brightness": (0.0, 0.2),
    }
    assert config.replace({"epochs": 40, "augment.brightness": 0.2}) == Config().replace(
        {"model.stage_blocks": (1, 1, 1, 1)}
    )


def test_every_augmentation_can_be_switched_off_at_once():
    names = {name for name in setting_fields() if name.startswith("augment.")}
    assert names - set(NO_AUGMENTATION) == {"augment.padding"}
    values = setting_values(Config().replace(NO_AUGMENTATION))
    assert {name: value for name, value in values.items() if name in NO_AUGMENTATION} == NO_AUGMENTATION
    assert not any(NO_AUGMENTATION.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "epoch: no such setting; did you mean epochs?"),
        (
            {"optimizer.learning_rat": 1},
            "optimizer.learning_rat: no such setting; did you mean optimizer.learning_rate?",
        ),
        (
            {"optimiser.learning_rate": 1},
            "optimiser.learning_rate: no such setting; did you mean optimizer.learning_rate?",
        ),
        ({"epochs.more": 3}, "epochs.more: no such setting"),
        ({"epochs": 0}, "epochs: expected greater than or equal to 1, found 0"),
        ({"model.stem_kernel": 4}, "model.stem_kernel: expected an odd number, found 4"),
        ({"model.stage_blocks": (1, 2)}, "expected equal lengths, found 2, 4 and 4"),
        (
            {"augment.alternating_flip": True, "augment.horizontal_flip": False},
            "augment.alternating_flip: needs augment.horizontal_flip = true, found false",
        ),
        ({"evaluation.split": "validation"}, "needs data.validation_examples > 0"),
    ],
)
def test_bad_replacements_are_told_in_one_line(settings: dict[str, Any], message: str):
    with pytest.raises(UserError) as caught:
        Config().replace(settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
