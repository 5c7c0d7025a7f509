"""A sweep as a user meets it, in fresh processes: interrupted, with a run that fails, and started again."""

import io
import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers import children_of, run_command, start_command, wait_for_line
from PIL import Image

from jaxresnet import sweep as sweep_module
from jaxresnet.config.files import dump_config, load_config
from jaxresnet.config.flags import ArgumentParser, add_setting_arguments, setting_arguments, to_arguments
from jaxresnet.config.schema import Config
from jaxresnet.data.sources import open_source
from jaxresnet.engines.process import problem_of
from jaxresnet.errors import Interrupted, UserError
from jaxresnet.plan import Plan, resolve
from jaxresnet.runs.records import EpochLog, EpochRecord
from jaxresnet.runs.workdir import Workdir
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
    process = start_command(*arguments)
    wait_for_line(process, "epoch 1/40")
    # Both get the signal, as in a container that stops. What the sweep passes on is no second demand.
    for pid in (*children_of(process.pid), process.pid):
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.02)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "stopping: saving first; a second signal ends the run at once, unsaved\n" in err
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
    assert [plan.config.seed for plan in runs.values()] == [0, 0, 7, 7]
    assert {plan.config.epochs for plan in runs.values()} == {9}
    assert [plan.config.augment.brightness for plan in runs.values()] == [0.2, 0.1, 0.2, 0.1]


def test_a_sweep_from_trained_weights_asks_for_their_network(tmp_path: Path, tiny_plan: Plan):
    with Workdir(tmp_path / "source").open(tiny_plan):
        file = tmp_path / "finetune.toml"
    file.write_text('epochs = 3\n[data]\nname = "digits"\n')
    [plan] = planned_runs([file], [0], tmp_path / "runs", {"init": str(tmp_path / "source")}).values()
    assert plan.config.model == tiny_plan.config.model
    assert plan.config.epochs == 3
    with pytest.raises(UserError, match="no network nowhere: expected"):
        planned_runs([file], [0], tmp_path / "runs", {"init": "nowhere"})


def test_a_damaged_run_does_not_ask_for_the_network_that_the_others_began_with(
    tmp_path: Path, tiny_plan: Plan
):
    source, runs, file = tmp_path / "source", tmp_path / "runs", tmp_path / "finetune.toml"
    file.write_text('epochs = 3\n[data]\nname = "digits"\n')
    with Workdir(source).open(tiny_plan):
        planned = planned_runs([file], [0, 1], runs, {"init": str(source)})
    for path, plan in planned.items():
        with Workdir(path).open(plan):
            pass
    shutil.rmtree(source)
    assert planned_runs([file], [0, 1], runs, {"init": str(source)}) == planned
    good, damaged = planned
    (damaged / "config.toml").write_text("epochs =")
    assert planned_runs([file], [0, 1], runs, {"init": str(source)})[good] == planned[good]


