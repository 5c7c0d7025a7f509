"""The run's folder: locked, checked, and never half-written."""

import dataclasses
import errno
import fcntl
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import plan_of

from jaxresnet.config.schema import Config
from jaxresnet.errors import UserError
from jaxresnet.plan import Plan, resolve
from jaxresnet.runs.records import Identity
from jaxresnet.runs.workdir import FREE_SETTINGS, Workdir

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
        assert run.config() == PLAN.config
        run.go_on(longer.config, step=0)
        assert run.config() == longer.config
    with pytest.raises(UserError, match="seed was 0, is 1") as caught:
        run.check(plan_of(settings={"seed": 1}))
    assert caught.value.exit_code == 2
    assert run.config() == longer.config


def test_a_start_that_was_killed_early_is_no_obstacle(tmp_path: Path):
    (tmp_path / "lock").touch()
    (tmp_path / "run.json").write_text('{"id": "0"}')
    (tmp_path / "config.toml.01234567.tmp").write_text("epo")
    (tmp_path / "config.toml.tmp").write_text("epo")  # of version 0.2
    with Workdir(tmp_path).open(PLAN):
        assert Workdir(tmp_path).config() == Config()


def test_a_run_has_an_id_and_the_settings_that_stay(tmp_path: Path):
    identities = []
    for name, seed in (("one", 0), ("one", 0), ("other", 1)):
        run, plan = Workdir(tmp_path / name), plan_of(settings={"seed": seed})
        with run.open(plan):
            identities.append(run.identity(plan.config))
    one, again, other = identities
    assert one == again
    assert one.run != other.run
    assert one.settings | {"seed": 1} == other.settings
    assert one.settings["model.stage_blocks"] == [2, 4, 4, 1]
    assert not any(name.startswith(FREE_SETTINGS) for name in one.settings)
    (tmp_path / "one" / "run.json").unlink()  # earlier versions wrote none
    with Workdir(tmp_path / "one").open(PLAN):
        assert Workdir(tmp_path / "one").identity(PLAN.config) == Identity(None, one.settings)
    (tmp_path / "other" / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"run\.json: expected a run's id, found something else"):
        Workdir(tmp_path / "other").identity(PLAN.config)


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


def test_output_that_nobody_reads_is_no_fault_of_the_folder(tmp_path: Path):
    with pytest.raises(BrokenPipeError), Workdir(tmp_path / "run").open(plan_of()):
        raise BrokenPipeError(32, "Broken pipe")


def test_a_runs_folder_carries_the_facts_of_its_data_set(tmp_path: Path):
    plan = plan_of_classes("cat", "dog")
    run = Workdir(tmp_path)
    with run.open(plan):
        assert run.require_plan() == plan  # not the facts that the name cifar10 stands for
    with pytest.raises(
        UserError,
        match=r"a run of another data set \(the classes airplane, automobile, bird, deer, .*, truck are new\): ",
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


def test_a_lock_file_that_somebody_removes_lets_no_second_process_in(tmp_path: Path):
    first, second = Workdir(tmp_path / "run"), Workdir(tmp_path / "run")
    refusal = r"run is in use by another process: wait for it or name another --workdir$"
    with first.open(PLAN):
        (tmp_path / "run" / "lock").unlink()
        with pytest.raises(UserError, match=refusal), second.open(PLAN):
            pass
        (tmp_path / "run").rename(tmp_path / "moved")
        with pytest.raises(UserError, match="moved is in use"), Workdir(tmp_path / "moved").open(PLAN):
            pass


def test_a_file_system_that_cannot_lock_folders_locks_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    flock = fcntl.flock

    def of_nfs(descriptor: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    with (
        Workdir(tmp_path).open(PLAN),
        pytest.raises(UserError, match=f"in use by process {os.getpid()} on {socket.gethostname()}: "),
        Workdir(tmp_path).open(PLAN),
    ):
        pass


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_locks(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(UserError) as caught, Workdir(tmp_path).open(PLAN):
        pass
    assert str(caught.value) == (
        f"cannot lock {tmp_path}: No locks available; expected a file system with locks (flock): name a --workdir on "
        "another one"
    )


def test_a_folder_that_is_moved_or_replaced_meanwhile_is_noticed(tmp_path: Path):
    run, place = Workdir(tmp_path / "run"), tmp_path / "run"
    run.require_in_place()  # nothing is opened yet
    with run.open(PLAN):
        run.require_in_place()
        place.rename(tmp_path / "moved")
        with pytest.raises(
            UserError, match=rf"^{place} was moved or removed during the run: .* found none; put"
        ):
            run.require_in_place()
        place.mkdir()
        with pytest.raises(UserError, match="the folder that the run began in, found another; put it back"):
            run.require_in_place()
        place.rmdir()
        place.symlink_to(tmp_path / "moved")
        run.require_in_place()


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path):
    run = Workdir(tmp_path / os.fsdecode(b"run\xff"))
    for use in (lambda: run.check(PLAN), lambda: run.open(PLAN).__enter__()):
        with pytest.raises(
            UserError, match=r"expected a folder whose name is UTF-8, found '/.*/run\\udcff'"
        ) as caught:
            use()
        assert caught.value.exit_code == 2
    with pytest.raises(UserError, match=r"data.dir: expected a valid string, .* found '\\udcff'"):
        Config().replace({"data.dir": os.fsdecode(b"\xff")})
