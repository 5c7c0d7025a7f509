"""The run's folder: locked, checked, and never half-written."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import plan_of

from jaxresnet.config.schema import Config
from jaxresnet.errors import UserError
from jaxresnet.plan import Plan, resolve
from jaxresnet.runs.workdir import Workdir

PLAN = plan_of()


def plan_of_classes(*class_names: str) -> Plan:
    """The plan for the same images in other classes."""
    return resolve(PLAN.config, dataclasses.replace(PLAN.info, class_names=class_names))


def test_a_second_process_is_refused_and_told_of_the_first(tmp_path: Path):
    code = (
        "import sys\n"
        "from helpers import plan_of\n"
        "from jaxresnet.runs.workdir import Workdir\n"
        "with Workdir(sys.argv[1]).open(plan_of()): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "run"],
        cwd=Path(__file__).parent.parent,  # where the helpers are
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError, match=f"in use by process {first.pid}") as caught,
            Workdir(tmp_path / "run").open(PLAN),
        ):
            pass
        assert caught.value.exit_code == 1
        first.kill()
        first.wait()
        with Workdir(tmp_path / "run").open(PLAN):  # the kernel has freed it
            pass


def test_settings_that_may_change_on_resuming(tmp_path: Path):
    run = Workdir(tmp_path / "run")
    with run.open(PLAN):
        pass
    settings = {"epochs": 80, "cpu_devices": 1, "data.dir": "elsewhere", "checkpoint.every_epochs": 5}
    longer = plan_of(settings=settings)
    with run.open(longer):
        assert run.config() == longer.config
    with pytest.raises(UserError, match="seed was 0, is 1") as caught:
        run.check(plan_of(settings={"seed": 1}))
    assert caught.value.exit_code == 2
    assert run.config() == longer.config


def test_a_start_that_was_killed_early_is_no_obstacle(tmp_path: Path):
    (tmp_path / "lock").touch()
    (tmp_path / "config.toml.tmp").write_text("epo")
    with Workdir(tmp_path).open(PLAN):
        assert Workdir(tmp_path).config() == Config()


def test_a_file_in_the_folders_place(tmp_path: Path):
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match="expected a folder for the run, found a file"):
        Workdir(tmp_path / "run").check(PLAN)
    with pytest.raises(UserError, match="no run in"):
        Workdir(tmp_path / "nothing").require_config()


def test_a_place_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"), Workdir(tmp_path / "file" / "run").open(PLAN):
        pass


def test_a_runs_folder_carries_the_facts_of_its_data_set(tmp_path: Path):
    plan = plan_of_classes("cat", "dog")
    run = Workdir(tmp_path)
    with run.open(plan):
        assert run.require_plan() == plan  # not the facts that the name cifar10 stands for
    with pytest.raises(
        UserError, match=r"a run of another data set: expected .*'dog'.* found .*'truck'"
    ) as caught:
        run.check(PLAN)
    assert caught.value.exit_code == 2
    run.check(plan)


def test_a_folder_of_the_first_version_takes_the_facts_of_the_name(tmp_path: Path):
    with Workdir(tmp_path).open(plan_of(settings={"cpu_devices": 4})):
        pass
    (tmp_path / "dataset.json").unlink()  # it wrote none
    assert Workdir(tmp_path).require_plan() == plan_of(settings={"cpu_devices": 4})
    Workdir(tmp_path).check(PLAN)
    with pytest.raises(UserError, match="another data set"):
        Workdir(tmp_path).check(plan_of_classes("cat", "dog"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": None}, "name: Input should be a valid string"),
        ({"mean": [0.5]}, "expected mean and std of 3 channels"),
        ({"image_shape": [32, 0, 3]}, "image_shape.1: Input should be greater than or equal to 1"),
        ("{", "Invalid JSON"),
        ('{"a": 1}', "name: Field required"),
    ],
)
def test_what_is_no_data_sets_facts_is_named(tmp_path: Path, change: dict[str, Any] | str, problem: str):
    with Workdir(tmp_path).open(PLAN):
        pass
    file = tmp_path / "dataset.json"
    file.write_text(change if isinstance(change, str) else json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=r"dataset.json: expected facts about a data set, found") as caught:
        Workdir(tmp_path).require_plan()
    assert problem in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
