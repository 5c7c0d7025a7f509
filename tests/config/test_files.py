"""Configurations as TOML files: those that are shipped, old ones, and what is wrong with others."""

import tomllib
from pathlib import Path

import pytest
from helpers import ROOT, plan_of

from jaxresnet.config.files import (
    dump_config,
    find_config,
    load_config,
    naming,
    parse_config,
    shipped_configs,
)
from jaxresnet.config.schema import Config, differing_settings, setting_fields
from jaxresnet.errors import UserError
from jaxresnet.network.describe import describe

CONFIGS = sorted((ROOT / "configs").glob("**/*.toml"))
VERSION_0_1 = Path(__file__).parent / "version_0_1.toml"


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "config.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def leaves(tree: dict) -> int:
    return sum(leaves(value) if isinstance(value, dict) else 1 for value in tree.values())


def test_paper_toml_spells_out_every_default():
    path = ROOT / "configs" / "paper.toml"
    assert load_config(path) == Config()
    assert leaves(tomllib.loads(path.read_text())) == leaves(Config().model_dump()) == len(setting_fields())


@pytest.mark.parametrize("path", [*CONFIGS, VERSION_0_1], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_config_file_loads_and_describes_its_network(path: Path):
    plan = plan_of(load_config(path))
    assert describe(plan)[-1].output_shape == (plan.info.classes,)


def test_a_configuration_as_version_0_1_wrote_it_means_the_same():
    assert leaves(tomllib.loads(VERSION_0_1.read_text())) == 31
    differences = differing_settings(load_config(VERSION_0_1), Config())
    assert {name: value for name, (value, _) in differences.items()} == {
        "epochs": 20,
        "batch_size": 64,
        "cpu_devices": 4,
        "model.stem_channels": 8,
        "model.stage_channels": (8, 12, 16, 64),
        "data.name": "digits",
        "augment.horizontal_flip": False,
        "augment.rotation_degrees": 10.0,
        "optimizer.learning_rate": 0.1,
        "optimizer.schedule_epochs": 0,
    }


def test_round_trip_through_toml(tmp_path: Path):
    config = Config().replace({"seed": 7, "model.stage_blocks": (1, 1, 1, 1), "data.dir": 'a "b" \\ ü \x7f'})
    assert load_config(write(tmp_path, dump_config(config))) == config
    assert parse_config(dump_config(config)) == config


def test_a_byte_order_mark_is_no_error(tmp_path: Path):
    assert load_config(write(tmp_path, b"\xef\xbb\xbfepochs = 3\n")).epochs == 3


def test_a_shipped_configuration_is_found_by_its_name():
    shipped = shipped_configs()
    assert {"paper", "digits", "ablations/no_crop"} <= set(shipped)
    assert len(shipped) == len(CONFIGS)
    for name, path in shipped.items():
        assert find_config(name) == path
        assert load_config(path) == load_config(ROOT / "configs" / f"{name}.toml")
    assert load_config(find_config("digits")).data.name == "digits"


def test_a_path_still_works_and_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path, "epochs = 3\n")
    assert find_config(str(path)) == path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text("epochs = 4\n")
    assert load_config(find_config("digits")).epochs == 4
    assert find_config("none.toml") == Path("none.toml")  # that there is none, reading tells


def test_an_unknown_name_is_told_with_the_known_ones():
    with pytest.raises(UserError) as caught:
        find_config("digit")
    message = str(caught.value)
    assert message.startswith("no configuration digit: expected a TOML file, or one of ablations/")
    assert ", digits, fashion_mnist, fast16, folder, paper, " in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


