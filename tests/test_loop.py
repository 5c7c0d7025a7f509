"""The training loop in one process: what a run writes, and how it stops and goes on at awkward moments."""

import json
import math
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxresnet import loop
from jaxresnet.checkpoint import Checkpoints
from jaxresnet.config import Config
from jaxresnet.errors import Interrupted, UserError
from jaxresnet.inference import state_template
from jaxresnet.loop import device_batches, first_epoch, fit
from jaxresnet.metrics import Metrics
from jaxresnet.optimizer import make_schedule
from jaxresnet.runtime import start_devices
from jaxresnet.step import TrainState
from jaxresnet.workdir import Workdir


@pytest.fixture(scope="module")
def config(tiny_config: Config) -> Config:
    """Two epochs of 12 steps."""
    return Config.model_validate(tiny_config.model_dump() | {"batch_size": 120, "epochs": 2})


@pytest.fixture(scope="module")
def finished(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    fit(config, workdir)
    return workdir


def records(workdir: Path) -> list[dict]:
    """metrics.jsonl without its clock values."""
    return [{k: v for k, v in record.items() if "second" not in k} for record in Workdir(workdir).metrics()]


def final_state(workdir: Path, config: Config) -> TrainState:
    template = state_template(config, start_devices("cpu", 4))
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return jax.device_get(checkpoints.restore(checkpoints.steps()[-1], template))


def assert_same_run(workdir: Path, expected: Path, config: Config) -> None:
    assert records(workdir) == records(expected)
    assert (workdir / "evaluation.json").read_text() == (expected / "evaluation.json").read_text()
    jax.tree.map(np.testing.assert_array_equal, final_state(workdir, config), final_state(expected, config))


def test_a_run_leaves_what_is_promised(finished: Path, config: Config):
    first, last = records(finished)
    assert (first["epoch"], first["step"], last["epoch"], last["step"]) == (1, 12, 2, 24)
    keys = {"epoch", "step", "learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy"}
    assert set(first) == keys
    clock = set(json.loads((finished / "metrics.jsonl").read_text().splitlines()[0])) - keys
    assert clock == {"seconds", "images_per_second"}
    assert first["learning_rate"] == pytest.approx(float(make_schedule(config)(11)))
    assert all(math.isfinite(value) for record in (first, last) for value in record.values())
    assert 0 <= first["train_accuracy"] <= 1

    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert evaluation["accuracy"] == last["test_accuracy"]
    assert evaluation["loss"] == last["test_loss"]
    assert (evaluation["examples"], evaluation["step"], evaluation["split"]) == (355, 24, "test")
    assert (evaluation["checkpoint"], evaluation["selected_on"]) == ("latest", None)
    confusion = np.array(evaluation["confusion_matrix"])
    assert confusion.sum() == 355
    assert confusion.trace() / 355 == evaluation["accuracy"]
    np.testing.assert_allclose(
        list(evaluation["per_class_accuracy"].values()), confusion.diagonal() / confusion.sum(1)
    )
    (environment,) = json.loads((finished / "environment.json").read_text())
    assert environment["devices"] == ["cpu"] * 4
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["seconds"] > environment["compile_seconds"] > 0
    assert environment["peak_device_bytes"] is None  # not counted on a CPU
    assert list((finished / "tensorboard").glob("events*"))


def test_a_finished_run_is_reported_and_not_touched(finished: Path, config: Config, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    evaluation = fit(config, finished)
    assert f"test accuracy {evaluation['accuracy']:.2%}" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def stop_during(monkeypatch: pytest.MonkeyPatch, session_method: str, call: int) -> None:
    """Have the signal come while `session_method` runs for the `call`-th time."""
    original, calls = getattr(loop.Session, session_method), 0

    def method(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            self.stop.number = signal.SIGTERM
        return original(self, *args, **kwargs)

    monkeypatch.setattr(loop.Session, session_method, method)


@pytest.mark.parametrize(
    ("method", "call", "saved"),
    [
        ("train_epoch", 1, 1),
        ("train_epoch", 2, 13),
        ("evaluate", 1, 12),  # trained and saved, but not evaluated: the next start does that
        ("evaluate", 2, 24),
    ],
)
def test_stopping_and_going_on_changes_no_bit(
    tmp_path: Path, finished: Path, config: Config, monkeypatch, capsys, method: str, call: int, saved: int
):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_during(patch, method, call)
        with pytest.raises(
            Interrupted, match=f"saved at step {saved} .*run the same command again"
        ) as caught:
            fit(config, workdir)
    assert caught.value.exit_code == 143
    assert len(records(workdir)) == (call - 1)
    fit(config, workdir)
    assert f"resuming at step {saved}" in capsys.readouterr().out
    assert_same_run(workdir, finished, config)
    assert len(json.loads((workdir / "environment.json").read_text())) == 2


def test_a_crash_between_the_line_and_the_checkpoint_doubles_no_epoch(
    tmp_path: Path, finished: Path, config: Config
):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "checkpoints" / "24")
    (workdir / "evaluation.json").unlink()
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "st')  # and a torn line
    fit(config, workdir)
    assert_same_run(workdir, finished, config)


def test_a_run_killed_before_its_last_evaluation_only_evaluates(
    tmp_path: Path, finished: Path, config: Config, monkeypatch
):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    (workdir / "evaluation.json").unlink()
    monkeypatch.setattr(loop.Session, "train_epoch", None)
    fit(config, workdir)
    assert_same_run(workdir, finished, config)


def test_a_longer_run_goes_on_from_a_finished_one(tmp_path: Path, config: Config):
    def constant(epochs: int) -> Config:
        optimizer = config.optimizer.model_copy(update={"schedule": "constant"})
        return config.model_copy(update={"epochs": epochs, "optimizer": optimizer})

    fit(constant(1), tmp_path / "extended")
    fit(constant(2), tmp_path / "extended")
    fit(constant(2), tmp_path / "at_once")
    assert_same_run(tmp_path / "extended", tmp_path / "at_once", constant(2))


def test_another_configuration_is_refused_with_the_differing_keys(finished: Path, config: Config):
    with pytest.raises(UserError, match=r"seed was 0, is 1") as caught:
        fit(config.model_copy(update={"seed": 1}), finished)
    assert caught.value.exit_code == 2


def test_an_unrelated_folder_is_refused(tmp_path: Path, config: Config):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"neither empty nor a run") as caught:
        fit(config, tmp_path)
    assert caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_batch_that_the_devices_cannot_share_is_refused(tmp_path: Path, config: Config):
    with pytest.raises(
        UserError, match="multiple of the 4 devices, found 30; the nearest is 28 and 32"
    ) as caught:
        fit(config.model_copy(update={"batch_size": 30}), tmp_path / "run")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(
    tmp_path: Path, config: Config, monkeypatch
):
    workdir, calls = tmp_path / "run", 0
    original = loop.Session.train_epoch

    def poison(self, epoch, state, train_step, batches):
        nonlocal calls
        calls += 1
        if calls == 2:
            bias = state.params["head"]["bias"]
            params = state.params | {"head": state.params["head"] | {"bias": bias * np.nan}}
            state = state.replace(params=params)
        return original(self, epoch, state, train_step, batches)

    monkeypatch.setattr(loop.Session, "train_epoch", poison)
    with pytest.raises(
        UserError, match=r"epoch 2, step 13 is not finite.*last good checkpoint is step 12"
    ) as caught:
        fit(config, workdir)
    assert caught.value.exit_code == 1
    assert len(records(workdir)) == 1
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [12]
        assert checkpoints.best_step() == 12


@pytest.mark.parametrize("split", ["validation", "none"])
def test_other_evaluation_splits(tmp_path: Path, config: Config, capsys, split: str):
    settings = config.model_copy(
        update={
            "epochs": 1,
            "data": config.data.model_copy(update={"validation_examples": 242}),
            "evaluation": config.evaluation.model_copy(update={"split": split}),
        }
    )
    evaluation = fit(settings, tmp_path)
    assert (evaluation["split"], evaluation["examples"]) == ("test", 355)
    (record,) = records(tmp_path)
    assert record["step"] == 10
    assert ("validation_accuracy" in record) == (split == "validation")
    assert "test_accuracy" not in record
    assert ("best epoch 1: validation accuracy" in capsys.readouterr().out) == (split == "validation")


def test_a_batch_larger_than_the_evaluated_split(tmp_path: Path, config: Config):
    data = config.data.model_copy(update={"validation_examples": 30})
    split = config.evaluation.model_copy(update={"split": "validation"})
    update = {"epochs": 1, "batch_size": 400, "data": data, "evaluation": split}
    evaluation = fit(config.model_copy(update=update), tmp_path)
    assert np.array(evaluation["confusion_matrix"]).sum() == 355
    (record,) = records(tmp_path)
    assert record["validation_accuracy"] * 30 == pytest.approx(round(record["validation_accuracy"] * 30))


def test_each_step_is_traced_once(tmp_path: Path, config: Config, monkeypatch):
    traces = {"train": 0, "eval": 0}

    def counted(make, name: str):
        def make_counted(config: Config):
            function = make(config)

            def wrapper(*args):
                traces[name] += 1
                return function(*args)

            return wrapper

        return make_counted

    from jaxresnet import inference

    monkeypatch.setattr(loop, "make_train_step", counted(loop.make_train_step, "train"))
    monkeypatch.setattr(inference, "make_eval_step", counted(inference.make_eval_step, "eval"))
    fit(config, tmp_path)
    assert traces == {"train": 1, "eval": 1}


def test_first_epoch():
    config = Config()  # epochs end at 390, 781, ...

    def epoch(step: int, count: int) -> int:
        metrics = Metrics(np.float32(0), np.full((1, 1), count), np.int32(0))
        return first_epoch(config, TrainState(np.int32(step), {}, {}, {}, metrics))

    assert [epoch(0, 0), epoch(1, 128), epoch(389, 1), epoch(390, 1), epoch(390, 0)] == [0, 0, 0, 0, 1]
    assert [epoch(391, 128), epoch(780, 1), epoch(781, 9), epoch(781, 0)] == [1, 1, 1, 2]
    assert [epoch(15_625, 1), epoch(15_625, 0)] == [39, 40]


def test_batches_are_sent_ahead_in_order():
    from jaxresnet.batch import Batch

    taken = []

    def source():
        for k in range(5):
            taken.append(k)
            yield Batch(np.full((4, 2, 2, 3), k, np.uint8), np.zeros(4, np.int32), np.ones(4, bool))

    batches = device_batches(source(), start_devices("cpu", 4))
    assert taken == [0, 1]
    assert int(next(batches).image[0, 0, 0, 0]) == 0
    assert taken == [0, 1, 2]
    assert [int(batch.image[0, 0, 0, 0]) for batch in batches] == [1, 2, 3, 4]
