"""Reports of real runs: what stands in the page is what the run's files and its network say."""

import dataclasses
import json
import platform
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import plan_of
from PIL import Image

import jaxresnet
from jaxresnet.config.files import dump_config
from jaxresnet.config.schema import Config
from jaxresnet.data.sources import open_source
from jaxresnet.data.sources.digits import INFO
from jaxresnet.errors import UserError
from jaxresnet.evaluate import as_text
from jaxresnet.machine.devices import local_mesh
from jaxresnet.plan import Plan, resolve
from jaxresnet.report import main
from jaxresnet.reporting.comparison_page import comparison_report, data_table
from jaxresnet.reporting.page import write_page
from jaxresnet.reporting.run_page import run_report
from jaxresnet.reporting.sections.data import RunData, find_data
from jaxresnet.reporting.sections.origin import initial_facts, origin_section
from jaxresnet.reporting.text import escape_markdown, interval_of
from jaxresnet.runs.groups import group_runs, read_histories
from jaxresnet.runs.records import EpochRecord, EvaluationRecord, InitialWeights, write_evaluation
from jaxresnet.runs.workdir import Workdir
from jaxresnet.trained.scores import class_scores

PICTURES = {
    "training_images.png",
    "augmented_images.png",
    "architecture.png",
    "loss.png",
    "accuracy.png",
    "learning_rate.png",
    "confusion.png",
    "mistakes.png",
    "calibration.png",
    "confidence.png",
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
def page(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("page") / "report"
    main([str(finished), "--output", str(output), "--device", "cpu"])
    return output / "index.html"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are empty files, which saves most of the time of a report."""
    monkeypatch.setattr("jaxresnet.reporting.figures.drawing.render", lambda draw, dark=False: b"")


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
    # Half of each class's 20 examples are found, of the first 19 and of the second, which has none, 0.
    matrix = np.diag([19, 0, *[10] * (len(classes) - 2)])
    matrix[0, 2], matrix[range(2, len(classes)), 0] = 1, 10
    examples, share = int(matrix.sum()), float(matrix.trace() / matrix.sum())
    record = EvaluationRecord("latest", 20, "test", None, examples, 1.25, share, accuracies, matrix.tolist())
    write_evaluation(run.evaluation_path("latest"), record)
    return record


def test_a_finished_run(finished: Path, page: Path):
    assert {path.name for path in page.parent.iterdir()} == PICTURES | {"index.html", "report.md"}
    addresses = Addresses(page).found
    assert len(addresses) == 2 * len(PICTURES) + 2  # each light and dark; the network for narrow pages, too
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "://" not in re.sub(r"base64,[^\"]*", "", page.read_text(encoding="utf-8"))
    evaluation = json.loads((finished / "evaluation.json").read_text())
    table = rows(page)
    scores = class_scores(np.array(evaluation["confusion_matrix"]))
    for (name, accuracy), each in zip(evaluation["per_class_accuracy"].items(), scores, strict=True):
        cells = (accuracy, each.precision, each.f1)
        assert table[name] == ["-" if cell is None else f"{cell:.2%}" for cell in cells]
    assert table["model.stem_channels"] == ["64", "4"]
    assert "cpu_devices" not in table  # no part of the recipe
    text, markdown = page.read_text(encoding="utf-8"), markdown_of(page)
    interval = interval_of(evaluation["accuracy"], evaluation["examples"])
    assert f"<b>{evaluation['accuracy']:.2%}</b><span>test accuracy at step 24</span><span>{interval}" in text
    assert markdown.count(interval) == 2  # at the top, and beside the scores by class
    assert "The paper&#39;s" not in text  # these are digits
    assert "Like the paper" not in markdown
    assert "Expected calibration error" in markdown


def test_how_a_run_was_made(finished: Path, page: Path, tmp_path: Path):
    [start] = read_histories([finished])[0].starts
    markdown = markdown_of(page)
    for fact in (
        f"- command: {escape_markdown(start.command)}\n",
        f"- versions: python {platform.python_version()}, jaxresnet {jaxresnet.__version__}, jax {jax.__version__}",
        "- devices: 4 x cpu\n",
        f"{start.cpu_cores} logical CPUs, {start.available_cores} available",
        f"```\n{dump_config(read_histories([finished])[0].config)}```\n\n</details>",
    ):
        assert fact in markdown
    assert "<pre>seed = 0\n" in page.read_text(encoding="utf-8")

    times = {"compile_seconds": 41.25, "train_seconds": 754.0, "seconds": None}
    git = {"commit": "abc", "dirty": True}
    starts = [start, dataclasses.replace(start, git=git, memory_bytes=2**34, **times)]
    section = origin_section(dataclasses.replace(read_histories([finished])[0], starts=starts))
    assert section.note.startswith("The run was started 2 times")
    assert section.facts == ()
    initial = InitialWeights("runs/a", 1440, "c0ffee", head=False)
    assert initial_facts(initial) == [
        ("initial weights", "runs/a, step 1,440: all but the head; SHA-256 c0ffee")
    ]
    assert [fold.title.partition(",")[0] for fold in section.folds] == [
        "Start 1",
        "Start 2",
        "The whole configuration",
    ]
    facts = dict(section.folds[1].facts)
    assert facts["commit"] == "abc, with changes that are not committed"
    assert facts["memory"] == "16.0 GiB"
    assert facts["time"] == "training 12.6 min, compiling 41.2 s, in all not recorded"


def test_the_evaluation_is_printed_with_its_interval(tmp_path: Path, tiny_plan: Plan):
    record = made_up_run(tmp_path, tiny_plan)
    line = "test accuracy 55.00% (95 % interval 47.70 to 62.09 %), loss 1.2500, 180 images"
    assert as_text(record).splitlines()[1] == line


def test_a_report_is_not_written_through_a_link(tmp_path: Path, tiny_config: Config):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    (run / "config.toml").write_text(dump_config(tiny_config))
    (run / "report").symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"expected a folder, found a link: \S+report$"):
        main(["--workdir", str(run), "--device", "cpu"])
    assert list(elsewhere.iterdir()) == []


@pytest.mark.usefixtures("undrawn")
def test_without_evaluation_json_the_checkpoint_is_evaluated(finished: Path, page: Path, tmp_path: Path):
    shutil.copytree(finished, tmp_path / "copy")
    (tmp_path / "copy" / "evaluation.json").unlink()
    without = markdown_of(write_report(tmp_path / "copy", tmp_path / "report"))
    assert without == markdown_of(page).replace("# run\n", "# copy\n", 1)


@pytest.mark.usefixtures("undrawn")
def test_without_checkpoints_the_files_are_shown(finished: Path, tmp_path: Path):
    for name in ("config.toml", "metrics.jsonl", "evaluation.json"):
        shutil.copy(finished / name, tmp_path)
    page = write_report(tmp_path, tmp_path / "elsewhere")
    assert {path.name for path in page.parent.glob("*.png")} == PICTURES - {
        *("mistakes.png", "calibration.png", "confidence.png")
    }
    assert "Mistakes and confidence are not shown: no checkpoint" in page.read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_other_data_than_that_of_the_training_is_not_mixed_in(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "jaxresnet.reporting.run_page.find_data", lambda plan, data_dir: RunData(plan, None, "it has changed")
    )
    page = write_report(finished, tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    assert "Mistakes and confidence are not shown: it has changed" in text
    assert "Not shown: it has changed" in text
    assert "on 355 test images" in text
    assert {path.name for path in page.parent.glob("*.png")} == PICTURES - {
        *("training_images.png", "augmented_images.png"),
        *("mistakes.png", "calibration.png", "confidence.png"),
    }


def test_the_data_of_a_run_is_compared_image_by_image(tmp_path: Path, tiny_config: Config):
    folder, moved = tmp_path / "pictures", tmp_path / "moved"
    for number in range(20):
        path = folder / ("train" if number < 16 else "test") / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 * number).save(path)
    config = tiny_config.replace({"data.name": "folder", "data.dir": str(folder), "batch_size": 4})
    plan = resolve(config, open_source(config.data).info)
    found = find_data(plan)
    assert found.load("train").images[:, 0, 0, 0].tolist() == [*range(0, 160, 20), *range(10, 160, 20)]
    assert found.load("test").labels.tolist() == [0, 0, 1, 1]

    # Two pictures have other classes now. All numbers are the same.
    swapped = folder / "test" / "a" / "16.png", folder / "test" / "b" / "17.png"
    swapped[0].rename(folder / "test" / "b" / "16.png")
    swapped[1].rename(folder / "test" / "a" / "17.png")
    found = find_data(plan)
    problem = "the data is not that of the training: images or labels differ, or their order"
    assert (found.source, found.problem) == (None, problem)
    with pytest.raises(UserError, match=problem):
        found.load("test")
    folder.rename(moved)
    assert find_data(plan).problem.startswith(f"no folder {folder}: expected pictures in")
    assert find_data(plan, str(moved)).problem == problem
    unreadable = str(tmp_path / ("x" * 256))  # looking for it fails, as below another user's folder
    assert unreadable in find_data(plan, unreadable).problem
    for path in swapped:
        [place] = moved.glob(f"test/*/{path.name}")
        place.rename(moved / path.relative_to(folder))
    assert len(find_data(plan, str(moved)).load("test").labels) == 4


def test_other_data_is_told_in_a_comparison(tmp_path: Path, tiny_plan: Plan):
    info = dataclasses.replace(tiny_plan.info, train_examples=2_000, digest="f" * 64)
    for name, plan in (("a", tiny_plan), ("b", dataclasses.replace(tiny_plan, info=info))):
        made_up_run(tmp_path / name, plan)
    groups = group_runs(read_histories([tmp_path / "a", tmp_path / "b"], above=tmp_path))
    assert data_table(groups) == [
        ("data", "a", "b"),
        ("training images", "1,442", "2,000"),
        ("SHA-256 of the images", "known in advance", "f" * 12),
    ]
    assert [section.title for section in comparison_report(groups).sections] == [
        "Results", "Facts of the data that differ", "Loss and accuracy by epoch"
    ]  # fmt: skip
    assert data_table(groups[:1]) == [("data", "a")]


@pytest.mark.usefixtures("undrawn")
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


@pytest.mark.usefixtures("undrawn")
def test_the_papers_column_stands_beside_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    monkeypatch.setattr("jaxresnet.data.sources.tfds.PROBE_SECONDS", 0.1)
    made_up_run(tmp_path / "paper", plan_of(Config()))
    page = write_report(tmp_path / "paper", tmp_path / "report")
    table = rows(page)
    assert table["class"] == ["accuracy (recall)", "paper", "precision", "F1"]
    assert table["airplane"] == ["95.00%", "93.46%", "19.19%", "31.93%"]  # 19 of 99 and 2 * 19 / (20 + 99)
    assert table["automobile"] == ["-", "95.66%", "-", "-"]  # no example and no prediction
    assert table["bird"] == ["50.00%", "85.76%", "90.91%", "64.52%"]
    assert table["cat"] == ["50.00%", "82.16%", "100.00%", "66.67%"]
    assert table["mean"] == ["55.00%", "90.75%", "90.01%", "62.57%"]  # of the nine classes that have values
    assert table["classes above 90 %"] == ["1", "7", "8", "0"]
    assert table["epochs"] == ["2 of 40"]
    assert table["training time"] == ["2.0 min"]
    assert "test accuracy of the best epoch, 2, chosen on the test split" in table
    markdown = markdown_of(page)
    assert (
        "Checkpoint of step 20 on 180 test images: accuracy 55.00 % (95 % interval 47.70 to 62.09 %)"
        in markdown
    )
    for sentence in ("Figure 2.", "It is that of the paper's Figure 3.", "Figures 4 and 5.", "Figure 6."):
        assert sentence in markdown
    assert "Not shown: cannot download CIFAR-10" in page.read_text(encoding="utf-8")


def test_an_evaluation_of_other_classes_is_refused(tmp_path: Path, tiny_plan: Plan):
    made_up_run(tmp_path / "run", tiny_plan)
    path = tmp_path / "run" / "evaluation.json"
    change = {"per_class_accuracy": {"other": 0.5}, "confusion_matrix": [[1]]}
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"evaluation.json: expected the run's 10 classes"):
        write_report(tmp_path / "run", tmp_path / "report")
    assert not (tmp_path / "report").exists()


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
    assert set(re.findall("<.*?>", markdown)) == {"<details>", "</details>", "<summary>", "</summary>"}
    assert markdown.startswith("# &lt;script&gt;alert(1)|\\$x\n")
    assert rows(page)["&lt;script&gt;alert(1)\\|\\$x"] == ["95.00%", "19.19%", "31.93%"]
    # What the data set says of its classes is in the lines that tell why pictures are missing.
    assert "Not shown: the data set digits is not what the network was trained on" in markdown


def test_several_runs_are_compared(
    finished: Path, tmp_path: Path, short_config: Config, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(finished, tmp_path / "a" / "seed0")
    other = tmp_path / "a" / "seed1"
    other.mkdir()
    (other / "config.toml").write_text(dump_config(short_config.replace({"seed": 1})))
    shutil.copy(finished / "metrics.jsonl", other)
    third = tmp_path / "b"
    third.mkdir()
    (third / "config.toml").write_text(dump_config(short_config.replace({"batch_size": 16, "seed": 2})))
    main(["--workdir", str(tmp_path / "a" / "seed0"), str(other), str(third)])
    page = tmp_path / "report" / "index.html"
    assert capsys.readouterr().out == f"written to {page}\n"
    table = rows(page)
    assert table["a"][3:6] == ["2", "2", "test"]
    assert table["b"][3:5] == ["1", "0 of 2"]
    assert table["batch_size"] == ["120", "16"]
    assert "seed" not in table
    assert {path.name for path in page.parent.glob("*.png")} == {
        "loss.png",
        "accuracy.png",
        "learning_rate.png",
    }
