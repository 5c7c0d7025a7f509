"""Command-line flags: laid over a file, validated like it, and any configuration written as flags."""

import math
from pathlib import Path

import pytest
from helpers import ROOT, plan_of
from hypothesis import given
from hypothesis import strategies as st

from jaxresnet.config.files import dump_config, load_config, parse_config
from jaxresnet.config.flags import ArgumentParser, add_config_arguments, config_from_arguments, to_arguments
from jaxresnet.config.schema import Config, differing_settings
from jaxresnet.errors import UserError

CONFIGS = sorted((ROOT / "configs").glob("**/*.toml"))


def from_flags(*argv: str) -> Config:
    parser = ArgumentParser()
    add_config_arguments(parser)
    return config_from_arguments(parser.parse(argv))


def test_flags_of_every_kind_and_a_round_trip_through_toml(tmp_path: Path):
    config = from_flags(
        "--seed", "7", "--precision", "bfloat16", "--model.stage-blocks", "1", "--model.stage-channels", "3",
        "--model.stage-strides", "2", "--optimizer.weight-decay", "5e-4", "--optimizer.no-decoupled",
        "--data.dir", 'a "b" \\ ü \x7f',
    )  # fmt: skip
    (tmp_path / "config.toml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.toml") == config
    assert {name: value for name, (value, _) in differing_settings(config, Config()).items()} == {
        "seed": 7,
        "precision": "bfloat16",
        "model.stage_blocks": (1,),
        "model.stage_channels": (3,),
        "model.stage_strides": (2,),
        "optimizer.weight_decay": 5e-4,
        "optimizer.decoupled": False,
        "data.dir": 'a "b" \\ ü \x7f',
    }


def numbers(
    low: float, high: float, exclude_min: bool = False, exclude_max: bool = False
) -> st.SearchStrategy:
    return st.floats(low, high, allow_nan=False, exclude_min=exclude_min, exclude_max=exclude_max)


FREE: dict[str, st.SearchStrategy] = {
    "seed": st.integers(0, 2**31 - 1),
    "epochs": st.integers(1, 40_000),
    "precision": st.sampled_from(["float32", "tensorfloat32", "bfloat16"]),
    "loss": st.sampled_from(["cross_entropy", "mse"]),
    "label_smoothing": numbers(0, 1, exclude_max=True),
    "cpu_devices": st.integers(0, 256),
    "init": st.text(st.characters(codec="utf-8")),
    "model.stem_kernel": st.integers(0, 31).map(lambda half: 2 * half + 1),
    "model.stem_channels": st.integers(1, 65_536),
    "model.conv_bias": st.booleans(),
    "model.dropout_rate": numbers(0, 1, exclude_max=True),
    "model.initializer": st.sampled_from(["pytorch", "he_normal"]),
    "model.dirac": st.booleans(),
    "data.name": st.sampled_from(["cifar10", "digits"]),
    "data.dir": st.text(st.characters(codec="utf-8")),
    "augment.horizontal_flip": st.booleans(),
    "augment.crop_padding": st.integers(0, 31),
    "augment.padding": st.sampled_from(["black", "reflect"]),
    "augment.rotation_degrees": numbers(0, 180),
    "augment.brightness": numbers(0, 1),
    "augment.trivial_augment": st.booleans(),
    "augment.cutout": st.integers(0, 32),
    "augment.random_erasing": numbers(0, 1),
    "augment.mixup": numbers(0, 100),
    "augment.cutmix": numbers(0, 100),
    "optimizer.learning_rate": numbers(0, 1e30, exclude_min=True),
    "optimizer.momentum": numbers(0, 1, exclude_max=True),
    "optimizer.nesterov": st.booleans(),
    "optimizer.weight_decay": numbers(0, 1e30),
    "optimizer.decayed": st.sampled_from(["all", "kernels"]),
    "optimizer.decoupled": st.booleans(),
    "optimizer.clip_norm": numbers(0, 1e30),
    "optimizer.schedule": st.sampled_from(["constant", "cosine", "linear"]),
    "optimizer.schedule_epochs": st.integers(0, 10**6),
    "optimizer.warmup": numbers(0, 1, exclude_max=True),
    "optimizer.ema_decay": numbers(0, 1, exclude_max=True),
    "evaluation.every_epochs": st.integers(1, 10**9),
    "checkpoint.every_epochs": st.integers(1, 10**9),
    "checkpoint.every_minutes": numbers(0, 1e300),
    "data.image_size": st.sampled_from([0, 32]),
    "data.test_share": numbers(0, 1, exclude_min=True, exclude_max=True),
}
"""Settings that may have any value, whatever the others are."""


