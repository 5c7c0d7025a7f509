"""The commands as a user meets them, in fresh processes."""

import json
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, mesh_of, run_command, signal_command, start_command, timeless_records
from safetensors.numpy import save_file

from jaxresnet.config.files import load_config
from jaxresnet.config.schema import Config
from jaxresnet.errors import UserError
from jaxresnet.evaluate import as_text
from jaxresnet.learning.state import ITEMS
from jaxresnet.machine.devices import automatic_cpu_devices
from jaxresnet.runs.records import EvaluationRecord
from jaxresnet.train import chosen_cpu_devices, default_name, own_config
from jaxresnet.trained.load import load_run
from jaxresnet.trained.weights import save_weights, to_state_dict


@pytest.fixture(scope="module")
def uninterrupted(tiny_toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    code, out, err = run_command("train", "--config", tiny_toml, "--workdir", workdir)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == (
        "jaxresnet on cpu: 4 x cpu, float32; digits, 3 epochs of 1,442 images, 135 steps of 32"
    )
    return workdir


def contents(workdir: Path) -> tuple[Any, ...]:
    """All of a run's results that clock and machine have no part in."""
    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    checksums = json.loads((newest / "meta" / "metadata").read_text())["checksums"]
    state = {item: checksums[item] for item in ITEMS if item in checksums}
    return timeless_records(workdir), (workdir / "evaluation.json").read_text(), newest.name, state


def test_an_interrupted_and_killed_run_ends_bit_for_bit_like_an_uninterrupted_one(
    tmp_path: Path, tiny_toml: Path, uninterrupted: Path
):
    arguments = ("train", "--config", tiny_toml, "--workdir", tmp_path / "run")
    code, err = signal_command(signal.SIGINT, "epoch 1/3", *arguments)
    assert code == 130
    notice, saved = err.splitlines()
    assert notice == "stopping: saving first; a second signal ends the run at once, unsaved"
    assert saved.startswith("interrupted: saved at step")
    assert "run the same command again to resume" in err
    code, _ = signal_command(signal.SIGKILL, "epoch 2/3", *arguments)
    assert code == -signal.SIGKILL
    assert not (tmp_path / "run" / "evaluation.json").exists()
    code, out, err = run_command(*arguments)
    assert (code, err) == (0, "")
    assert "resuming at step" in out
    assert contents(tmp_path / "run") == contents(uninterrupted)


def test_evaluation_is_the_same_on_one_device_or_four_at_any_batch_size(uninterrupted: Path):
    trained = json.loads((uninterrupted / "evaluation.json").read_text())
    records = []
    for devices, size in ((1, 7), (4, 400)):
        flags = f"--xla_force_host_platform_device_count={devices}"
        code, out, err = run_command(
            "evaluate", "--workdir", uninterrupted, "--batch-size", size, XLA_FLAGS=flags
        )
        assert (code, err) == (0, "")
        records.append(json.loads((uninterrupted / "evaluation.json").read_text()))
        assert f"test accuracy {records[-1]['accuracy']:.2%}" in out
        for name, accuracy in records[-1]["per_class_accuracy"].items():
            assert f"  {name} {accuracy:>8.2%}" in out
    for record in records:
        assert record.pop("loss") == pytest.approx(trained["loss"], rel=1e-5)
        assert record == {key: value for key, value in trained.items() if key != "loss"}


def test_a_weights_file_evaluates_like_the_run_it_comes_from(uninterrupted: Path, tmp_path: Path):
    trained = load_run(uninterrupted, mesh=mesh_of(4))
    file, output = tmp_path / "weights.safetensors", tmp_path / "evaluation.json"
    save_weights(file, trained.plan, trained.variables)
    code, out, err = run_command("evaluate", file, "--output", output)
    assert (code, err) == (0, "")
    assert out.startswith("checkpoint weights.safetensors\ntest accuracy ")
    record = json.loads(output.read_text())
    expected = json.loads((uninterrupted / "evaluation.json").read_text())
    assert record.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-5)
    assert record == expected | {"checkpoint": "weights.safetensors", "step": None}
    code, _, err = run_command("evaluate", "--weights", file, "--workdir", uninterrupted)
    assert code == 2
    assert "not allowed with" in err


