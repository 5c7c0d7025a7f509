"""What the README shows is true: its commands are run, the long ones up to where the training would begin."""

import importlib
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import ROOT, mesh_of
from PIL import Image

from jaxresnet import demo, fit, sweep
from jaxresnet.config.schema import Config
from jaxresnet.machine import devices

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The README's blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


COMMANDS = [
    line.partition("-m jaxresnet.")[2]
    for line in "\n".join(blocks("bash")).splitlines()
    if "-m jaxresnet." in line
]


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with what the README's commands name: a run in runs/digits, pictures, and the configurations."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "runs/digits")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    animals = [f"DIR/{animal}/{number}.png" for animal in ("cat", "dog") for number in range(100)]
    for name in ("photo.jpg", "pictures/a.png", "scans/1/b.png", *animals):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 40), 40).convert("RGB").save(name)
    return tmp_path


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What commands that take long were about to begin with; they do not."""
    found: list[Any] = []
    monkeypatch.setattr(fit, "fit", lambda config, *_: found.append(config))
    monkeypatch.setattr(devices, "start_devices", lambda device, count: mesh_of(1))
    monkeypatch.setattr(sweep, "sweep", lambda *given: found.append(sweep.planned_runs(*given[:4])))
    monkeypatch.setattr(demo, "demo_command", found.append)
    return found


def test_the_readme_has_a_command_for_each_purpose():
    shown = {command.split()[0] for command in COMMANDS}
    assert shown == {"train", "evaluate", "predict", "export", "demo", "summary", "report", "sweep"}


@pytest.mark.parametrize(
    "command", [each for each in COMMANDS if each.split()[0] in ("train", "sweep", "demo")]
)
def test_a_long_command_would_begin(command: str, place: Path, begun: list[Any]):
    if command.startswith("train"):
        shutil.rmtree("runs")
    if command.startswith("demo"):
        pytest.importorskip("gradio")
    name, *arguments = (
        each
        for word in shlex.split(command)
        for each in (sorted(map(str, Path().glob(word))) if "*" in word else [word])  # as the shell does
    )
    importlib.import_module(f"jaxresnet.{name}").main(arguments)
    (what,) = begun
    if name == "train":
        expected = {"digits": "digits", "folder": "folder", "paper": "cifar10"}
        assert isinstance(what, Config)
        assert what.data.name == expected[arguments[1]]
    elif name == "sweep":
        assert len(what) == 3 * (1 + len(list((ROOT / "configs" / "ablations").glob("*.toml"))))
    else:
        assert what.network == "runs/digits"


@pytest.mark.parametrize(
    "command", [each for each in COMMANDS if each.split()[0] not in ("train", "sweep", "demo")]
)
def test_a_command_does_what_the_readme_says(
    command: str, place: Path, capsys: pytest.CaptureFixture[str], finished: Path
):
    name, *arguments = shlex.split(command)
    if name == "export":
        pytest.importorskip("onnxruntime")
    importlib.import_module(f"jaxresnet.{name}").main(arguments)
    said = capsys.readouterr().out
    expected = {
        "evaluate": "written to runs/digits/evaluation_best.json",
        "summary": "total parameters: 80,766",
        "report": "runs/digits/report/index.html",
        "predict": '"file": "scans/1/b.png"',
        "export": "digits.onnx",
    }
    assert expected[name] in said


def test_the_python_code_runs(place: Path):
    """The block that loads a network, the one that saves its weights, and the one that runs exports of it."""
    names: dict[str, Any] = {}
    loads, saves = (
        next(each for each in blocks("python") if word in each)
        for word in ("jaxresnet.load(", "save_weights(")
    )
    exec(loads, names)
    assert names["logits"].shape == (4, 10)
    np.testing.assert_allclose(names["probabilities"].sum(1), 1, rtol=1e-5)
    exec(saves, names)
    assert Path("weights.safetensors").is_file()
    names["onnxruntime"] = pytest.importorskip("onnxruntime")
    names["jax"] = jax
    for name in ("digits.onnx", "digits.stablehlo"):
        importlib.import_module("jaxresnet.export").main(["runs/digits", name, "--checkpoint", "best"])
    for line in next(each for each in blocks("python") if "onnxruntime" in each).splitlines():
        exec(line, names)
        if line.startswith(("logits", "(logits")):
            np.testing.assert_allclose(
                names["logits"], names["network"].predict(names["images"]), rtol=1e-4, atol=1e-4
            )
