"""What each format holds, read by other means than the export's own, and what its program computes."""

import dataclasses
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import jaxresnet
from jaxresnet.errors import UserError
from jaxresnet.exporting import huggingface, onnx_graph, timm_resnet
from jaxresnet.exporting.origin import Origin, find_origin
from jaxresnet.exporting.request import Request
from jaxresnet.exporting.writing import export
from jaxresnet.trained.weights import to_state_dict

ORIGIN = Origin(
    "best", 7, "validation", False, "test", 0.75, 4, {"a|b": 1.0, "c": None}, "0.2.0", "abc", True
)

FOUR_STAGES = {
    "model.stem_channels": 64,
    "model.stage_blocks": (1, 2, 1, 1),
    "model.stage_channels": (64, 4, 5, 6),
    "model.stage_strides": (1, 2, 2, 2),
}
"""As timm has it."""


def assert_close(found: Any, expected: Any) -> None:
    """Equal up to the rounding of float32."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(
    ("conv_bias", "grey", "output"), [(True, False, "logits"), (False, True, "probabilities")]
)
def test_onnxruntime_computes_the_same(
    tmp_path: Path, make_request: Any, images: np.ndarray, conv_bias: bool, grey: bool, output: str
):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    request: Request = make_request(
        {"model.conv_bias": conv_bias}, grey=grey, origin=ORIGIN, probabilities=output == "probabilities"
    )
    images = images[..., :1] if grey else images
    export("onnx", request, tmp_path / "network.onnx")
    session = runtime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (inputs,), (outputs,) = session.get_inputs(), session.get_outputs()
    assert (inputs.name, inputs.type, inputs.shape) == (
        "images", "tensor(uint8)", ["batch", 8, 8, 1 if grey else 3]
    )  # fmt: skip
    assert (outputs.name, outputs.type, outputs.shape) == (output, "tensor(float)", ["batch", 10])
    network = request.network
    expected = np.asarray((network.predict if output == "logits" else network.probabilities)(images))
    for count in (1, 5):
        assert_close(session.run(None, {"images": images[:count]})[0], expected[:count])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == list("abcdefghij")
    assert json.loads(metadata["mean"]) == ([0.5] if grey else [0.5, 0.25, 0.125])
    assert json.loads(metadata["origin"])["accuracy"] == 0.75
    assert f"conv_bias = {str(conv_bias).lower()}\n" in metadata["config"]
    assert "/data" not in metadata["config"]


PLAIN_JAX = """
import sys
import jax, numpy
from jax import export
program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
numpy.save(sys.argv[2], program.call(numpy.load(sys.argv[3])))
assert "flax" not in sys.modules and "jaxresnet" not in sys.modules
print(*program.platforms)
"""


def test_plain_jax_runs_the_program(tmp_path: Path, make_request: Any, images: np.ndarray):
    request: Request = make_request({"precision": "bfloat16"}, origin=ORIGIN)
    path = tmp_path / "network.stablehlo"
    export("stablehlo", request, path)
    np.save(tmp_path / "images.npy", images)
    files = (path, tmp_path / "logits.npy", tmp_path / "images.npy")
    found = subprocess.run(
        [sys.executable, "-c", PLAIN_JAX, *files], capture_output=True, text=True, check=True
    )
    assert found.stdout == "cpu cuda tpu\n"
    assert_close(np.load(tmp_path / "logits.npy"), request.exact.predict(images))  # in float32
    metadata = json.loads((tmp_path / "network.stablehlo.json").read_text())
    assert metadata["input"] == {"name": "images", "dtype": "uint8", "shape": ["batch", 8, 8, 3]}
    assert metadata["output"] == {"name": "logits", "dtype": "float32", "shape": ["batch", 10]}
    assert metadata["std"] == [0.25, 0.5, 0.125]
    assert metadata["origin"] == {
        "checkpoint": "best", "step": 7, "selected_on": "validation", "average": False, "split": "test",
        "accuracy": 0.75, "examples": 4, "per_class_accuracy": {"a|b": 1.0, "c": None}, "version": "0.2.0",
        "commit": "abc", "dirty": True, "half": False,
    }  # fmt: skip


def test_half_of_a_safetensors_file_is_enough(tmp_path: Path, make_request: Any):
    request: Request = make_request(origin=ORIGIN, half=True)
    path = tmp_path / "half.safetensors"
    comparison, _ = export("safetensors", request, path)
    assert 0 < comparison.largest < comparison.allowed
    arrays, whole = load_file(path), to_state_dict(request.network.variables)
    assert {name for name, array in arrays.items() if array.dtype == np.float16} == {
        "conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight", "layer2.0.conv1.weight", "linear.weight",
        "layer2.0.conv2.weight", "layer2.0.shortcut.0.weight",
    }  # fmt: skip
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, whole[name].astype(array.dtype))
    loaded = jaxresnet.load(path)
    assert loaded.config == request.network.config.replace({"data.dir": ""})
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {np.dtype(np.float32)}
    assert find_origin(path, loaded) == dataclasses.replace(ORIGIN, half=True)


def test_timms_arrays_and_loader(tmp_path: Path, make_request: Any):
    request: Request = make_request(FOUR_STAGES, origin=ORIGIN)
    comparison, written = export("timm", request, tmp_path / "network.safetensors")
    assert [path.name for path in written] == ["network.safetensors", "network_timm.py"]
    _, (_, strange) = export("timm", request, tmp_path / 'x""".safetensors')
    compile(strange.read_text(), str(strange), "exec")
    assert comparison.largest < comparison.allowed / 10
    with safe_open(written[0], framework="numpy") as file:
        assert file.metadata()["format"] == "pt"
        assert json.loads(file.metadata()["class_names"]) == list("abcdefghij")
    found, ours = load_file(written[0]), to_state_dict(request.network.variables)
    assert {name for name in found if not name.startswith("layer")} == {
        "conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var", "fc.weight", "fc.bias",
    }  # fmt: skip
    np.testing.assert_array_equal(found["fc.weight"], ours["linear.weight"])
    np.testing.assert_array_equal(found["layer2.0.downsample.0.weight"], ours["layer2.0.shortcut.0.weight"])
    for theirs, norm, conv in (
        ("bn1", "bn1", "conv1"),
        ("layer2.1.bn2", "layer2.1.bn2", "layer2.1.conv2"),
        ("layer2.0.downsample.1", "layer2.0.shortcut.1", "layer2.0.shortcut.0"),
    ):
        expected = ours[f"{norm}.running_mean"] - ours[f"{conv}.bias"]
        np.testing.assert_array_equal(found[f"{theirs}.running_mean"], expected)
    program = written[1].read_text()
    compile(program, "loader", "exec")
    assert (
        'timm.create_model(\n        "resnet18", layers=(1, 2, 1, 1), channels=(64, 4, 5, 6), num_classes=10'
        in program
    )
    assert "torch.nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)" in program
    assert "model.maxpool = torch.nn.Identity()" in program