@st.composite
def configurations(draw: st.DrawFn) -> Config:
    """Any valid configuration."""
    settings = draw(st.fixed_dictionaries(FREE))
    stages, held_out = draw(st.integers(1, 5)), draw(st.integers(0, 1441))

    def each(values: st.SearchStrategy) -> tuple[int, ...]:
        return tuple(draw(st.lists(values, min_size=stages, max_size=stages)))

    strides = each(st.sampled_from([1, 2]))
    multiples = range(math.prod(strides), 32, math.prod(strides))
    sizes = draw(st.sets(st.sampled_from(multiples), max_size=4)) if multiples else set()
    shares = [draw(numbers(0, 0.99 / len(sizes), exclude_min=True)) for _ in sizes]
    split = st.sampled_from(["test", "none", *(["validation"] if held_out else [])])
    return Config().replace(
        settings
        | {
            "batch_size": draw(st.integers(1, 1442 - held_out)),
            "freeze_stages": draw(st.integers(0, stages)) if settings["init"] else 0,
            "model.stage_blocks": each(st.integers(1, 1000 // stages)),
            "model.stage_channels": each(st.integers(1, 65_536)),
            "model.stage_strides": strides,
            "data.validation_examples": held_out,
            "augment.alternating_flip": settings["augment.horizontal_flip"] and draw(st.booleans()),
            "resolution.sizes": tuple(sorted(sizes)),
            "resolution.shares": tuple(shares),
            "evaluation.split": draw(split),
        }
    )


@given(configurations())
def test_any_configuration_survives_toml_and_flags(config: Config):
    assert plan_of(config).config == config  # it fits its data set
    assert parse_config(dump_config(config)) == config
    changed = {name: value for name, (value, _) in differing_settings(config, Config()).items()}
    assert from_flags(*to_arguments(changed)) == config
    assert Config().replace(changed) == config


def test_flags_lie_over_the_file(tmp_path: Path):
    path = tmp_path / "config.toml"
    path.write_text("epochs = 3\nseed = 4\n[optimizer]\ndecoupled = false\n")
    config = from_flags(
        "--config", str(path), "--epochs=5", "--optimizer.decoupled", "--model.dropout_rate", "0"
    )
    assert (config.epochs, config.seed, config.optimizer.decoupled) == (5, 4, True)
    assert config.model.dropout_rate == 0


def test_the_configuration_may_be_a_shipped_ones_name():
    config = from_flags("--config", "digits", "--epochs", "3")
    assert config == load_config(ROOT / "configs" / "digits.toml").replace({"epochs": 3})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
@pytest.mark.parametrize("epochs", ["1", "500"])
def test_epochs_alone_is_always_a_valid_override(path: Path, epochs: str):
    assert plan_of(from_flags("--config", str(path), "--epochs", epochs)).config.epochs == int(epochs)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--epochs", "abc"],
            "epochs: expected a valid integer, unable to parse string as an integer, found 'abc'",
        ),
        (["--epochs", "0"], "epochs: expected greater than or equal to 1, found '0'"),
        (["--epoch", "3"], "unknown argument --epoch; did you mean --epochs?"),
        (["--lr", "0.1"], "unknown argument --lr; did you mean --optimizer.learning-rate?"),
        (["--wd=1e-4"], "did you mean --optimizer.weight-decay?"),
        (["--bs", "64"], "did you mean --batch-size?"),
        (["--learning_rate", "0.1"], "did you mean --optimizer.learning-rate?"),
        (["--learning-rat", "0.1"], "did you mean --optimizer.learning-rate?"),
        (["--model.conv-bias", "false"], "takes no value, its opposite is --model.no-conv-bias"),
        (["--model.no-conv-bias", "1"], "takes no value, its opposite is --model.conv-bias"),
        (["stray", "--model.conv-bias"], "unknown argument stray (see"),
        (["--model.conv-bias", "--", "a_b"], "unknown argument a_b (see"),
        (["--", "--a_b"], "unknown argument --a_b (see"),
        (
            ["--optimizer.learning-rate", "nan"],
            "optimizer.learning_rate: expected a finite number, found 'nan'",
        ),
        (["--optimizer.momentum", "1"], "optimizer.momentum: expected less than 1, found '1'"),
        (["--epochs"], "argument --epochs: expected one argument"),
        (["--optimizer.schedule-epochs", f"1{400 * '0'}"], f"less than or equal to {2**63 - 1}, found '1000"),
        (["--batch-size", f"1{5000 * '0'}"], "batch_size: expected "),
        (["--evaluation.split", "train"], "expected 'test', 'validation' or 'none', found 'train'"),
        (["--model.stage-blocks", "1", "2"], "expected equal lengths, found 2, 4 and 4"),
        (["--config", "digit"], "no configuration digit: expected a TOML file, or one of "),
        (["--config", "none.toml"], "cannot read the configuration none.toml: No such file or directory"),
    ],
)
def test_bad_flags_are_told_in_one_line(argv: list[str], message: str):
    with pytest.raises(UserError) as caught:
        from_flags(*argv)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_help_shows_how_to_switch_a_setting_off():
    parser = ArgumentParser()
    add_config_arguments(parser)
    text = parser.format_help()
    for name in ("model.no-conv-bias", "augment.no-horizontal-flip", "optimizer.no-decoupled"):
        assert f"--{name}" in text
    assert from_flags("--optimizer.no-decoupled").optimizer.decoupled is False
    assert from_flags("--optimizer.no-decoupled", "--optimizer.decoupled").optimizer.decoupled is True
