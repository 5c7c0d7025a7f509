"""The commands as a user meets them, in fresh processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import mesh_of

from jaxresnet.inference import load_run
from jaxresnet.weights import save_weights

TINY = """
epochs = 3
batch_size = 32
[model]
stem_kernel = 3
stem_channels = 4
stage_blocks = [1, 1]
stage_channels = [4, 6]
stage_strides = [1, 2]
[data]
name = "digits"
[augment]
horizontal_flip = false
"""


def start(command: str, *arguments: object, **environment: str) -> subprocess.Popen:
    inherited = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return subprocess.Popen(
        [sys.executable, "-m", f"jaxresnet.{command}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=inherited | environment,
    )


def run(command: str, *arguments: object, **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    process = start(command, *arguments, **environment)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def uninterrupted(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    code, out, err = run("train", "--config", config, "--workdir", workdir)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == (
        "jaxresnet on cpu: 4 x cpu, float32; digits, 3 epochs of 1,442 images, 135 steps of 32"
    )
    return workdir


def contents(workdir: Path) -> tuple:
    """All of a run's results that clock and machine have no part in."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    records = [{key: value for key, value in record.items() if "second" not in key} for record in records]
    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    checksums = (newest / "meta" / "metadata").read_text()
    return records, (workdir / "evaluation.json").read_text(), newest.name, checksums


def interrupt(number: signal.Signals, after: str, arguments: tuple) -> tuple[int, str]:
    """Start a run and send a signal as soon as it has printed a line that begins with `after`."""
    process = start(*arguments)
    for line in process.stdout:
        if line.startswith(after):
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_an_interrupted_and_killed_run_ends_bit_for_bit_like_an_uninterrupted_one(
    tmp_path: Path, config: Path, uninterrupted: Path
):
    arguments = ("train", "--config", config, "--workdir", tmp_path / "run")
    code, err = interrupt(signal.SIGINT, "epoch 1/3", arguments)
    assert code == 130
    assert len(err.splitlines()) == 1
    assert "interrupted: saved at step" in err
    assert "run the same command again to resume" in err
    code, _ = interrupt(signal.SIGKILL, "epoch 2/3", arguments)
    assert code == -signal.SIGKILL
    assert not (tmp_path / "run" / "evaluation.json").exists()
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    assert "resuming at step" in out
    assert contents(tmp_path / "run") == contents(uninterrupted)


def test_evaluation_is_the_same_on_one_device_or_four_at_any_batch_size(uninterrupted: Path):
    trained = json.loads((uninterrupted / "evaluation.json").read_text())
    records = []
    for devices, size in ((1, 7), (4, 400)):
        flags = f"--xla_force_host_platform_device_count={devices}"
        code, out, err = run("evaluate", "--workdir", uninterrupted, "--batch-size", size, XLA_FLAGS=flags)
        assert (code, err) == (0, "")
        records.append(json.loads((uninterrupted / "evaluation.json").read_text()))
        assert f"test accuracy {records[-1]['accuracy']:.2%}" in out
        for name, accuracy in records[-1]["per_class_accuracy"].items():
            assert f"  {name} {accuracy:>8.2%}" in out
    for record in records:
        assert record.pop("loss") == pytest.approx(trained["loss"], rel=1e-5)
        assert record == {key: value for key, value in trained.items() if key != "loss"}


def test_a_weights_file_evaluates_like_the_run_it_comes_from(uninterrupted: Path, tmp_path: Path):
    trained = load_run(uninterrupted, mesh_of(4))
    file, output = tmp_path / "weights.safetensors", tmp_path / "evaluation.json"
    save_weights(file, trained.config, trained.variables)
    code, out, err = run("evaluate", "--weights", file, "--output", output)
    assert (code, err) == (0, "")
    assert out.startswith("checkpoint weights.safetensors\ntest accuracy ")
    record = json.loads(output.read_text())
    expected = json.loads((uninterrupted / "evaluation.json").read_text())
    assert record.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-5)
    assert record == expected | {"checkpoint": "weights.safetensors", "step": None}
    code, _, err = run("evaluate", "--weights", file, "--workdir", uninterrupted)
    assert code == 2
    assert "not allowed with" in err


def test_evaluation_of_the_best_and_of_a_step(uninterrupted: Path):
    records = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    best = max(records, key=lambda record: record["test_accuracy"])
    code, out, _ = run("evaluate", "--workdir", uninterrupted, "--checkpoint", "best")
    found = json.loads((uninterrupted / "evaluation_best.json").read_text())
    assert code == 0
    assert "chosen on the test split" in out
    assert (found["checkpoint"], found["selected_on"]) == ("best", "test")
    assert found["accuracy"] == best["test_accuracy"]
    code, _, err = run("evaluate", "--workdir", uninterrupted, "--checkpoint", "7")
    assert code == 1
    assert "no checkpoint 7" in err
    assert "135" in err


@pytest.mark.parametrize("command", ["train", "evaluate", "summary", "report", "sweep"])
def test_help_is_answered_at_once(command: str):
    began = time.monotonic()
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"usage: python -m jaxresnet.{command}" in out
    assert time.monotonic() - began < 3  # a second on an idle machine; JAX and TensorFlow take ten


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--epochs", "0"], 2, "epochs: expected greater than or equal to 1, found '0'"),
        (["train", "--epoch", "3"], 2, "did you mean --epochs?"),
        (["train", "--model.conv-bias", "false"], 2, "its opposite is --model.no-conv-bias"),
        (["train", "--config", "none.toml"], 2, "cannot read the configuration none.toml"),
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
        (["evaluate", "--workdir", "{tmp}/none"], 1, "no run in"),
        (["evaluate"], 2, "--workdir"),
        (["evaluate", "--workdir", "{tmp}", "--batch-size", "0"], 2, "expected at least 1, found 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_told_in_one_line(tmp_path: Path, config: Path, arguments, code: int, message: str):
    arguments = [argument.format(config=config, tmp=tmp_path) for argument in arguments]
    environment = {} if "cuda" in arguments else {"JAX_PLATFORMS": "cpu"}
    found, _, err = run(*arguments, **environment)
    assert found == code
    assert message in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_workdir_is_resumed_with_its_own_configuration(uninterrupted: Path, config: Path):
    code, out, _ = run("train", "--workdir", uninterrupted)
    assert code == 0
    assert "last step 135" in out
    code, _, err = run("train", "--workdir", uninterrupted, "--seed", "5")
    assert code == 2
    assert "seed was 0, is 5" in err


def test_summary_ends_with_the_total():
    code, out, _ = run("summary")
    assert code == 0
    assert out.splitlines()[-1] == "total parameters: 4,985,386"
    assert "stem_conv" in out


def test_output_that_nobody_reads_any_more_ends_it_without_a_word():
    process = start("summary")
    process.stdout.close()  # as `| head` does
    with process.stderr as errors:
        assert errors.read() == ""
    assert process.wait() == 141  # 128 + SIGPIPE
