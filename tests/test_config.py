"""The configuration: files, flags, validation, and the sums derived from it."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxresnet.config import (
    ArgumentParser,
    Config,
    add_config_arguments,
    config_from_arguments,
    differing_keys,
    dump_config,
    load_config,
    parse_config,
    to_arguments,
)
from jaxresnet.errors import UserError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("**/*.toml"))
RESULTS = sorted((Path(__file__).parent.parent / "results").glob("**/config.toml"))


def from_flags(*argv: str) -> Config:
    parser = ArgumentParser()
    add_config_arguments(parser)
    return config_from_arguments(parser.parse(argv))


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "config.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def leaves(tree: dict) -> int:
    return sum(leaves(value) if isinstance(value, dict) else 1 for value in tree.values())


def test_paper_toml_spells_out_every_default():
    path = next(path for path in CONFIGS if path.name == "paper.toml")
    assert load_config(path) == Config()
    assert leaves(tomllib.loads(path.read_text())) == leaves(Config().model_dump())


@pytest.mark.parametrize("path", CONFIGS + RESULTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_config_file_loads_and_builds_its_network(path: Path):
    from jaxresnet.model import describe

    config = load_config(path)
    assert describe(config)[-1].output_shape == (len(config.dataset.class_names),)


def test_round_trip_through_toml(tmp_path: Path):
    config = from_flags(
        "--seed", "7", "--precision", "bfloat16", "--model.stage-blocks", "1", "--model.stage-channels", "3",
        "--model.stage-strides", "2", "--optimizer.weight-decay", "5e-4", "--optimizer.no-decoupled",
        "--data.dir", 'a "b" \\ ü \x7f',
    )  # fmt: skip
    assert load_config(write(tmp_path, dump_config(config))) == config
    assert set(differing_keys(config, Config())) == {
        "seed", "precision", "model.stage_blocks", "model.stage_channels", "model.stage_strides",
        "optimizer.weight_decay", "optimizer.decoupled", "data.dir",
    }  # fmt: skip


def numbers(low: float, high: float, **options: bool) -> st.SearchStrategy:
    return st.floats(low, high, allow_nan=False, **options)


@st.composite
def configurations(draw: st.DrawFn) -> Config:
    """Any valid configuration."""
    stages = draw(st.integers(1, 5))

    def each(values: st.SearchStrategy) -> tuple[int, ...]:
        return tuple(draw(st.lists(values, min_size=stages, max_size=stages)))

    held_out = draw(st.integers(0, 1441))
    return Config.model_validate(
        {
            "seed": draw(st.integers(0, 2**31 - 1)),
            "epochs": draw(st.integers(1, 10**6)),
            "batch_size": draw(st.integers(1, 1442 - held_out)),
            "precision": draw(st.sampled_from(["float32", "tensorfloat32", "bfloat16"])),
            "loss": draw(st.sampled_from(["cross_entropy", "mse"])),
            "cpu_devices": draw(st.integers(1, 256)),
            "model": {
                "stem_kernel": 2 * draw(st.integers(0, 31)) + 1,
                "stem_channels": draw(st.integers(1, 65_536)),
                "stage_blocks": each(st.integers(1, 1000)),
                "stage_channels": each(st.integers(1, 65_536)),
                "stage_strides": each(st.sampled_from([1, 2])),
                "conv_bias": draw(st.booleans()),
                "dropout_rate": draw(numbers(0, 1, exclude_max=True)),
                "initializer": draw(st.sampled_from(["pytorch", "he_normal"])),
            },
            "data": {
                "name": draw(st.sampled_from(["cifar10", "digits"])),
                "dir": draw(st.text(st.characters(codec="utf-8"))),
                "validation_examples": held_out,
            },
            "augment": {
                "horizontal_flip": draw(st.booleans()),
                "crop_padding": draw(st.integers(0, 31)),
                "rotation_degrees": draw(numbers(0, 180)),
                "brightness": draw(numbers(0, 1)),
            },
            "optimizer": {
                "learning_rate": draw(numbers(0, 1e30, exclude_min=True)),
                "momentum": draw(numbers(0, 1, exclude_max=True)),
                "weight_decay": draw(numbers(0, 1e30)),
                "decoupled": draw(st.booleans()),
                "schedule": draw(st.sampled_from(["constant", "cosine"])),
                "schedule_epochs": draw(st.integers(0, 10**9)),
            },
            "evaluation": {
                "split": draw(st.sampled_from(["test", "none", *(["validation"] if held_out else [])])),
                "every_epochs": draw(st.integers(1, 10**9)),
            },
            "checkpoint": {
                "every_epochs": draw(st.integers(1, 10**9)),
                "every_minutes": draw(numbers(0, 1e300)),
            },
        }
    )


@given(configurations())
def test_any_configuration_survives_toml_and_flags(config: Config):
    assert parse_config(dump_config(config)) == config
    changed = {name: value for name, (value, _) in differing_keys(config, Config()).items()}
    assert from_flags(*to_arguments(changed)) == config


def test_flags_lie_over_the_file(tmp_path: Path):
    path = write(tmp_path, "epochs = 3\nseed = 4\n[optimizer]\ndecoupled = false\n")
    config = from_flags(
        "--config", str(path), "--epochs=5", "--optimizer.decoupled", "--model.dropout_rate", "0"
    )
    assert (config.epochs, config.seed, config.optimizer.decoupled) == (5, 4, True)
    assert config.model.dropout_rate == 0


def test_a_byte_order_mark_is_no_error(tmp_path: Path):
    assert load_config(write(tmp_path, b"\xef\xbb\xbfepochs = 3\n")).epochs == 3


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
@pytest.mark.parametrize("epochs", ["1", "500"])
def test_epochs_alone_is_always_a_valid_override(path: Path, epochs: str):
    assert from_flags("--config", str(path), "--epochs", epochs).epochs == int(epochs)


BAD_TOML = {
    "epoch = 3": "epoch: no such setting; did you mean epochs?",
    "[optimiser]\nlearning_rate = 1": "optimiser: no such setting; did you mean optimizer?",
    "[optimizer]\nlearning_rat = 1": "did you mean optimizer.learning_rate?",
    "epochs = '40'": "epochs: expected a valid integer, found '40'",
    "epochs = true": "epochs: expected a valid integer, found True",
    "epochs = 0": "epochs: expected greater than or equal to 1, found 0",
    "epochs = 1000000000": "epochs: expected at most",
    "[optimizer]\nlearning_rate = nan": "optimizer.learning_rate: expected a finite number",
    "[optimizer]\nlearning_rate = inf": "optimizer.learning_rate: expected a finite number",
    "precision = 'float16'": "precision: expected 'float32', 'tensorfloat32' or 'bfloat16', found 'float16'",
    "[model]\nstage_blocks = [1, 2]": "expected equal lengths, found 2, 4 and 4",
    "[model]\nstage_blocks = []\nstage_channels = []\nstage_strides = []": "at least one stage",
    "[model]\nstage_strides = [1, 2, 3, 2]": "a product that divides the image size 32, found 12",
    "[model]\nstem_kernel = 4": "expected an odd number, found 4",
    "[model]\nstage_blocks = [0, 1, 1, 1]": "model.stage_blocks.0: expected greater than or equal to 1, found 0",
    "[model]\ndropout_rate = 1.0": "model.dropout_rate: expected less than 1, found 1.0",
    "[data]\nvalidation_examples = 50000": "fewer than the 50000 training examples",
    "batch_size = 50001": "batch_size: expected at most the 50000 training examples, found 50001",
    "[evaluation]\nsplit = 'validation'": "needs data.validation_examples > 0",
    "[augment]\ncrop_padding = 32": "augment.crop_padding: expected less than the image size 32, found 32",
    "model = 3": "model: expected",
    "epochs = 1979-05-27": "epochs: expected a valid integer",
    "epochs =": "expected TOML",
    "seed = 1" + 5000 * "0": "expected TOML",
    "[model]\nstem_channels = 9223372036854775808": "model.stem_channels: expected less than or equal to 65536",
    b"\xff\xfe": "expected a TOML file in UTF-8",
}


@pytest.mark.parametrize("text", BAD_TOML, ids=lambda text: str(text)[:60])
def test_bad_files_are_told_in_one_line(tmp_path: Path, text: str | bytes):
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, text))
    message = str(caught.value)
    assert BAD_TOML[text] in message
    assert "config.toml" in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_all_errors_are_told_at_once(tmp_path: Path):
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, "epochs = 0\nseed = -1\n[model]\nx = 1\n"))
    assert len(str(caught.value).splitlines()) == 3


def test_unreadable_files(tmp_path: Path):
    for path, reason in [(tmp_path / "none.toml", "No such file"), (tmp_path, "Is a directory")]:
        with pytest.raises(UserError, match=reason) as caught:
            load_config(path)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--epochs", "abc"],
            "epochs: expected a valid integer, unable to parse string as an integer, found 'abc'",
        ),
        (["--epochs", "0"], "epochs: expected greater than or equal to 1, found '0'"),
        (["--epoch", "3"], "unknown argument --epoch; did you mean --epochs?"),
        (
            ["--optimizer.learning-rate", "nan"],
            "optimizer.learning_rate: expected a finite number, found 'nan'",
        ),
        (["--optimizer.momentum", "1"], "optimizer.momentum: expected less than 1, found '1'"),
        (["--epochs"], "argument --epochs: expected one argument"),
        (["--evaluation.split", "train"], "expected 'test', 'validation' or 'none', found 'train'"),
        (["--model.stage-blocks", "1", "2"], "expected equal lengths, found 2, 4 and 4"),
    ],
)
def test_bad_flags_are_told_in_one_line(argv: list[str], message: str):
    with pytest.raises(UserError) as caught:
        from_flags(*argv)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_epochs_end_at_floored_multiples():
    config = Config()
    assert [config.steps(epoch) for epoch in (1, 2, 39, 40)] == [390, 781, 15_234, 15_625]
    assert config.total_steps == 15_625
    assert config.schedule_steps == 78_125
    to_the_end = from_flags("--optimizer.schedule-epochs", "0")
    assert to_the_end.schedule_steps == 15_625
    held_out = from_flags("--data.validation-examples", "5000")
    assert (held_out.train_examples, held_out.total_steps) == (45_000, 14_062)


def test_configuration_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Config().epochs = 3