def test_a_run_that_another_sweep_has_finished_meanwhile_did_not_fail(
    tmp_path: Path, configs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    standings = {"plain": [(False, ""), (True, "")], "other": [(False, ""), (False, "")]}
    monkeypatch.setattr(sweep_module, "standing", lambda path, plan: standings[path.parent.name].pop(0))
    monkeypatch.setattr(sweep_module, "train", lambda arguments: (1, "error: in use by process 7"))
    assert sweep_module.sweep(configs, [0], tmp_path) == {tmp_path / "other" / "seed0": "in use by process 7"}
    assert "failed: " + str(tmp_path / "plain") not in (tmp_path / "results.md").read_text()


def test_a_wrong_plan_is_refused_before_anything_runs(tmp_path: Path, configs: tuple[Path, Path]):
    with pytest.raises(UserError, match="batch_size: expected"):
        planned_runs(configs, [0], tmp_path, {"batch_size": "0"})
    with pytest.raises(UserError, match="two runs for"):
        planned_runs(configs, [1, 1], tmp_path, {})
    for name in ("..", "results.md"):
        shutil.copy(configs[0], tmp_path / f"{name}.toml")
        with pytest.raises(UserError, match="expected the name of a folder before") as caught:
            planned_runs([tmp_path / f"{name}.toml"], [0], tmp_path / "runs", {})
        assert caught.value.exit_code == 2
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


def record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, 45 * epoch, 0.1, 1.0, 0.5, 1.0, 1.0, test_loss=1.0, test_accuracy=0.75)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The workdirs of the runs that a sweep trains. In place of training, it gets a line for the third epoch."""
    workdirs: list[str] = []

    def train(arguments: Sequence[str]) -> tuple[int, str]:
        parser = ArgumentParser()
        parser.add_argument("--workdir", type=Path)
        parser.add_argument("--device")
        add_setting_arguments(parser)
        args = parser.parse(arguments)
        args.workdir.mkdir(parents=True, exist_ok=True)
        (args.workdir / "config.toml").write_text(dump_config(Config().replace(setting_arguments(args))))
        EpochLog(args.workdir / "metrics.jsonl").append(record(3))
        workdirs.append(f"{args.workdir.parent.name}/{args.workdir.name}")
        return 0, ""

    monkeypatch.setattr(sweep_module, "train", train)
    return workdirs


def test_a_run_that_has_trained_longer_fails_alone(
    tmp_path: Path, configs: tuple[Path, Path], trained: list[str]
):
    """The other runs of the sweep go on."""
    longer = tmp_path / "runs" / "plain" / "seed0"
    longer.mkdir(parents=True)
    shutil.copy(configs[0], longer / "config.toml")
    EpochLog(longer / "metrics.jsonl").append(record(5))
    failed = sweep_module.sweep(configs, [0], tmp_path / "runs")
    assert list(failed) == [longer]
    assert "has trained for 5 epochs already, expected at least as many, found 3" in failed[longer]
    assert trained == ["other/seed0"]
    table = (tmp_path / "runs" / "results.md").read_text()
    assert "| other | 1 | " in table
    assert "| plain |" not in table


def test_runs_of_other_settings_are_refused_before_anything_runs(
    tmp_path: Path, configs: tuple[Path, Path], trained: list[str]
):
    workdir = tmp_path / "runs"
    assert sweep_module.sweep(configs, [0], workdir) == {}
    table = (workdir / "results.md").read_text()
    trained.clear()
    with pytest.raises(UserError) as caught:
        sweep_module.sweep(configs, [0], workdir, {"optimizer.learning_rate": "0.5"})
    assert caught.value.exit_code == 2
    assert [line.partition(": use")[0] for line in str(caught.value).splitlines()] == [
        f"{workdir / name / 'seed0'} holds a run of another configuration (optimizer.learning_rate was 0.05, is 0.5)"
        for name in ("plain", "other")
    ]
    assert trained == []
    assert (workdir / "results.md").read_text() == table
    sweep_module.sweep(
        configs, [0], workdir, {"epochs": 4, "checkpoint.every_minutes": 3}
    )  # which may change
    assert trained == ["plain/seed0", "other/seed0"]


def test_runs_that_have_begun_are_planned_without_their_data(tmp_path: Path, tiny_config: Config):
    """So that a sweep whose runs are all finished makes its table wherever the data is."""
    for name in ("a/0", "a/1", "b/0", "b/1"):
        file = tmp_path / "pictures" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file)
    file, workdir = tmp_path / "plain.toml", tmp_path / "runs"
    data = {"data.name": "folder", "data.dir": str(tmp_path / "pictures"), "batch_size": 2}
    config = tiny_config.replace(data | {"seed": 0})
    file.write_text(dump_config(config))
    begun = resolve(config, open_source(config.data).info)
    with Workdir(workdir / "plain" / "seed0").open(begun):
        (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    assert planned_runs([file], [0], workdir, {}) == {workdir / "plain" / "seed0": begun}
    with pytest.raises(UserError, match="no folder"):
        planned_runs([file], [0, 1], workdir, {})


@pytest.mark.parametrize(
    ("code", "said", "problem"),
    [
        (0, "note: no compilation cache", ""),
        (2, "error: epochs: expected a valid integer", "epochs: expected a valid integer"),
        (1, "", "exit code 1"),
        (137, "", "exit code 137"),
        (137, "note: no compilation cache", "exit code 137; its last line: note: no compilation cache"),
    ],
)
def test_a_failed_run_tells_why_as_far_as_it_is_known(code: int, said: str, problem: str):
    assert problem_of(code, said) == problem


def test_what_is_damaged_fails_alone(tmp_path: Path, configs: tuple[Path, Path], trained: list[str]):
    """A torn configuration, a damaged record, and files that are broken or moved while the sweep goes on."""
    workdir = tmp_path / "runs"
    sweep_module.sweep(configs, [0, 1, 2], workdir)
    (workdir / "plain" / "seed0" / "config.toml").write_text("epochs =")
    (workdir / "other" / "seed0" / "metrics.jsonl").write_text("5\n")
    (workdir / "plain" / "seed1" / "metrics.jsonl").unlink()  # it is to be trained again
    moved = (workdir / "other").rename(tmp_path / "other disk")
    (workdir / "other").symlink_to(moved)
    trained.clear()
    runs = planned_runs(configs, [0, 1, 2], workdir, {})
    configs[0].write_text("broken")
    failed: dict[Path, str] = {}
    for path, plan in runs.items():
        failed |= sweep_module.train_one(path, plan, "auto", "")
    table = sweep_module.write_results(workdir, runs, failed)
    assert [str(path.relative_to(workdir)) for path in failed] == ["plain/seed0", "other/seed0"]
    assert trained == ["plain/seed1", "other/seed1", "plain/seed2", "other/seed2"]
    assert "| plain | 2 | " in table
    assert "| other | 2 | " in table
    assert (
        f"- failed: {workdir / 'plain' / 'seed0'}: {workdir / 'plain' / 'seed0' / 'config.toml'}: expected"
        in table
    )
    assert (
        f"- failed: {workdir / 'other' / 'seed0'}: {workdir / 'other' / 'seed0' / 'metrics.jsonl'}, line 1"
        in table
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_sweep_that_is_stopped_as_its_run_ends_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
):
    """The signal comes while no run can react to it any more."""

    class Ended:
        returncode = 0
        stderr = io.StringIO()

        def __init__(self, *_: object, **__: object) -> None:
            self.terminated = 0

        def terminate(self) -> None:
            self.terminated += 1

        def wait(self) -> None:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGHUP)  # a terminal that closes does not insist
            assert self.terminated == 1

    monkeypatch.setattr("jaxresnet.engines.process.subprocess.Popen", Ended)
    with pytest.raises(Interrupted, match=f"the sweep stopped in {tmp_path}: this run is finished") as caught:
        sweep_module.train(["--workdir", str(tmp_path)])
    assert caught.value.exit_code == code
