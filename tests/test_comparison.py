from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxresnet.comparison import as_markdown, comparison_table, group_runs, mean_and_spread, read_runs
from jaxresnet.config import Config, override
from jaxresnet.errors import UserError
from jaxresnet.workdir import Workdir

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path, tiny_config: Config) -> MakeRun:
    """Writes a run's folder with these test accuracies by epoch."""

    def make(name: str, accuracies: list[float], **settings: Any) -> Path:
        run = Workdir(tmp_path / name)
        with run.open(override(tiny_config, settings)):
            for epoch, accuracy in enumerate(accuracies, 1):
                run.append_metrics(
                    {
                        "epoch": epoch,
                        "step": epoch,
                        "learning_rate": 0.1,
                        "train_loss": 1 / epoch,
                        "train_accuracy": 0.5,
                        "test_loss": 2 / epoch,
                        "test_accuracy": accuracy,
                        "seconds": 30.0,
                    }
                )
        return run.path

    return make


def test_seeds_are_taken_together_and_other_settings_told_apart(make_run: MakeRun):
    paths = [
        make_run("plain/seed0", [0.5, 0.4]),
        make_run("wide/seed0", [0.9], **{"model.stem_channels": 8}),
        make_run("plain/seed1", [0.2, 0.6], seed=1, cpu_devices=2),
    ]
    plain, wide = group_runs(read_runs(paths))
    assert (plain.name, wide.name) == ("plain", "wide")
    assert [run.config.seed for run in plain.runs] == [0, 1]
    assert plain.last("test_accuracy") == [0.4, 0.6]
    assert plain.best("test_accuracy") == [0.5, 0.6]
    header, first, second = comparison_table([plain, wide])
    assert header[4:6] == ("last epoch (%)", "best epoch (%)")
    # The standard deviation of (40, 60) over n - 1 is 14.14, of (50, 60) 7.07; 2 x 30 s are a minute.
    assert first == (
        "plain",
        "2",
        "2",
        "test",
        "50.00 ± 14.14",
        "55.00 ± 7.07",
        "0.5000 ± 0.0000",
        "1.0 ± 0.0",
    )
    assert second == ("wide", "1", "1-1 of 2", "test", "90.00", "90.00", "1.0000", "0.5")


def test_a_run_without_an_epoch_has_dashes(make_run: MakeRun):
    [group] = group_runs(read_runs([make_run("new", [])]))
    assert comparison_table([group])[1] == ("new", "1", "0-0 of 2", "-", "-", "-", "-", "0.0")


def test_folders_without_a_run_or_named_twice_are_refused(make_run: MakeRun, tmp_path: Path):
    path = make_run("run", [0.5])
    with pytest.raises(UserError, match="no run in"):
        read_runs([path, tmp_path / "none"])
    with pytest.raises(UserError, match="twice"):
        read_runs([path, path.parent / "." / "run"])


def test_mean_and_spread():
    assert mean_and_spread([]) == "-"
    assert mean_and_spread([0.5], 100) == "50.00"
    assert mean_and_spread([1.0, 3.0], digits=1) == "2.0 ± 1.4"


def test_markdown():
    assert as_markdown([("a", "b"), ("1|2", "3")]) == "| a | b |\n|---|--:|\n| 1\\|2 | 3 |"
