"""Reports of real runs: what stands in the page is what the run's files and its network say."""

import dataclasses
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers import plan_of
from PIL import Image

from jaxresnet.config.files import dump_config
from jaxresnet.config.schema import Config
from jaxresnet.data.digits import INFO
from jaxresnet.fit import fit
from jaxresnet.machine.devices import local_mesh
from jaxresnet.plan import Plan
from jaxresnet.report import main
from jaxresnet.reporting.figures import Curve, curves, image_grid, render
from jaxresnet.reporting.page import write_page
from jaxresnet.reporting.run_page import run_report
from jaxresnet.runs.groups import group_runs, read_histories
from jaxresnet.runs.records import EpochRecord, EvaluationRecord, write_evaluation
from jaxresnet.runs.workdir import Workdir

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
    fit(tiny_config, workdir)
    return workdir


@pytest.fixture(scope="module")
def page(finished: Path) -> Path:
    main(["--workdir", str(finished), "--device", "cpu"])
    return finished / "report" / "index.html"


def write_report(workdir: Path, output: Path) -> Path:
    """The report of one run, on all devices of this process. Returns the page's path."""
    [history] = read_histories([workdir])
    return write_page(run_report(history, local_mesh()), output)


def markdown_of(page: Path) -> str:
    return (page.parent / "report.md").read_text(encoding="utf-8")