def test_evaluation_of_the_best_and_of_a_step(uninterrupted: Path):
    records = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    best = max(records, key=lambda record: record["test_accuracy"])
    code, out, _ = run_command("evaluate", uninterrupted, "--checkpoint", "best")
    found = json.loads((uninterrupted / "evaluation_best.json").read_text())
    assert code == 0
    assert "chosen on the test split" in out
    assert (found["checkpoint"], found["selected_on"]) == ("best", "test")
    assert found["accuracy"] == best["test_accuracy"]
    code, _, err = run_command("evaluate", "--workdir", uninterrupted, "--checkpoint", "7")
    assert code == 1
    assert "no checkpoint 7" in err
    assert "135" in err


@pytest.mark.parametrize("command", ["train", "evaluate", "summary", "report", "sweep"])
def test_help_is_answered_at_once(command: str):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, out, _ = run_command(command, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert code == 0
    assert f"usage: python -m jaxresnet.{command}" in out
    # Seconds of computing, a quarter at most; JAX, Flax and TensorFlow take seven. A busy machine makes it no more.
    assert after.ru_utime - before.ru_utime < 1.5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--epochs", "0"], 2, "epochs: expected greater than or equal to 1, found '0'"),
        (["train", "--epoch", "3"], 2, "did you mean --epochs?"),
        (["train", "--model.conv-bias", "false"], 2, "its opposite is --model.no-conv-bias"),
        (["train", "--config", "none.toml"], 2, "cannot read the configuration none.toml"),
        (["train", "--config", "ablation"], 2, "no configuration ablation: expected a TOML file, or one of "),
        (["train", "--data.name", "digit"], 2, "data.name: expected cifar10, digits, folder or "),
        (["summary", "--config", "{tmp}/mnist.toml"], 2, "/mnist.toml: data.name: expected cifar10, "),
        (["sweep", "--config", "{tmp}/mnist.toml"], 2, "/mnist.toml: data.name: expected cifar10, "),
        (["train", "--device", "tpu"], 2, "invalid choice: 'tpu'"),
        (
            ["train", "--device", "cuda", "--config", "{config}", "--workdir", "{tmp}/run"],
            1,
            "no cuda device",
        ),
        (
            ["train", "--config", "{config}", "--batch-size", "30", "--workdir", "{tmp}/run"],
            2,
            "multiple of the 4",
        ),
        (["train", "--workdir", "{tmp}/run"], 2, "no run in"),
        (["evaluate", "--workdir", "{tmp}/none"], 1, "no run in"),
        (["evaluate"], 2, "--workdir"),
        (
            ["evaluate", "--weights", "a", "--checkpoint", "best"],
            2,
            "--checkpoint: expected with the folder of a run",
        ),
        (
            ["evaluate", "{tmp}", "--workdir", "{tmp}"],
            2,
            "expected NETWORK, --workdir or --weights, found two of them",
        ),
        (
            ["evaluate", "{tmp}/x.safetensors"],
            1,
            "x.safetensors: expected the folder of a run",
        ),
        (["report"], 2, "expected the folder of a run, or of several, found none"),
        (["report", "--workdir", "{tmp}/a", "--workdir", "{tmp}/b"], 1, "/a"),
        (
            ["evaluate", "--workdir", "{tmp}", "--config", "digits"],
            2,
            "--config: expected with a file of weights",
        ),
        (["evaluate", "--workdir", "{tmp}", "--batch-size", "0"], 2, "expected at least 1, found 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_told_in_one_line(
    tmp_path: Path, tiny_toml: Path, arguments: list[str], code: int, message: str
):
    (tmp_path / "mnist.toml").write_text('data.name = "mnis"')
    command, *given = [argument.format(config=tiny_toml, tmp=tmp_path) for argument in arguments]
    environment = {} if "cuda" in given else {"JAX_PLATFORMS": "cpu"}
    found, _, err = run_command(command, *given, **environment)
    assert found == code
    assert message in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_weights_by_others_need_a_configuration(uninterrupted: Path, tmp_path: Path):
    network = load_run(uninterrupted, mesh=mesh_of(4))
    file, output = tmp_path / "theirs.safetensors", tmp_path / "evaluation.json"
    save_file(to_state_dict(network.variables), file)
    config = uninterrupted / "config.toml"
    code, _, err = run_command("evaluate", "--weights", file, "--config", config, "--output", output)
    assert (code, err) == (0, "")
    expected = json.loads((uninterrupted / "evaluation.json").read_text())["confusion_matrix"]
    assert json.loads(output.read_text())["confusion_matrix"] == expected


def test_a_shorter_run_than_the_one_that_is_there_is_refused(uninterrupted: Path):
    code, out, err = run_command("train", "--workdir", uninterrupted, "--epochs", "2")
    assert (code, out) == (2, "")
    assert "has trained for 3 epochs already, expected at least as many, found 2" in err


def test_the_default_folder_is_named_after_what_is_trained():
    assert default_name(Path("a/b.toml"), Config()) == "b"
    assert default_name(None, Config()) == "paper"
    assert default_name(None, Config().replace({"data.name": "digits"})) == "digits"
    assert default_name(None, Config().replace({"data.name": "digits", "init": "a"})) == "finetuned"
    assert default_name(Path("a/b.toml"), Config().replace({"init": "a"})) == "b"


def test_what_only_goes_on_with_a_run_needs_one(tmp_path: Path):
    """Else a mistyped folder would start the paper's recipe of forty epochs."""
    for given in ([], ["epochs", "checkpoint.every_minutes"]):
        with pytest.raises(
            UserError, match=f"no run in {tmp_path} to resume: to start one there, name a --config"
        ):
            own_config(tmp_path, given)
    assert own_config(tmp_path, ["epochs", "seed"]) is None
    (tmp_path / "config.toml").touch()
    assert own_config(tmp_path, []) == tmp_path / "config.toml"


def test_class_names_of_a_stranger_do_not_command_the_terminal():
    record = EvaluationRecord(
        "a\x07", 1, "test", None, 1, 0.5, 1.0, {"\x1b[2J": 1.0, "b": None}, [[1, 0], [0, 0]]
    )
    assert as_text(record).splitlines() == [
        "checkpoint a\\x07 (step 1)",
        "test accuracy 100.00% (95 % interval 20.65 to 100.00 %), loss 0.5000, 1 images",
        "  \\x1b[2J  100.00%",
        "  b              -",
    ]


def test_a_workdir_is_resumed_with_its_own_configuration(uninterrupted: Path):
    code, out, _ = run_command("train", "--workdir", uninterrupted)
    assert code == 0
    assert "last step 135" in out
    code, _, err = run_command("train", "--workdir", uninterrupted, "--seed", "5")
    assert code == 2
    assert err.startswith(f"error: {uninterrupted} holds a run of another configuration (seed was 0, is 5): ")


def test_summary_ends_with_the_total():
    code, out, _ = run_command("summary")
    assert code == 0
    assert out.splitlines()[-1] == "total parameters: 4,985,386"
    assert "stem_conv" in out


def test_shipped_configurations_are_known_by_name_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    by_path = run_command("summary", "--config", ROOT / "configs" / "digits.toml")
    monkeypatch.chdir(tmp_path)
    assert run_command("summary", "--config", "digits") == by_path
    code, out, err = by_path
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "total parameters: 80,766"
    assert list(tmp_path.iterdir()) == []


def test_a_run_keeps_the_number_of_cpu_devices_that_it_began_with(tmp_path: Path, tiny_toml: Path):
    arguments = ("train", "--config", tiny_toml, "--workdir", tmp_path, "--cpu-devices", 0, "--epochs")
    recorded, automatic = tmp_path / "config.toml", automatic_cpu_devices(32)
    code, out, err = run_command(*arguments, 1)
    assert (code, err) == (0, "")
    assert out.startswith(f"jaxresnet on cpu: {automatic} x cpu, ")
    assert load_config(recorded).cpu_devices == automatic
    # Also where that is not the number of cores, as on another machine, or by version 0.1, which took four.
    other = Config().replace({"cpu_devices": automatic + 1})
    assert chosen_cpu_devices(load_config(tiny_toml).replace({"cpu_devices": 0}), other) == automatic + 1
    assert chosen_cpu_devices(Config().replace({"cpu_devices": 3}), other) == 3
    assert chosen_cpu_devices(Config().replace({"batch_size": 32}), None) == automatic
    for settings, problem in (
        ({}, "batch_size: expected a multiple of the 3 processes, found 128"),
        (
            {"batch_size": 120, "cpu_devices": 2},
            "cpu_devices: expected a multiple of the 3 processes, found 2",
        ),
    ):
        with pytest.raises(UserError) as caught:
            chosen_cpu_devices(Config().replace(settings), other, processes=3)
        assert (str(caught.value), caught.value.exit_code) == (problem, 2)


def test_output_that_nobody_reads_any_more_ends_it_without_a_word():
    process = start_command("summary")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()  # as `| head` does
    with process.stderr as errors:
        assert errors.read() == ""
    assert process.wait() == 141  # 128 + SIGPIPE
