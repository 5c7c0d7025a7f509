"""The driver of a sweep on Ray: with a stand-in for Ray, and on a real one with two workers."""

import contextlib
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import TINY_SETTINGS, plan_of, start_command, timeless_records

from jaxresnet.config.files import dump_config
from jaxresnet.config.schema import Config
from jaxresnet.engines import cluster
from jaxresnet.engines.cluster import connected, load_ray, require_shared, train_on_ray
from jaxresnet.engines.shares import Wish
from jaxresnet.engines.task import RunLost
from jaxresnet.errors import Interrupted, UserError
from jaxresnet.machine.environment import available_cores
from jaxresnet.plan import Plan
from jaxresnet.sweep import main

NODES = [{"Alive": True, "Resources": {"CPU": 2.0}, "NodeID": "a", "NodeManagerAddress": "10.0.0.1"}]


class RayError(Exception):
    """As the class of this name in ray.exceptions."""


class RayTaskError(RayError):
    """As the class of this name in ray.exceptions."""

    def __init__(self, cause: Exception):
        super().__init__("ray::train_here() (pid=3)\nTraceback")
        self.cause = cause


class TaskCancelledError(RayError):
    """As the class of this name in ray.exceptions."""


class FakeRay:
    """Runs tasks one by one as `outcome` says: returns what it returns, raises what it raises."""

    exceptions = SimpleNamespace(
        RayError=RayError, RayTaskError=RayTaskError, TaskCancelledError=TaskCancelledError
    )

    def __init__(self, outcome: Callable[[str], Any]):
        self.outcome, self.cancelled, self.submitted, self.options = outcome, set(), [], {}
        self.folders: list[Path | None] = []

    def nodes(self) -> list[dict]:
        return NODES

    def remote(self, **options: Any) -> Any:
        self.options = options
        return lambda _function: SimpleNamespace(remote=self.submit)

    def submit(self, arguments: list[str], cores: int, log: Path, folder: Path | None) -> str:
        self.submitted.append(arguments)
        self.folders.append(folder)
        assert (cores, log.exists()) == (1, True)
        return Path(arguments[1]).name

    def wait(self, tasks: list[str], timeout: float) -> tuple[list[str], list[str]]:
        return tasks[:1], tasks[1:]

    def cancel(self, task: str) -> None:
        self.cancelled.add(task)

    def get(self, task: str) -> Any:
        return self.outcome(task)


@pytest.fixture
def runs(tmp_path: Path) -> dict[Path, Plan]:
    return {
        tmp_path / f"seed{seed}": plan_of(Config().replace(TINY_SETTINGS | {"seed": seed})) for seed in (0, 1)
    }


@pytest.fixture
def with_ray(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], Any]], FakeRay]:
    def put(outcome: Callable[[str], Any]) -> FakeRay:
        ray = FakeRay(outcome)
        monkeypatch.setattr(cluster, "load_ray", lambda _address: ray)
        monkeypatch.setattr(cluster, "connected", lambda _ray, _address: contextlib.nullcontext())
        return ray

    return put


def raising(error: Exception) -> Any:
    raise error


def test_each_run_is_told_and_its_failure_kept(
    runs: dict[Path, Plan],
    with_ray: Any,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trained" / "a").mkdir(parents=True)
    ray = with_ray({"seed0": (0, "a note"), "seed1": (1, "error: the disk is full")}.get)
    begun = runs[tmp_path / "seed1"]
    runs[tmp_path / "seed1"] = begun.with_config(begun.config.replace({"init": "trained/a"}))
    failed = tmp_path / "seed1"
    assert list(train_on_ray(runs, Wish())) == [{}, {failed: "the disk is full"}]
    first, note, _, *told = capsys.readouterr().out.splitlines()
    assert first == "Ray: up to 2 runs at a time, each on 1 core"
    assert "number of cores, here 1," in note
    assert told == [f"[1/2] {tmp_path / 'seed0'}: done", f"[2/2] {failed}: failed: the disk is full"]
    assert ray.options == {"num_cpus": 1, "num_gpus": 0, "max_retries": 3, "retry_exceptions": [RunLost]}
    assert ray.submitted[0][:4] == ["--workdir", str(tmp_path / "seed0"), "--device", "cpu"]
    assert ray.folders == [None, tmp_path]  # from which trained/a is to be found
    assert "--init=trained/a" in ray.submitted[1]


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (RayTaskError(RunLost("exit code 137")), "exit code 137, 4 times"),
        (RayTaskError(ModuleNotFoundError("No module named 'jaxresnet'")), "No module named 'jaxresnet'"),
        (RayError("The worker died\nmore"), "its worker was lost 4 times (The worker died)"),
    ],
)
def test_a_run_that_ray_gives_up_fails_in_one_line(
    runs: dict[Path, Plan], with_ray: Any, error: Exception, problem: str
):
    with_ray(lambda task: raising(error) if task == "seed0" else (0, ""))
    assert [list(each.values()) for each in train_on_ray(runs, Wish())] == [[problem], []]


