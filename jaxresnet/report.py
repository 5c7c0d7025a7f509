"""Write a report of one or more runs: `python -m jaxresnet.report --workdir runs/digits`.

Writes index.html, which holds its pictures and needs no other file, the same pictures as PNGs, and the same
text with its tables in Markdown, to the folder report/ of the run. With several runs it compares them, runs that
differ only in the seed as mean and standard deviation.
"""

import base64
import html
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxresnet.comparison import (
    RunGroup,
    RunRecord,
    as_markdown,
    comparison_table,
    group_runs,
    read_runs,
)
from jaxresnet.config import ArgumentParser, AugmentConfig, Config, add_device_argument, differing_keys
from jaxresnet.errors import UserError, run_command
from jaxresnet.memory import use_huge_pages
from jaxresnet.workdir import Workdir

if TYPE_CHECKING:
    from jaxresnet.data import Split
    from jaxresnet.figures import Figure
    from jaxresnet.inference import Mesh, TrainedRun

EXAMPLES = 16
"""Images in the pages of training images and of mistakes, as in the paper's Figures 2 and 6."""

PAPER_TABLE_MEAN = 0.9075
"""Mean of the ten accuracies of the paper's Table 1; its text says 91.26 %."""
PAPER_TABLE_ABOVE_90 = 7
"""Classes above 90 % in the paper's Table 1; its text says eight."""


def main(argv: Sequence[str]) -> None:
    """Run the command with the arguments `argv`."""
    parser = ArgumentParser(prog="python -m jaxresnet.report", description=__doc__)
    parser.add_argument(
        "--workdir", type=Path, metavar="DIR", nargs="+", required=True, help="folder of a run, or of several"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of the report (default: report/ in the run's folder, or where the runs' folders are)",
    )
    add_device_argument(parser)
    args = parser.parse(argv)
    print(f"written to {write_report(args.workdir, args.output, args.device)}")


