"""Reports of real runs: what stands in the page is what the run's files and its network say."""

import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxresnet.comparison import group_runs, read_runs
from jaxresnet.config import Config, dump_config
from jaxresnet.figures import curves, image_grid, render
from jaxresnet.loop import fit
from jaxresnet.report import write_report

PICTURES = {
    "training_images.png",
    "augmented_images.png",
    "architecture.png",
    "loss.png",
    "accuracy.png",
    "learning_rate.png",
    "confusion.png",
    "mistakes.png",
}


class Addresses(HTMLParser):
    """Collects whatever a page would load or lead to."""

    def __init__(self, page: Path):
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "srcset", "href", "data") and value]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_config: Config) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    fit(tiny_config, workdir, "cpu")
    return workdir


@pytest.fixture(scope="module")
def page(finished: Path) -> Path:
    return write_report([finished])


def rows(markdown: str) -> dict[str, list[str]]:
    """Table rows by their first cell."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if "|" in line
    ]
    return {first: rest for first, *rest in cells}


def test_a_finished_run(finished: Path, page: Path):
    assert page == finished / "report" / "index.html"
    assert {path.name for path in page.parent.iterdir()} == PICTURES | {"index.html", "report.md"}
    addresses = Addresses(page).found
    assert len(addresses) == 2 * len(PICTURES)  # each light and dark
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "://" not in re.sub(r"base64,[^\"]*", "", page.read_text(encoding="utf-8"))
    evaluation = json.loads((finished / "evaluation.json").read_text())
    table = rows((page.parent / "report.md").read_text(encoding="utf-8"))
    for name, accuracy in evaluation["per_class_accuracy"].items():
        assert table[name] == [f"{accuracy:.2%}"]
    assert table["model.stem_channels"] == ["64", "4"]
    assert f"<b>{evaluation['accuracy']:.2%}</b>" in page.read_text(encoding="utf-8")


def test_without_evaluation_json_the_checkpoint_is_evaluated(finished: Path, page: Path, tmp_path: Path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "evaluation.json").unlink()
    with_file = (page.parent / "report.md").read_text(encoding="utf-8")
    without = (write_report([tmp_path / "run"]).parent / "report.md").read_text(encoding="utf-8")
    assert without == with_file.replace("# tiny\n", "# run\n", 1)


def test_without_checkpoints_the_files_are_shown(finished: Path, tmp_path: Path):
    for name in ("config.toml", "metrics.jsonl", "evaluation.json"):
        shutil.copy(finished / name, tmp_path)
    page = write_report([tmp_path], tmp_path / "elsewhere")
    assert {path.name for path in page.parent.glob("*.png")} == PICTURES - {"mistakes.png"}
    assert "Mistakes not shown: no checkpoint" in page.read_text(encoding="utf-8")


def test_a_run_that_has_only_begun(tmp_path: Path, tiny_config: Config):
    (tmp_path / "config.toml").write_text(dump_config(tiny_config))
    page = write_report([tmp_path])
    text = page.read_text(encoding="utf-8")
    assert "No epoch is finished yet." in text
    assert "Not evaluated: no checkpoint" in text
    assert {path.name for path in page.parent.glob("*.png")} == {
        "training_images.png",
        "augmented_images.png",
        "architecture.png",
    }


def test_the_papers_column_stands_beside_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    monkeypatch.setattr("jaxresnet.data.PROBE_SECONDS", 0.1)
    results = Path(__file__).parent.parent / "results" / "paper_one_epoch_cpu"
    page = write_report([results], tmp_path / "report")
    table = rows((page.parent / "report.md").read_text(encoding="utf-8"))
    evaluation = json.loads((results / "evaluation.json").read_text())
    assert table["class"] == ["test accuracy", "paper"]
    assert table["mean"] == [f"{evaluation['accuracy']:.2%}", "90.75%"]
    assert table["classes above 90 %"] == ["0", "7"]
    assert "Not shown: cannot download CIFAR-10" in page.read_text(encoding="utf-8")


def test_several_runs_are_compared(finished: Path, tmp_path: Path, tiny_config: Config):
    shutil.copytree(finished, tmp_path / "a" / "seed0")
    other = tmp_path / "a" / "seed1"
    other.mkdir()
    (other / "config.toml").write_text(dump_config(tiny_config.model_copy(update={"seed": 1})))
    shutil.copy(finished / "metrics.jsonl", other)
    third = tmp_path / "b"
    third.mkdir()
    (third / "config.toml").write_text(dump_config(tiny_config.model_copy(update={"batch_size": 16})))
    page = write_report([tmp_path / "a" / "seed0", other, third])
    assert page.parent == tmp_path / "report"
    table = rows((page.parent / "report.md").read_text(encoding="utf-8"))
    assert table["a"][:3] == ["2", "2", "test"]
    assert table["b"][:2] == ["1", "0-0 of 2"]
    assert table["batch_size"] == ["8", "16"]
    assert {path.name for path in page.parent.glob("*.png")} == {
        "loss.png",
        "accuracy.png",
        "learning_rate.png",
    }


def test_curves_draw_the_files_values(finished: Path):
    groups = group_runs(read_runs([finished]))
    figure = curves(groups, {"train_accuracy": "training", "test_accuracy": "test"}, "accuracy (%)", 100)
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for line, key in zip(figure.axes[0].lines, ("train_accuracy", "test_accuracy"), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [1, 2])
        np.testing.assert_allclose(line.get_ydata(), [100 * record[key] for record in records])


def test_pictures_are_dark_on_dark_pages():
    image = np.zeros((1, 4, 4, 3), np.uint8)
    corners = []
    for dark in (False, True):
        png = Image.open(io.BytesIO(render(lambda: image_grid(image, ["black"]), dark=dark)))
        corners.append(png.convert("L").getpixel((0, 0)))
    assert corners[0] == 255
    assert corners[1] < 40
