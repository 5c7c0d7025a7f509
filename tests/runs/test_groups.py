"""Which runs are taken together, and what a group of them tells."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import mesh_of, plan_of

from jaxresnet.config.schema import Config
from jaxresnet.errors import UserError
from jaxresnet.machine.environment import describe_environment
from jaxresnet.runs.groups import group_runs, read_histories
from jaxresnet.runs.records import EpochRecord
from jaxresnet.runs.workdir import Workdir

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path, tiny_config: Config) -> MakeRun:
    """Writes a run's folder with these test accuracies by epoch."""

    def make(name: str, accuracies: list[float], **settings: Any) -> Path:
        run = Workdir(tmp_path / name)
        with run.open(plan_of(tiny_config, settings)):
            for epoch, accuracy in enumerate(accuracies, 1):
                run.epochs.append(
                    EpochRecord(
                        epoch=epoch,
                        step=epoch,
                        learning_rate=0.1,
                        train_loss=1 / epoch,
                        train_accuracy=0.5,
                        seconds=30.0,
                        images_per_second=48.0,
                        test_loss=2 / epoch,
                        test_accuracy=accuracy,
                    )
                )
        return run.path

    return make


def test_runs_on_other_data_are_told_apart(make_run: MakeRun):
    """Also where only the folder differs, in which each has its own pictures."""
    paths = [make_run("cats/seed0", [0.9]), make_run("cars/seed0", [0.5], seed=1)]
    for path in paths:
        dataset = json.loads((path / "dataset.json").read_text())
        (path / "dataset.json").write_text(json.dumps(dataset | {"digest": f"{len(path.name):064d}"}))
    assert len(group_runs(read_histories(paths))) == 1
    dataset = json.loads((paths[1] / "dataset.json").read_text())
    (paths[1] / "dataset.json").write_text(json.dumps(dataset | {"digest": "1" * 64}))
    assert [group.name for group in group_runs(read_histories(paths))] == ["cats", "cars"]


def test_seeds_are_taken_together_and_other_settings_told_apart(make_run: MakeRun):
    paths = [
        make_run("plain/seed0", [0.5, 0.4]),
        make_run("wide/seed0", [0.9], **{"model.stem_channels": 8}),
        make_run("plain/seed1", [0.2, 0.6], seed=1, cpu_devices=2),
    ]
    plain, wide = group_runs(read_histories(paths))
    assert (plain.name, wide.name) == ("plain", "wide")
    assert [history.config.seed for history in plain.histories] == [0, 1]
    assert plain.split == "test"
    assert plain.last_accuracies("test") == [0.4, 0.6]
    assert plain.best_accuracies("test") == [0.5, 0.6]
    assert plain.last_accuracies("validation") == []
    assert plain.last_train_losses() == [0.5, 0.5]
    assert [history.seconds for history in plain.histories] == [60.0, 60.0]
    assert wide.best_accuracies("test") == [0.9]


def test_groups_have_different_names(make_run: MakeRun):
    paths = [
        make_run("a/seed0", [0.5]),
        make_run("a/seed1", [0.5], seed=1, epochs=9),
        make_run("b", [0.5], label_smoothing=0.1),
    ]
    assert [group.name for group in group_runs(read_histories(paths))] == ["a/seed0", "a/seed1", "b"]


def test_the_training_time_is_that_of_all_starts(make_run: MakeRun):
    [history] = read_histories([make_run("run", [0.5, 0.5])])  # two epochs of 30 s
    start = describe_environment(mesh_of(1), "float32", [])

    def seconds(*starts: tuple[str, float | None]) -> float:
        made = [
            dataclasses.replace(start, versions={"jaxresnet": version}, train_seconds=value)
            for version, value in starts
        ]
        return dataclasses.replace(history, starts=made).seconds

    assert seconds(("0.2.0", 40.0), ("0.2.0", None), ("0.2.0", 5.0)) == 45
    assert seconds() == seconds(("0.1.0", None), ("0.2.0", 5.0)) == 60  # version 0.1 did not record it


def test_a_run_without_an_epoch_tells_nothing(make_run: MakeRun):
    [group] = group_runs(read_histories([make_run("new", [])]))
    assert group.name == "new"
    assert group.split is None
    assert group.last_accuracies("test") == group.best_accuracies("test") == group.last_train_losses() == []


def test_folders_without_a_run_or_named_twice_are_refused(make_run: MakeRun, tmp_path: Path):
    path = make_run("run", [0.5])
    with pytest.raises(UserError, match="no run in"):
        read_histories([path, tmp_path / "none"])
    with pytest.raises(UserError, match="twice"):
        read_histories([path, path.parent / "." / "run"])