@dataclass
class Report:
    """What a report holds: its page in HTML and in Markdown, part by part, and its pictures by file name."""

    title: str
    body: list[str] = field(default_factory=list)
    markdown: list[str] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)

    def heading(self, text: str, note: str = "") -> None:
        """Begin a section, with a line below its heading."""
        self.body.append(f"<h2>{html.escape(text)}</h2>" + (f"<p>{html.escape(note)}</p>" if note else ""))
        self.markdown.append(f"## {text}" + (f"\n\n{note}" if note else ""))

    def note(self, text: str) -> None:
        """A line of its own."""
        self.body.append(f'<p class="note">{html.escape(text)}</p>')
        self.markdown.append(text)

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """A table of a header and rows."""
        head, *rest = [[html.escape(cell) for cell in row] for row in rows]
        self.body.append(
            '<div class="wide"><table><thead><tr>'
            + "".join(f"<th>{cell}</th>" for cell in head)
            + "</tr></thead><tbody>"
            + "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rest)
            + "</tbody></table></div>"
        )
        self.markdown.append(as_markdown(rows))

    def figures(self, *drawings: "tuple[str, str, Callable[[], Figure]]") -> None:
        """Figures side by side where there is room: (file name, caption, function that draws it)."""
        from jaxresnet.figures import render

        parts = []
        for name, caption, draw in drawings:
            self.pictures[name] = render(draw)
            light, dark = (
                "data:image/png;base64," + base64.b64encode(png).decode()
                for png in (self.pictures[name], render(draw, dark=True))
            )
            self.markdown.append(f"![{caption}]({name})")
            parts.append(
                f'<figure><picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
                f'<img src="{light}" alt="{html.escape(caption)}"></picture>'
                f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            )
        self.body.append(f'<div class="figures">{"".join(parts)}</div>')

    def write(self, folder: Path) -> Path:
        """Write all files. Returns the page's path. Raises UserError where it cannot."""
        page = PAGE.format(title=html.escape(self.title), style=STYLE, body="\n".join(self.body))
        texts = {"index.html": page, "report.md": "\n\n".join([f"# {self.title}", *self.markdown]) + "\n"}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, png in self.pictures.items():
                (folder / name).write_bytes(png)
            for name, text in texts.items():
                (folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {error.filename or folder}: {error.strerror}") from None
        return folder / "index.html"


STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --back: #ffffff; --soft: #59636e; --line: #d8dce1; --tile: #f3f5f7 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --back: #16181c; --soft: #9aa4af; --line: #3a3f47; --tile: #20242a } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem }
p, figcaption { color: var(--soft); margin: .3rem 0 }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.2rem 0 0 }
.tiles div { background: var(--tile); border-radius: .5rem; padding: .7rem 1rem }
.tiles b { display: block; font-size: 1.35rem } .tiles span { color: var(--soft); font-size: .85rem }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start }
figure { margin: .5rem 0; flex: 1 1 18rem; min-width: 0 } img { max-width: 100%; height: auto }
figcaption { font-size: .85rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_report(workdirs: Sequence[Path], output: Path | None = None, device: str = "auto") -> Path:
    """Write the report of one run, or the comparison of several, into the folder `output`.

    Returns the path of its index.html. What a run does not have yet is left out, with a line that says so.
    Raises UserError if a folder holds no run or the report cannot be written.
    """
    runs = read_runs(workdirs)
    if len(runs) == 1:
        return run_report(runs[0], device).write(output or runs[0].path / "report")
    above = Path(os.path.commonpath([run.path.resolve().parent for run in runs]))
    return comparison_report(group_runs(runs)).write(output or above / "report")


def comparison_report(groups: Sequence[RunGroup]) -> Report:
    """Several runs: their results in a table, their curves in one figure each."""
    report = Report(f"{sum(len(group.runs) for group in groups)} runs compared")
    report.body.append(f"<h1>{html.escape(report.title)}</h1>")
    report.heading(
        "Results",
        "Runs that differ only in their seed stand in one row, as mean ± standard deviation. The best epoch is "
        "chosen on the split that it is measured on, so it is optimistic; the last epoch is not chosen.",
    )
    report.table(comparison_table(groups))
    first, *others = groups
    rows = [("setting", *(group.name for group in groups))]
    differing = [differing_keys(first.runs[0].config, other.runs[0].config) for other in others]
    for key in {key: None for each in differing for key in each if key != "seed"}:
        own = [str(each[key][1]) if key in each else None for each in differing]
        base = next(str(each[key][0]) for each in differing if key in each)
        rows.append((key, base, *(value if value is not None else base for value in own)))
    if len(rows) > 1:
        report.heading("Settings that differ")
        report.table(rows)
    add_curves(report, groups)
    return report


def add_curves(report: Report, groups: Sequence[RunGroup]) -> None:
    """Loss, accuracy and learning rate by epoch."""
    runs = [run for group in groups for run in group.runs]
    if not any(run.epochs for run in runs):
        report.heading("Curves")
        report.note("No epoch is finished yet.")
        return
    from jaxresnet.figures import curves

    splits = list(dict.fromkeys(run.accuracy_key.split("_")[0] for run in runs if run.accuracy_key))
    names = {"train": "training"} | {split: split for split in splits}
    report.heading(
        "Loss and accuracy by epoch",
        "The paper's Figures 4 and 5. Training values are means over the epoch while the network learns, on "
        "augmented images and with dropout where the run has them.",
    )
    dashed = " (dashed: training)" if len(groups) > 1 else ""
    report.figures(
        (
            "loss.png",
            f"Loss{dashed}",
            lambda: curves(groups, {f"{k}_loss": v for k, v in names.items()}, "loss"),
        ),
        (
            "accuracy.png",
            f"Accuracy{dashed}",
            lambda: curves(groups, {f"{k}_accuracy": v for k, v in names.items()}, "accuracy (%)", 100),
        ),
        (
            "learning_rate.png",
            "Learning rate at the epoch's last step",
            lambda: curves(groups, {"learning_rate": ""}, "learning rate", from_zero=True),
        ),
    )


def run_report(run: RunRecord, device: str) -> Report:
    """One run: its result, data, network, curves, table by class, confusion matrix and mistakes."""
    from jaxresnet.figures import architecture, confusion
    from jaxresnet.model import describe

    report = Report(run.name)
    layers = describe(run.config)
    evaluation, mistakes, problem = evaluate_run(run, device)
    add_headline(report, run, evaluation, sum(layer.parameters for layer in layers))
    add_settings(report, run.config)
    add_training_images(report, run.config)
    report.heading("The network", "The paper's Figure 3, drawn from the network itself.")
    report.figures(
        (
            "architecture.png",
            "Height: size of the maps. Width: channels. Arcs: shortcuts, dashed where they are convolutions.",
            lambda: architecture(layers),
        )
    )
    add_curves(report, [RunGroup(run.name, [run])])
    if evaluation is None:
        report.heading("Evaluation")
        report.note(problem)
        return report
    add_table_by_class(report, run.config, evaluation)
    report.heading("Predicted against true", "The paper's Figure 6.")
    import numpy as np

    matrix = np.array(evaluation["confusion_matrix"])
    drawings = [
        (
            "confusion.png",
            "Test examples by true and predicted class; the shade is the share of the true class",
            lambda: confusion(matrix, run.config.dataset.class_names),
        )
    ]
    if mistakes is not None:
        drawings.append(
            ("mistakes.png", "The most confident mistakes: true → predicted, and its probability", mistakes)
        )
    report.figures(*drawings)
    if mistakes is None:
        report.note(problem)
    return report


def add_headline(report: Report, run: RunRecord, evaluation: dict[str, Any] | None, parameters: int) -> None:
    """The title, and the figures that one looks for first."""
    config, key, done = run.config, run.accuracy_key, len(run.epochs)
    facts = []
    if evaluation:
        facts.append((f"test accuracy at step {evaluation['step']:,}", f"{evaluation['accuracy']:.2%}"))
    if key:
        split = key.removesuffix("_accuracy")
        accuracy, epoch = max(zip(*reversed(run.values(key)), strict=True))
        chosen = ", chosen on the test split" if split == "test" else ""
        facts.append((f"{split} accuracy of the best epoch, {epoch}{chosen}", f"{accuracy:.2%}"))
    facts.append(("parameters", f"{parameters:,}"))
    facts.append(("epochs", f"{done}" + ("" if done >= config.epochs else f" of {config.epochs}")))
    if done:
        facts.append(("training time", f"{run.seconds / 60:,.1f} min"))
    about = f"{config.data.name}, seed {config.seed}, {config.precision}"
    tiles = [
        f"<div><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>" for name, value in facts
    ]
    report.body.append(
        f'<h1>{html.escape(run.name)}</h1><p>{html.escape(about)}</p><div class="tiles">{"".join(tiles)}</div>'
    )
    report.markdown += [about, as_markdown([("", ""), *facts])]


def add_settings(report: Report, config: Config) -> None:
    """What differs from the defaults, which are the paper's recipe."""
    report.heading("Settings that differ from the paper's recipe")
    rows = [(key, str(paper), str(own)) for key, (paper, own) in differing_keys(Config(), config).items()]
    if rows:
        report.table([("setting", "paper.toml", "this run"), *rows])
    else:
        report.note("None.")


def add_training_images(report: Report, config: Config) -> None:
    """The first training images as they are and as the first step sees them."""
    from jaxresnet.data import load_split, train_batches
    from jaxresnet.figures import image_grid

    report.heading("Training images", "The paper's Figure 2: the run's first images, and the same augmented.")
    off = AugmentConfig(horizontal_flip=False, crop_padding=0, rotation_degrees=0, brightness=0)
    try:
        split = load_split(config.data, "train")
    except UserError as error:
        report.note(f"Not shown: {error}")
        return

    def first_images(augment: AugmentConfig) -> tuple[list, list[str]]:
        batches = train_batches(config.model_copy(update={"augment": augment}), split)
        few = list(itertools.islice(batches, -(-EXAMPLES // config.batch_size)))
        labels = [label for batch in few for label in batch.label]
        images = [image for batch in few for image in batch.image]
        return images[:EXAMPLES], [config.dataset.class_names[label] for label in labels[:EXAMPLES]]

    report.figures(
        ("training_images.png", "As they are", lambda: image_grid(*first_images(off))),
        ("augmented_images.png", "Augmented", lambda: image_grid(*first_images(config.augment))),
    )


def evaluate_run(
    run: RunRecord, device: str
) -> tuple[dict[str, Any] | None, "Callable[[], Figure] | None", str]:
    """The evaluation of the latest checkpoint, a function that draws its mistakes, and why either is missing.

    An evaluation.json of that checkpoint is taken as it is; without a checkpoint, any is.
    """
    from jaxresnet.data import load_split
    from jaxresnet.inference import load_run
    from jaxresnet.runtime import quiet_libraries, start_devices, use_compilation_cache

    quiet_libraries()
    saved = Workdir(run.path).evaluation()
    mesh = start_devices(device, run.config.cpu_devices)
    use_compilation_cache()
    try:
        trained = load_run(run.path, mesh)
        split = load_split(run.config.data, "test")
    except UserError as error:
        return saved, None, f"Mistakes not shown: {error}" if saved else f"Not evaluated: {error}"
    print(
        f"predicting {len(split.labels):,} test images with the checkpoint of step {trained.step:,}",
        flush=True,
    )
    evaluation, mistakes = predict_run(trained, split, mesh)
    return saved if saved and saved["step"] == trained.step else evaluation, mistakes, ""


def predict_run(
    trained: "TrainedRun", split: "Split", mesh: "Mesh"
) -> tuple[dict[str, Any], "Callable[[], Figure]"]:
    """The evaluation record of a trained run on a split, and a function that draws its most confident mistakes."""
    import numpy as np

    from jaxresnet.figures import image_grid
    from jaxresnet.inference import evaluation_record, metrics_of_logits, predict_split

    logits = predict_split(trained, split, trained.config.batch_size, mesh)
    metrics = metrics_of_logits(trained.config, logits, split.labels)
    record = evaluation_record(trained.config, metrics, trained.checkpoint, trained.step, trained.selected_on)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = (exponentials / exponentials.sum(axis=1, keepdims=True)).max(axis=1)
    predicted = logits.argmax(axis=1)
    wrong = np.flatnonzero(predicted != split.labels)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:EXAMPLES]
    names = trained.class_names
    titles = [f"{names[split.labels[i]]} → {names[predicted[i]]}\n{confidence[i]:.1%}" for i in shown]
    return record, lambda: image_grid(split.images[shown], titles)


def add_table_by_class(report: Report, config: Config, evaluation: dict[str, Any]) -> None:
    """Accuracy by class; beside the paper's figures where the data set is the paper's."""
    paper = config.data.name == "cifar10"
    accuracies = evaluation["per_class_accuracy"]
    known = [value for value in accuracies.values() if value is not None]
    mean, above = sum(known) / len(known), sum(value > 0.9 for value in known)
    note = (
        f"Checkpoint of step {evaluation['step']:,} on {evaluation['examples']:,} test images, "
        f"loss {evaluation['loss']:.4f}."
    )
    if paper:
        note += (
            f" The paper's Table 1 and its text disagree: the table's mean is {100 * PAPER_TABLE_MEAN:.2f} % and "
            f"{PAPER_TABLE_ABOVE_90} of its classes pass 90 %, the text says 91.26 % and eight."
        )
    report.heading("Accuracy by class", "The paper's Table 1. " + note if paper else note)
    rows = [("class", "test accuracy")]
    rows += [(name, "-" if value is None else f"{value:.2%}") for name, value in accuracies.items()]
    rows += [("mean", f"{mean:.2%}"), ("classes above 90 %", str(above))]
    if paper:
        column = ["paper", *[""] * len(accuracies), f"{PAPER_TABLE_MEAN:.2%}", str(PAPER_TABLE_ABOVE_90)]
        rows = [(*row, cell) for row, cell in zip(rows, column, strict=True)]
    report.table(rows)


if __name__ == "__main__":
    use_huge_pages()
    run_command(main)