def rows(page: Path) -> dict[str, list[str]]:
    """The rows of the Markdown's tables by their first cell."""
    lines = [line for line in markdown_of(page).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {first: rest for first, *rest in cells}


def made_up_run(workdir: Path, plan: Plan) -> EvaluationRecord:
    """Write a run's folder without checkpoints, with two epochs and an evaluation. Returns that."""
    run, classes = Workdir(workdir), plan.info.class_names
    with run.open(plan):
        for epoch in (1, 2):
            run.epochs.append(EpochRecord(epoch, 10 * epoch, 0.1, 1.0, 0.5, 60.0, 9.0, test_accuracy=0.25))
    accuracies: dict[str, float | None] = dict.fromkeys(classes, 0.5)
    accuracies |= {classes[0]: 0.95, classes[1]: None}
    matrix = np.eye(len(classes), dtype=int).tolist()
    record = EvaluationRecord("latest", 20, "test", None, 8, 1.25, 0.5, accuracies, matrix)
    write_evaluation(run.evaluation_path("latest"), record)
    return record


def test_a_finished_run(finished: Path, page: Path):
    assert {path.name for path in page.parent.iterdir()} == PICTURES | {"index.html", "report.md"}
    addresses = Addresses(page).found
    assert len(addresses) == 2 * len(PICTURES)  # each light and dark
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "://" not in re.sub(r"base64,[^\"]*", "", page.read_text(encoding="utf-8"))
    evaluation = json.loads((finished / "evaluation.json").read_text())
    table = rows(page)
    for name, accuracy in evaluation["per_class_accuracy"].items():
        assert table[name] == [f"{accuracy:.2%}"]
    assert table["model.stem_channels"] == ["64", "4"]
    assert "cpu_devices" not in table  # no part of the recipe
    assert f"<b>{evaluation['accuracy']:.2%}</b>" in page.read_text(encoding="utf-8")


def test_without_evaluation_json_the_checkpoint_is_evaluated(finished: Path, page: Path, tmp_path: Path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "evaluation.json").unlink()
    without = markdown_of(write_report(tmp_path / "run", tmp_path / "report"))
    assert without == markdown_of(page).replace("# tiny\n", "# run\n", 1)


def test_without_checkpoints_the_files_are_shown(finished: Path, tmp_path: Path):
    for name in ("config.toml", "metrics.jsonl", "evaluation.json"):
        shutil.copy(finished / name, tmp_path)
    page = write_report(tmp_path, tmp_path / "elsewhere")
    assert {path.name for path in page.parent.glob("*.png")} == PICTURES - {"mistakes.png"}
    assert "Mistakes not shown: no checkpoint" in page.read_text(encoding="utf-8")


def test_a_run_that_has_only_begun(tmp_path: Path, tiny_config: Config):
    (tmp_path / "config.toml").write_text(dump_config(tiny_config))
    page = write_report(tmp_path, tmp_path / "report")
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
    monkeypatch.setattr("jaxresnet.data.cifar10.PROBE_SECONDS", 0.1)
    made_up_run(tmp_path / "paper", plan_of(Config()))
    page = write_report(tmp_path / "paper", tmp_path / "report")
    table = rows(page)
    assert table["class"] == ["test accuracy", "paper"]
    assert table["airplane"] == ["95.00%", ""]
    assert table["automobile"] == ["-", ""]
    assert table["mean"] == ["55.00%", "90.75%"]  # of the nine classes that have examples
    assert table["classes above 90 %"] == ["1", "7"]
    assert table["epochs"] == ["2 of 40"]
    assert table["training time"] == ["2.0 min"]
    assert "test accuracy of the best epoch, 2, chosen on the test split" in table
    assert "checkpoint of step 20 on 8 test images, loss 1.2500." in markdown_of(page).lower()
    assert "Not shown: cannot download CIFAR-10" in page.read_text(encoding="utf-8")


def test_hostile_names_are_only_shown(tmp_path: Path, tiny_config: Config):
    hostile = "<script>alert(1)|$x"
    info = dataclasses.replace(INFO, class_names=(hostile, *INFO.class_names[1:]))
    run = tmp_path / hostile
    made_up_run(run, Plan(tiny_config, info))
    page = write_report(run, tmp_path / "report")
    text, markdown = page.read_text(encoding="utf-8"), markdown_of(page)
    assert "<script" not in text
    assert "<h1>&lt;script&gt;alert(1)|$x</h1>" in text
    assert "<td>&lt;script&gt;alert(1)|$x</td><td>95.00%</td>" in text
    assert "<" not in markdown
    assert markdown.startswith("# &lt;script&gt;alert(1)|$x\n")
    assert rows(page)["&lt;script&gt;alert(1)\\|$x"] == ["95.00%"]
    # What the data set says of its classes is in the lines that tell why pictures are missing.
    assert "Not shown: the data set digits is not what the network was trained on" in markdown


def test_several_runs_are_compared(
    finished: Path, tmp_path: Path, tiny_config: Config, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(finished, tmp_path / "a" / "seed0")
    other = tmp_path / "a" / "seed1"
    other.mkdir()
    (other / "config.toml").write_text(dump_config(tiny_config.replace({"seed": 1})))
    shutil.copy(finished / "metrics.jsonl", other)
    third = tmp_path / "b"
    third.mkdir()
    (third / "config.toml").write_text(dump_config(tiny_config.replace({"batch_size": 16, "seed": 2})))
    main(["--workdir", str(tmp_path / "a" / "seed0"), str(other), str(third)])
    page = tmp_path / "report" / "index.html"
    assert capsys.readouterr().out == f"written to {page}\n"
    table = rows(page)
    assert table["a"][:3] == ["2", "2", "test"]
    assert table["b"][:2] == ["1", "0-0 of 2"]
    assert table["batch_size"] == ["8", "16"]
    assert "seed" not in table
    assert {path.name for path in page.parent.glob("*.png")} == {
        "loss.png",
        "accuracy.png",
        "learning_rate.png",
    }


def test_curves_draw_the_files_values(finished: Path):
    groups = group_runs(read_histories([finished]))
    drawn = [Curve(split, lambda record, split=split: record.accuracy(split)) for split in ("train", "test")]
    figure = curves(groups, drawn, "accuracy (%)", 100)
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for line, key in zip(figure.axes[0].lines, ("train_accuracy", "test_accuracy"), strict=True):
        np.testing.assert_array_equal(np.asarray(line.get_xdata()), [1, 2])
        np.testing.assert_allclose(np.asarray(line.get_ydata()), [100 * record[key] for record in records])


def test_a_groups_curve_is_the_mean_within_the_band_of_all(tmp_path: Path):
    paths = []
    for seed, losses in enumerate([(8.0, 4.0), (4.0, 2.0, 1.0)]):
        run = Workdir(tmp_path / f"seed{seed}")
        with run.open(plan_of(Config(), {"seed": seed})):
            for epoch, loss in enumerate(losses, 1):
                run.epochs.append(EpochRecord(epoch, epoch, 0.1, loss, 0.5, 1.0, 9.0))
        paths.append(run.path)
    [group] = group_runs(read_histories(paths))
    figure = curves([group], [Curve("training", lambda record: record.train_loss)], "loss")
    [line], [band] = figure.axes[0].lines, figure.axes[0].collections
    np.testing.assert_allclose(np.asarray(line.get_xydata()), [(1, 6.0), (2, 3.0), (3, 1.0)])
    corners = set(map(tuple, np.asarray(band.get_paths()[0].vertices).tolist()))
    assert {(1.0, 4.0), (1.0, 8.0), (2.0, 2.0), (2.0, 4.0), (3.0, 1.0)} <= corners


def test_pictures_are_dark_on_dark_pages():
    image = np.zeros((4, 4, 3), np.uint8)
    corners = []
    for dark in (False, True):
        png = Image.open(io.BytesIO(render(lambda: image_grid([image], ["black"]), dark=dark)))
        corners.append(png.convert("L").getpixel((0, 0)))
    assert corners[0] == 255
    assert corners[1] < 40
