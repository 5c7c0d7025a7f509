"""An export takes its place only when it is complete and computes the same; where the network comes from."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from helpers import plan_of

from jaxresnet import export as command
from jaxresnet.data.splits import Split
from jaxresnet.errors import UserError
from jaxresnet.exporting import writing
from jaxresnet.exporting.origin import Origin, find_origin
from jaxresnet.exporting.request import Reader, Request
from jaxresnet.exporting.writing import FORMATS, compare, export, sample_images
from jaxresnet.runs.files import json_text
from jaxresnet.runs.records import InitialWeights, RunRecord, write_run
from jaxresnet.trained.load import TrainedNetwork, load_run
from jaxresnet.trained.weights import save_weights


def reader_of(outputs: np.ndarray) -> Reader:
    """A reader that gives these outputs, whatever the images."""
    rows = iter(outputs)
    return Reader(lambda images: np.array([next(rows) for _ in images]), "a test")


def test_what_computes_something_else_is_not_written(
    tmp_path: Path, make_request: Any, monkeypatch: pytest.MonkeyPatch
):
    def write(request: Request, path: Path) -> None:
        variables = jax.tree.map(np.copy, request.network.variables)
        variables["params"]["head"]["bias"][3] += 0.5
        save_weights(path, request.network.plan, variables)

    request: Request = make_request()
    export("safetensors", request, tmp_path / "a.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()
    wrong = dataclasses.replace(FORMATS["safetensors"], write=write)
    monkeypatch.setitem(FORMATS, "safetensors", wrong)
    for name in ("a", "b"):
        with pytest.raises(UserError, match=r"computes something else: expected logits .* found 5\.0e-01"):
            export("safetensors", request, tmp_path / f"{name}.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_the_class_may_change_only_between_equals(make_request: Any, monkeypatch: pytest.MonkeyPatch):
    request: Request = make_request()
    images, words = sample_images(request.network)
    assert (images.shape, words) == ((256, 8, 8, 3), "256 random images")
    assert np.ptp(images) == 255
    ours = np.zeros((256, 10), np.float32)
    ours[:, 0] = 1
    ours[0, 1] = 1 - 1e-5
    monkeypatch.setattr(Request, "outputs", property(lambda _: lambda _, images: reader.outputs(images)))
    reader = reader_of(ours)
    theirs = ours.copy()
    theirs[0, 1] += 2e-5
    found = compare(request, reader_of(theirs))
    assert (found.same, found.examples, found.allowed) == (255, 256, 1e-4)
    assert found.largest == pytest.approx(2e-5, rel=0.01)
    for column, value in ((1, 1e-3), (0, np.nan)):
        reader, theirs = reader_of(ours), ours.copy()
        theirs[7, column] += value
        with pytest.raises(UserError, match="computes something else"):
            compare(request, reader_of(theirs))


def test_a_folder_of_someone_else_is_refused(tmp_path: Path, make_request: Any):
    request: Request = make_request()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match="expected a new or empty folder"):
        export("huggingface", request, tmp_path / "theirs")
    clone = tmp_path / "clone"
    (clone / ".git").mkdir(parents=True)
    for _ in range(2):
        export("huggingface", request, clone)
        (clone / "notes.txt").write_text("mine")
    assert sorted(path.name for path in clone.iterdir()) == [
        ".git", "README.md", "config.json", "model.safetensors", "notes.txt"
    ]  # fmt: skip
    with pytest.raises(UserError, match="expected a folder, found a file"):
        export("huggingface", request, clone / "notes.txt")
    with pytest.raises(UserError, match="expected a file, found a folder"):
        export("safetensors", request, clone)
    with pytest.raises(UserError, match=r"cannot write .*: No such file or directory"):
        export("safetensors", request, tmp_path / "none" / "a.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clone", "theirs"]


@pytest.fixture(scope="module")
def trained(finished: Path) -> TrainedNetwork:
    return load_run(finished)


def test_a_runs_accuracy_is_that_of_the_step(tmp_path: Path, finished: Path, trained: TrainedNetwork):
    record = json.loads((finished / "evaluation.json").read_text())
    found = find_origin(finished, trained)
    assert (found.checkpoint, found.step, found.split, found.examples) == ("latest", 24, "test", 355)
    assert (found.accuracy, found.per_class_accuracy) == (record["accuracy"], record["per_class_accuracy"])
    # A record of another step is not this network's. Its epoch's is.
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "evaluation.json").write_text(json_text(record | {"step": 12, "accuracy": 0.01}))
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    frozen = dataclasses.replace(trained, plan=plan_of(trained.config, {"freeze_stages": 1, "init": "x"}))
    found = find_origin(tmp_path / "run", trained)
    assert (found.accuracy, found.split, found.examples) == (lines[1]["test_accuracy"], "test", None)
    assert find_origin(tmp_path / "run", dataclasses.replace(trained, step=5)).accuracy is None
    assert (found.initial, found.frozen_stages) == (None, None)
    assert find_origin(tmp_path / "run", frozen).frozen_stages is None  # of random weights
    initial = InitialWeights("/home/theirs/letters.safetensors", None, "0", head=True)
    write_run(tmp_path / "run" / "run.json", RunRecord("id", initial))
    found = find_origin(tmp_path / "run", frozen)
    assert (found.initial, found.frozen_stages) == ("letters.safetensors", 1)


def test_all_programs_that_trained_a_run_are_told(tmp_path: Path, finished: Path, trained: TrainedNetwork):
    shutil.copytree(finished, tmp_path / "run")
    [start] = json.loads((finished / "environment.json").read_text())

    def found(*starts: tuple[str | None, str, bool | None]) -> tuple[str | None, str | None, bool | None]:
        made = [
            start
            | {
                "versions": {"jaxresnet": version} if version else {},
                "git": {"commit": commit, "dirty": dirty},
            }
            for version, commit, dirty in starts
        ]
        (tmp_path / "run" / "environment.json").write_text(json_text(made))
        origin = find_origin(tmp_path / "run", trained)
        return origin.version, origin.commit, origin.dirty

    assert found() == (None, None, None)
    assert found(("0.1.0", "a", False), ("0.1.0", "a", False)) == ("0.1.0", "a", False)
    assert found(("0.1.0", "a", True), ("0.2.0", "b", False)) == ("0.1.0 and 0.2.0", "a and b", True)
    assert found((None, "a", None), ("0.2.0", "b", False)) == (None, "a and b", None)


def test_a_file_that_was_rounded_says_so_again(tmp_path: Path, make_request: Any):
    """Its accuracy is that of the network before it was rounded, whatever it is exported to then."""
    network = make_request().network
    paths = half, again, whole = [tmp_path / f"{name}.safetensors" for name in ("half", "again", "whole")]
    save_weights(half, network.plan, network.variables, half=True)
    export("safetensors", Request(network, find_origin(half, network)), again)
    save_weights(whole, network.plan, network.variables)
    assert [find_origin(path, network).half for path in paths] == [True, True, False]


def test_a_damaged_origin_is_named(tmp_path: Path, make_request: Any):
    network = make_request().network
    path = tmp_path / "a.safetensors"
    save_weights(path, network.plan, network.variables, notes={"origin": '{"accuracy": 2}'})
    with pytest.raises(UserError, match=r"a\.safetensors: origin: expected the origin of a network"):
        find_origin(path, network)
    save_weights(path, network.plan, network.variables)
    assert find_origin(path, network) == Origin()


def test_the_command_exports_a_run(tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]):
    assert list(command.FORMATS) == list(FORMATS)
    path = tmp_path / "digits.safetensors"
    command.main([str(finished), str(path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "compared on 256 test images of digits (jaxresnet.load): the logits differ by at most 0.0"
    )
    assert lines[0].endswith("the class is the same for 256 of 256")
    assert lines[1:] == [f"written: {path} ({path.stat().st_size:,} bytes)"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["a"], "--format: expected one of safetensors, stablehlo, onnx, timm, huggingface, found none"),
        (
            ["a.safetensors", "--probabilities"],
            "--probabilities: expected with --format stablehlo or onnx, found with",
        ),
        (
            ["a.onnx", "--dtype", "float16"],
            "--dtype float16: expected with --format safetensors or huggingface",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: list[str], problem: str):
    with pytest.raises(UserError) as caught:
        command.main(["runs/none", *arguments])
    assert str(caught.value).startswith(problem)
    assert caught.value.exit_code == 2


def test_images_of_the_data_set_are_taken_if_they_fit(
    trained: TrainedNetwork, monkeypatch: pytest.MonkeyPatch
):
    images, words = sample_images(trained)
    assert (images.shape, words) == ((writing.IMAGES, 32, 32, 3), "256 test images of digits")
    info = dataclasses.replace(trained.info, class_names=tuple("abcdefghij"))
    other = dataclasses.replace(trained, plan=dataclasses.replace(trained.plan, info=info))
    assert sample_images(other)[1] == "256 random images"
    for short in (Split(images[:200], np.zeros(200, np.int32)), PermissionError()):
        with monkeypatch.context() as patch:
            patch.setattr(writing, "load_split", Mock(side_effect=[short]))
            assert sample_images(trained)[1] == "256 random images"
    for side, batch, number in ((64, 64, 256), (224, 5, 255), (4096, 1, 5)):
        info = dataclasses.replace(trained.info, image_shape=(side, side, 3))
        other = dataclasses.replace(trained, plan=dataclasses.replace(trained.plan, info=info))
        assert (writing.batch_of(other), sample_images(other)[1]) == (batch, f"{number} random images")
