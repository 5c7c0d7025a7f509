"""What figures draw is what they are given; names in them are only names."""

import dataclasses
import io
import json
import os
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from helpers import plan_of
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from jaxresnet.config.schema import Config
from jaxresnet.data.batches import Batch
from jaxresnet.network.describe import describe
from jaxresnet.plan import Plan
from jaxresnet.reporting.figures.architecture import architecture, stacked_architecture
from jaxresnet.reporting.figures.calibration import confidence_counts, reliability
from jaxresnet.reporting.figures.confusion import confusion
from jaxresnet.reporting.figures.curves import Curve, curves
from jaxresnet.reporting.figures.drawing import render
from jaxresnet.reporting.figures.images import image_grid
from jaxresnet.reporting.sections.images import titles_of
from jaxresnet.runs.groups import History, RunGroup, group_runs, read_histories
from jaxresnet.runs.records import EpochRecord
from jaxresnet.runs.workdir import Workdir
from jaxresnet.trained.scores import CalibrationBin

LOSS = Curve("training", lambda record: record.train_loss)


def made_up_group(name: str, losses: list[float], plan: Plan) -> RunGroup:
    epochs = [EpochRecord(n, n, 0.1, loss, 0.5, 1.0, 9.0) for n, loss in enumerate(losses, 1)]
    return RunGroup(name, [History(Workdir(Path(name)), name, plan, epochs, [])])


def test_curves_of_many_groups_differ_and_each_has_a_name(tiny_plan: Plan):
    """Also the one that was not evaluated, whose only line is that of training."""
    test = Curve("test", lambda record: record.test_loss)
    groups = [made_up_group(f"run {n}", [1.0 + n], tiny_plan) for n in range(20)]
    for group in groups[1:]:
        group.histories[0].epochs[:] = [
            dataclasses.replace(e, test_loss=2.0) for e in group.histories[0].epochs
        ]
    axis = curves(groups, [LOSS, test], "loss").axes[0]
    legend = axis.get_legend()
    assert legend
    assert [text.get_text() for text in legend.get_texts()] == [group.name for group in groups]
    handles = [line for line in axis.lines if line.get_linestyle() == "-"]
    assert len(handles) == 19
    assert len({(line.get_color(), line.get_marker()) for line in handles}) == 19


def test_curves_draw_the_files_values(finished: Path):
    groups = group_runs(read_histories([finished]))
    drawn = [Curve(split, lambda record, split=split: record.accuracy(split)) for split in ("train", "test")]
    figure = curves(groups, drawn, "accuracy (%)", 100)
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for line, key in zip(figure.axes[0].lines, ("train_accuracy", "test_accuracy"), strict=True):
        np.testing.assert_array_equal(np.asarray(line.get_xdata()), [1, 2])
        np.testing.assert_allclose(np.asarray(line.get_ydata()), [100 * record[key] for record in records])


def test_a_groups_curve_is_the_mean_within_the_band_of_all(tiny_plan: Plan):
    seeds = [made_up_group("a", [8.0, 4.0], tiny_plan), made_up_group("b", [4.0, 2.0, 1.0], tiny_plan)]
    group = RunGroup("both", [history for each in seeds for history in each.histories])
    figure = curves([group], [LOSS], "loss")
    [line], [band] = figure.axes[0].lines, figure.axes[0].collections
    np.testing.assert_allclose(np.asarray(line.get_xydata()), [(1, 6.0), (2, 3.0), (3, 1.0)])
    corners = set(map(tuple, np.asarray(band.get_paths()[0].vertices).tolist()))
    assert {(1.0, 4.0), (1.0, 8.0), (2.0, 2.0), (2.0, 4.0), (3.0, 1.0)} <= corners


def test_marks_are_dotted_and_change_no_axis(tiny_plan: Plan):
    group = made_up_group("a", [30.0, 3.0, 0.3], tiny_plan)
    plain, marked = (curves([group], [LOSS], "loss", marks=marks).axes[0] for marks in ((), (1.25, 2.0)))
    lines = [line for line in marked.lines if line.get_linestyle() == ":"]
    assert [np.asarray(line.get_xdata()).tolist() for line in lines] == [[1.25, 1.25], [2.0, 2.0]]
    assert (marked.get_xlim(), marked.get_ylim(), marked.get_yscale()) == (
        plain.get_xlim(),
        plain.get_ylim(),
        "log",
    )


@pytest.mark.parametrize("epochs", [1, 2, 3, 19, 40])
def test_ticks_stand_at_whole_epochs(tiny_plan: Plan, epochs: int):
    figure = curves([made_up_group("a", [1.0] * epochs, tiny_plan)], [LOSS], "loss")
    low, high = figure.axes[0].get_xlim()
    ticks = [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high]
    assert ticks
    assert all(tick == int(tick) for tick in ticks)
    if epochs == 1:
        assert ticks == [1]
        assert figure.axes[0].lines[0].get_marker() == "o"