def test_timm_computes_the_logits(tmp_path: Path, make_request: Any, images: np.ndarray):
    pytest.importorskip("timm", reason="timm is not installed")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    request: Request = make_request(FOUR_STAGES)
    comparison, written = export("timm", request, tmp_path / "a network.safetensors")
    assert comparison.by.startswith("timm ")
    loader = runpy.run_path(str(written[1]))
    with torch.inference_mode():
        found = loader["load"]()(loader["preprocess"](torch.from_numpy(images)))
    assert_close(found.numpy(), request.network.predict(images))


def test_a_network_that_timm_has_not_is_refused(tmp_path: Path, make_request: Any):
    with pytest.raises(UserError) as caught:
        export("timm", make_request(), tmp_path / "network.safetensors")
    assert caught.value.exit_code == 2
    assert str(caught.value).splitlines() == [
        "--format timm: model.stage_strides: timm's ResNet has (1, 2, 2, 2), found (1, 2): choose another format",
        "--format timm: model.stem_channels: timm's ResNet has 64, found 4: choose another format",
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_folder_for_the_hub(tmp_path: Path, make_request: Any, images: np.ndarray):
    request: Request = make_request(origin=ORIGIN)
    out = tmp_path / "my *net*"
    _, written = export("huggingface", request, out)
    assert [path.name for path in written] == ["README.md", "config.json", "model.safetensors"]
    loaded = jaxresnet.load(out)
    assert loaded.info == request.network.info
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, request.network.variables)
    config = json.loads((out / "config.json").read_text())
    assert (config["image_size"], config["num_channels"], config["image_mean"]) == (8, 3, [0.5, 0.25, 0.125])
    assert (config["id2label"]["9"], config["label2id"]["b"]) == ("j", 1)
    assert (config["settings"]["model"]["stem_channels"], config["settings"]["data"]["dir"]) == (4, "")
    _, matter, card = (out / "README.md").read_text().split("---\n", 2)
    values = {key: json.loads(text) for key, text in (line.split(": ", 1) for line in matter.splitlines())}
    assert (values["library_name"], values["pipeline_tag"]) == ("jaxresnet", "image-classification")
    (result,) = values["model-index"][0]["results"]
    assert result["dataset"] == {"name": "others", "type": "others", "split": "test"}
    assert result["metrics"] == [{"type": "accuracy", "value": 0.75}]
    assert "# my \\*net\\*\n" in card
    assert (
        "75.00% on the test split, 4 images, 95 % interval 30.06 to 95.44 %. The checkpoint is the best "
        "of its run on the validation split.\n" in card
    )
    assert "| a\\|b | 100.00% |\n| c | - |\n" in card
    assert "of jaxresnet 0.2.0, commit abc with changes, with" in card
    assert "/data" not in card
    assert "license" not in values  # whose weights these are is not known
    assert "began with" not in card
    assert "It was trained and measured on images of 8 x 8 pixels of that data set; on others" in card
    assert "float16" not in card