BAD_TOML: dict[str | bytes, str] = {
    "epoch = 3": "epoch: no such setting; did you mean epochs?",
    "[optimiser]\nlearning_rate = 1": "optimiser: no such setting; did you mean optimizer?",
    "[optimizer]\nlearning_rat = 1": "did you mean optimizer.learning_rate?",
    "epochs = '40'": "epochs: expected a valid integer, found '40'",
    "epochs = true": "epochs: expected a valid integer, found True",
    "epochs = 0": "epochs: expected greater than or equal to 1, found 0",
    "[optimizer]\nlearning_rate = nan": "optimizer.learning_rate: expected a finite number",
    "[optimizer]\nlearning_rate = inf": "optimizer.learning_rate: expected a finite number",
    "precision = 'float16'": "precision: expected 'float32', 'tensorfloat32' or 'bfloat16', found 'float16'",
    "[model]\nstage_blocks = [1, 2]": "expected equal lengths, found 2, 4 and 4",
    "[model]\nstage_blocks = []\nstage_channels = []\nstage_strides = []": "at least one stage",
    "[model]\nstem_kernel = 4": "expected an odd number, found 4",
    "[model]\nstage_blocks = [0, 1, 1, 1]": "model.stage_blocks.0: expected greater than or equal to 1, found 0",
    "[model]\ndropout_rate = 1.0": "model.dropout_rate: expected less than 1, found 1.0",
    "[evaluation]\nsplit = 'validation'": "needs data.validation_examples > 0",
    "model = 3": "model: expected",
    "epochs = 1979-05-27": "epochs: expected a valid integer",
    "init = 12:30:00": "init: expected a valid string, found {'date or time': '12:30:00'}",
    f'data.dir = "{"a" * 4097}"': "data.dir: expected at most 4096 characters, found 'aaa",
    "epochs =": "expected TOML",
    "seed = 1" + 5000 * "0": "expected TOML",
    f"epochs = 1{400 * '0'}": f"epochs: expected less than or equal to {2**63 - 1}, found 1000",
    "[optimizer]\nschedule_epochs = 9223372036854775808": f"expected less than or equal to {2**63 - 1}, found ",
    "[checkpoint]\nevery_epochs = 9223372036854775808": f"expected less than or equal to {2**63 - 1}, found ",
    "[evaluation]\nevery_epochs = 9223372036854775808": f"expected less than or equal to {2**63 - 1}, found ",
    "[data]\nvalidation_examples = 9223372036854775808": f"expected less than or equal to {2**63 - 1}, found ",
    "[augment]\ncrop_padding = 9223372036854775808": f"expected less than or equal to {2**63 - 1}, found ",
    '"a\\u001b[2J\\nb" = 1': "a\\x1b[2J\\nb: no such setting",
    "[model]\nstem_channels = 9223372036854775808": "model.stem_channels: expected less than or equal to 65536",
    b"\xff\xfe": "expected a TOML file in UTF-8",
}


@pytest.mark.parametrize("text", BAD_TOML, ids=lambda text: str(text)[:60])
def test_bad_files_are_told_in_one_line(tmp_path: Path, text: str | bytes):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    message = str(caught.value)
    assert BAD_TOML[text] in message
    assert len(message) < len(str(path)) + 500
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_all_errors_are_told_at_once(tmp_path: Path):
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, "epochs = 0\nseed = -1\n[model]\nx = 1\n"))
    assert len(str(caught.value).splitlines()) == 3


def test_unreadable_files(tmp_path: Path):
    for path, reason in [
        (tmp_path / "none.toml", "No such file"),
        (tmp_path, "expected a file, found a folder"),
    ]:
        with pytest.raises(UserError, match=reason) as caught:
            load_config(path)
        assert caught.value.exit_code == 2


def test_the_file_is_named_unless_a_flag_is_wrong():
    def told(file: Path | None, given: tuple[str, ...] = (), code: int = 2) -> str:
        with pytest.raises(UserError) as caught, naming(file, given):
            raise UserError("epochs: expected 1\ndata.dir: expected a folder", code)
        assert caught.value.exit_code == code
        return str(caught.value)

    file = Path("a.toml")
    assert told(file) == "a.toml: epochs: expected 1\na.toml: data.dir: expected a folder"
    assert told(file, ("data.dir", "data.name")) == "a.toml: epochs: expected 1\ndata.dir: expected a folder"
    assert told(None) == told(file, code=1) == "epochs: expected 1\ndata.dir: expected a folder"