def test_a_signal_stops_all_runs_and_tells_where(runs: dict[Path, Plan], with_ray: Any, tmp_path: Path):
    ray = with_ray(lambda task: (143, "interrupted: saved at step 3") if task == "seed0" else raising(error))
    error = TaskCancelledError("it had not begun")
    waits: list[int] = []

    def wait(tasks: list[str], timeout: float) -> tuple[list[str], list[str]]:
        waits.append(len(ray.cancelled))
        if len(waits) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return (tasks, []) if len(ray.cancelled) == 2 else ([], tasks)

    ray.wait = wait
    with pytest.raises(Interrupted) as caught:
        list(train_on_ray(runs, Wish()))
    assert caught.value.exit_code == 130
    assert str(caught.value) == f"the sweep stopped in {tmp_path / 'seed0'}: interrupted: saved at step 3"


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_a_machine_does_not_see_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool
):
    module = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: (node, soft))
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ray.util", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", module)
    seen: list[str] = []

    def look(path: str) -> bool:
        seen.append(path)
        return there and Path(path).exists()

    task = SimpleNamespace(options=lambda scheduling_strategy: SimpleNamespace(remote=look))
    ray = SimpleNamespace(
        remote=lambda **_: lambda _: task, get=lambda tasks, timeout: tasks, exceptions=FakeRay.exceptions
    )
    if there:
        require_shared(ray, NODES, tmp_path)
    else:
        with pytest.raises(UserError, match=f"all nodes share, found that 10.0.0.1 cannot see {tmp_path}"):
            require_shared(ray, NODES, tmp_path)
    assert Path(seen[0]).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_nobody_serves_is_told_at_once():
    ray = SimpleNamespace(exceptions=FakeRay.exceptions, shutdown=lambda: None)
    with (
        pytest.raises(UserError, match=r"cannot reach Ray at 127\.0\.0\.1:1: .*refused") as caught,
        connected(ray, "127.0.0.1:1"),
    ):
        pass
    assert caught.value.exit_code == 1


def test_without_ray_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(UserError, match=r"not installed: pip install 'jaxresnet\[ray\]'") as caught:
        load_ray(None)
    assert caught.value.exit_code == 1


def test_flags_of_ray_without_ray_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="--cpus-per-run: expected --engine ray beside it") as caught:
        main(["--config", "digits", "--workdir", str(tmp_path / "runs"), "--cpus-per-run", "2"])
    assert caught.value.exit_code == 2
    assert not (tmp_path / "runs").exists()


def started_on_one_core(*arguments: object) -> Any:
    """Start a command with one core, as a run of a sweep on Ray has one here."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(allowed)])
    try:
        return start_command(*map(str, arguments))
    finally:
        os.sched_setaffinity(0, allowed)


def results_of(workdir: Path) -> list[dict[str, Any]]:
    """The runs in the results of a sweep, without the times and the name of its folder."""
    (group,) = json.loads((workdir / "results.json").read_text())
    relative = [each | {"workdir": str(Path(each["workdir"]).relative_to(workdir))} for each in group["runs"]]
    return [{key: value for key, value in each.items() if key != "seconds"} for each in relative]


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'jaxresnet[ray]'"
)
@pytest.mark.skipif(available_cores() < 2, reason="two runs at a time need two cores")
def test_a_sweep_on_ray_survives_a_killed_worker_and_equals_one_in_turn(tmp_path: Path):
    file = tmp_path / "tiny.toml"
    file.write_text(dump_config(Config().replace(TINY_SETTINGS | {"batch_size": 32, "epochs": 4})))
    sweep = ("sweep", "--config", file, "--workdir")
    in_turn = started_on_one_core(*sweep, tmp_path / "plain", "--seeds", 1)
    on_ray = start_command(*sweep, tmp_path / "ray", "--seeds", 0, 1, "--engine", "ray", "--cpus-per-run", 1)
    try:
        killed = tmp_path / "ray" / "tiny" / "seed1"
        while not (killed / "metrics.jsonl").exists():
            assert on_ray.poll() is None, on_ray.communicate()
            time.sleep(0.01)
        run = int((killed / "lock").read_text().split()[1])
        worker = int(Path(f"/proc/{run}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(worker, signal.SIGKILL)
        out, err = on_ray.communicate(timeout=300)
        in_turn.communicate(timeout=300)
    finally:
        on_ray.terminate()  # if it is still there
        in_turn.terminate()
    assert (on_ray.returncode, err) == (0, "")
    assert f"] {killed}: done" in out
    # Nothing of Ray's own.
    assert not [
        line for line in out.splitlines() if not line.startswith(("[", "|", "Ray:", "note:", "what", "/"))
    ]
    assert len(json.loads((killed / "environment.json").read_text())) == 2  # starts
    first, second = results_of(tmp_path / "ray")
    assert (first["seed"], first["epochs"]) == (0, 4)
    assert [second] == results_of(tmp_path / "plain")
    assert timeless_records(killed) == timeless_records(tmp_path / "plain" / "tiny" / "seed1")