def test_the_decades_of_a_loss_are_labelled_in_full(tiny_plan: Plan):
    figure = curves([made_up_group("a", [120.0, 1.0, 0.008], tiny_plan)], [LOSS], "loss")
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert {"0.01", "0.1", "1", "10", "100"} <= set(labels)
    assert "0.0" not in labels


def test_every_run_is_in_the_legend_by_its_name(tiny_plan: Plan):
    bad = os.fsdecode(b"bad\xff\x1b")
    names = ["_old", "lr$_$1", "two\nlines", bad, "名字", "a" * 100]
    groups = [made_up_group(name, [2.0, 1.0], tiny_plan) for name in names]
    figures: list[Figure] = []

    def draw() -> Figure:
        figures.append(curves(groups, [LOSS], "loss"))
        return figures[-1]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render(draw)
    legend = figures[0].axes[0].get_legend()
    assert legend is not None
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown[:5] == ["_old", "lr$_$1", "two lines", r"bad\udcff\x1b", "名字"]
    assert shown[5] == "a" * 18 + "…" + "a" * 17


def test_names_of_classes_are_no_formulas_and_fit():
    names = ["$_$", "_\n" + 50 * "x"]
    figures: list[Figure] = []

    def draw() -> Figure:
        figures.append(confusion(np.array([[3, 1], [0, 0]]), names))
        return figures[-1]

    render(draw)
    [axis] = figures[0].axes
    short = ["$_$", "_ xxxxxx…xxxxxxx"]
    assert [label.get_text() for label in axis.get_xticklabels()] == short
    assert [label.get_text() for label in axis.get_yticklabels()] == short
    assert sorted(text.get_text() for text in axis.texts) == ["0", "0", "1", "3"]


@pytest.mark.parametrize(("classes", "named", "numbers"), [(54, 54, 54**2), (55, 28, 0), (1000, 53, 0)])
def test_counts_of_too_many_classes_are_left_out(classes: int, named: int, numbers: int):
    [axis] = confusion(np.eye(classes, dtype=int), [f"c{number}" for number in range(classes)]).axes
    assert (len(axis.get_xticklabels()), len(axis.texts)) == (named, numbers)
    assert axis.get_yticklabels()[-1].get_text() == f"c{(named - 1) * -(-classes // 54)}"


@pytest.mark.parametrize("draw", [architecture, stacked_architecture])
def test_stages_are_counted_from_one(draw):
    figure = draw(describe(plan_of(Config())))
    texts = "\n".join(text.get_text() for text in figure.findobj(Text))
    for name in ("stem", "stage 1", "stage 2", "stage 3", "stage 4", "head"):
        assert name in texts.splitlines()
    assert "stage 0" not in texts
    assert "4 blocks\n16x16x96" in texts.replace("output ", "")
    assert len(figure.axes[0].patches) == 13 + 11  # stem, eleven blocks and head; an arc for each block
    bottom, top = figure.axes[0].get_ylim()
    assert all(bottom < text.get_position()[1] < top for text in figure.axes[0].texts)


def test_confidence():
    bins = [CalibrationBin(0, 0, 0), CalibrationBin(2000, 0.5, 0.25), CalibrationBin(1, 0.9, 1.0)]
    counts = confidence_counts(bins).axes[0]
    for axis, heights in ((reliability(bins).axes[0], [25, 100]), (counts, [2000, 1])):
        bars = [bar for bar in axis.patches if isinstance(bar, Rectangle)]
        assert [bar.get_height() for bar in bars] == heights
        assert [bar.get_x() for bar in bars] == pytest.approx([100 / 3, 200 / 3])
    assert [text.get_text() for text in counts.texts] == ["2,000", "1"]


def test_pictures_are_dark_on_dark_pages():
    image = np.zeros((4, 4, 3), np.uint8)
    corners = []
    for dark in (False, True):
        png = Image.open(io.BytesIO(render(lambda: image_grid([image], ["black"]), dark=dark)))
        corners.append(png.convert("L").getpixel((0, 0)))
    assert corners[0] == 255
    assert corners[1] < 40


def test_drawing_changes_no_setting_of_matplotlib():
    before = dict(matplotlib.rcParams)
    render(lambda: image_grid([], []))
    assert dict(matplotlib.rcParams) == before


def test_a_mixed_image_is_named_by_both_classes():
    names = ("cat", "dog", "a class with a long name")
    batch = Batch(None, np.array([0, 1, 2]), np.ones(3, bool))
    assert titles_of(batch, names) == ["cat", "dog", "a clas… name"]
    batch = batch._replace(other=np.array([1, 0, 0]), share=np.array([0.75, 1, 0.6], np.float32))
    assert titles_of(batch, names) == ["cat 75%\ndog 25%", "dog", "a clas… name 60%\ncat 40%"]
