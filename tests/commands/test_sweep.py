"""A sweep as a user meets it, in fresh processes: interrupted, with a run that fails, and started again."""

import json
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers import run_command, signal_command

from jaxresnet import sweep as sweep_module
from jaxresnet.config.files import dump_config, load_config
from jaxresnet.config.flags import ArgumentParser, add_setting_arguments, setting_arguments, to_arguments
from jaxresnet.config.schema import Config
from jaxresnet.errors import UserError
from jaxresnet.runs.records import EpochLog, EpochRecord
from jaxresnet.sweep import planned_runs


@pytest.fixture
def configs(tmp_path: Path, tiny_toml: Path) -> tuple[Path, Path]:
    files, tiny = (tmp_path / "plain.toml", tmp_path / "other.toml"), load_config(tiny_toml)
    files[0].write_text(dump_config(tiny))
    # Another setting of the host alone: both train by one compiled program.
    files[1].write_text(dump_config(tiny.replace({"augment.brightness": 0.1})))
    return files


def test_a_sweep_is_interrupted_fails_in_part_and_goes_on(tmp_path: Path, configs: tuple[Path, Path]):
    workdir = tmp_path / "sweep"
    arguments = ("sweep", "--config", *configs, "--workdir", workdir, "--epochs", 40, "--seeds", 3)
    code, err = signal_command(signal.SIGINT, "epoch 1/40", *arguments)
    assert code == 130
    assert f"the sweep stopped in {workdir / 'plain' / 'seed3'}: interrupted: saved at step" in err

    # The second run's folder is somebody else's.
    (workdir / "other" / "seed3").mkdir(parents=True)
    (workdir / "other" / "seed3" / "letter.txt").write_text("dear")
    arguments = (*arguments[:-4], "--epochs", 2, "--seeds", 3)
    code, out, err = run_command(*arguments)
    assert code == 1
    assert "resuming at step" in out
    assert f"failed: {workdir / 'other' / 'seed3'} is neither empty nor a run" in out
    assert err.startswith("error: 1 of the runs failed:")
    record = json.loads((workdir / "results.json").read_text())
    lines = (workdir / "plain" / "seed3" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])["test_accuracy"]
    assert [group["name"] for group in record] == ["plain"]
    assert record[0]["runs"][0]["seed"] == 3
    assert record[0]["runs"][0]["last_test_accuracy"] == last
    table = (workdir / "results.md").read_text()
    assert f"| plain | 1 | 2 | test | {last:.2%}".replace("%", "") in table
    assert "letter.txt" not in table
    assert "- failed:" in table

    (workdir / "other" / "seed3" / "letter.txt").unlink()
    code, out, err = run_command(*arguments)
    assert (code, err) == (0, "")
    assert f"[1/2] {workdir / 'plain' / 'seed3'}: done" in out
    assert "failed" not in (workdir / "results.md").read_text()


def test_a_sweep_covers_every_configuration_with_every_seed(tmp_path: Path, configs: tuple[Path, Path]):
    runs = planned_runs(configs, [0, 7], tmp_path / "runs", {"epochs": 9})
    assert [str(path.relative_to(tmp_path / "runs")) for path in runs] == [
        "plain/seed0",
        "other/seed0",
        "plain/seed7",
        "other/seed7",
    ]
    assert [config.seed for _, config in runs.values()] == [0, 0, 7, 7]
    assert {config.epochs for _, config in runs.values()} == {9}
    assert [config.augment.brightness for _, config in runs.values()] == [0.2, 0.1, 0.2, 0.1]


def test_a_wrong_plan_is_refused_before_anything_runs(tmp_path: Path, configs: tuple[Path, Path]):
    with pytest.raises(UserError, match="batch_size: expected"):
        planned_runs(configs, [0], tmp_path, {"batch_size": "0"})
    with pytest.raises(UserError, match="two runs for"):
        planned_runs(configs, [1, 1], tmp_path, {})
    code, _, err = run_command("sweep", "--config", configs[0], "--seed", "3", "--workdir", tmp_path / "runs")
    assert (code, err) == (2, "error: --seed: expected --seeds, which lists the seeds of a sweep\n")
    assert not (tmp_path / "runs").exists()


def test_settings_survive_the_way_through_flags():
    settings = {
        "epochs": 3,
        "model.stage_blocks": (1, 2, 3, 4),
        "model.conv_bias": False,
        "augment.horizontal_flip": True,
        "optimizer.learning_rate": 1e-05,
        "data.dir": "--a b",
        "optimizer.schedule": "constant",
    }
    parser = ArgumentParser()
    add_setting_arguments(parser)
    given = setting_arguments(parser.parse(to_arguments(settings)))
    assert set(given) == set(settings)
    assert Config().replace(given) == Config().replace(settings)


def test_a_run_that_has_trained_longer_fails_alone(
    tmp_path: Path, configs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    """The other runs of the sweep go on."""
    trained: list[str] = []

    def train(arguments: Sequence[str]) -> tuple[int, str]:
        trained.append(arguments[arguments.index("--workdir") + 1])
        return 0, ""

    monkeypatch.setattr(sweep_module, "train", train)
    longer = tmp_path / "runs" / "plain" / "seed0"
    longer.mkdir(parents=True)
    shutil.copy(configs[0], longer / "config.toml")
    record = EpochRecord(5, 225, 0.1, 1.0, 0.5, seconds=1.0, images_per_second=1.0)
    EpochLog(longer / "metrics.jsonl").append(record)
    failed = sweep_module.sweep(configs, [0], tmp_path / "runs")
    assert list(failed) == [longer]
    assert "has trained for 5 epochs already, expected at least as many, found 3" in failed[longer]
    assert trained == [str(tmp_path / "runs" / "other" / "seed0")]