def test_a_card_says_what_was_frozen_rounded_and_not_measured(make_request: Any):
    sizes = {"resolution.sizes": (4,), "resolution.shares": (0.5,)}
    origin = Origin(step=7, initial="letters", frozen_stages=1)
    card = huggingface.model_card(make_request(sizes, origin=origin), "a", "Use it.")
    assert "with the weights of letters. The stem and the first 1 of its stages kept these weights.\n" in card
    assert "## Accuracy\n\nIt was not measured.\n" in card
    assert "It was trained on images of 8 x 8 pixels of that data set, at first on smaller ones; on" in card
    card = huggingface.model_card(make_request(origin=Origin(accuracy=0.5, half=True)), "a", "Use it.")
    assert "It was measured before the kernels were rounded to float16.\n" in card


def test_a_card_claims_no_training_that_is_not_known(make_request: Any):
    card = huggingface.model_card(make_request(), "a", "Use it.")
    assert "It is not known how it was trained. This configuration describes the network.\n" in card
    assert "jaxresnet.train" not in card
    assert card.endswith("On images unlike those that it was trained on it may be much less accurate.\n")


def test_a_card_of_a_strangers_names_stays_a_card(make_request: Any):
    names = ("x\n---\n<script>", "[a](http://b)", "\x1b[2J`'\"", *"defghij")
    request: Request = make_request(
        origin=Origin(
            step=7,
            selected_on="test\n---",
            split="test\n---",
            accuracy=0.5,
            per_class_accuracy=dict.fromkeys(names, 1.0),
            initial="[c](d)",
        )
    )
    card = huggingface.model_card(request, 'a"\n---\nb: c\udcff', "Use it.", ["As measured."], "mit")
    assert card.split("\n").count("---") == 2
    assert card.startswith('---\nlicense: "mit"\n')
    assert card.endswith("## Licence\n\nMIT, as the package. It is of the weights, not of the data.\n")
    assert "split, so this accuracy is optimistic.\n" in card
    assert "\n\nAs measured.\n\n## Training" in card
    assert "began with the weights of \\[c\\](d)." in card
    assert not set(card) & {"<", "\x1b", "\udcff"}
    assert "\\[a\\](http:\\//b)" in card


def test_a_package_that_is_missing_is_named(
    tmp_path: Path, make_request: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'jaxresnet\[onnx\]'$") as caught:
        onnx_graph.write(make_request(), tmp_path / "a.onnx")
    assert caught.value.exit_code == 1
    request: Request = make_request(FOUR_STAGES)
    timm_resnet.write(request, tmp_path / "a.safetensors")
    assert (
        "timm itself was not run: import of timm halted"
        in timm_resnet.read(request, tmp_path / "a.safetensors").by
    )
