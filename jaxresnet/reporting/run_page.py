"""The page of one run: its result, data, network, curves, table by class, confusion matrix and mistakes."""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxresnet.config.schema import Config, differing_settings
from jaxresnet.data.batches import train_batches
from jaxresnet.data.sources import reopen_source
from jaxresnet.data.splits import Split, load_split
from jaxresnet.errors import UserError
from jaxresnet.learning.learner import make_learner
from jaxresnet.network.cpu_convolution import convolution_for
from jaxresnet.network.describe import LayerInfo, describe
from jaxresnet.plan import Plan
from jaxresnet.reporting.comparison_page import curves_section
from jaxresnet.reporting.figures import architecture, confusion, image_grid, picture
from jaxresnet.reporting.page import Page, Picture, Section, Tile
from jaxresnet.runs.groups import History, RunGroup
from jaxresnet.runs.records import EvaluationRecord, best_epoch
from jaxresnet.trained.evaluation import evaluation_record, metrics_of_logits, predict_split
from jaxresnet.trained.load import TrainedNetwork, load_run

if TYPE_CHECKING:
    from jax.sharding import Mesh

EXAMPLES = 16
"""Number of images in the pictures of training images and of mistakes, as in the paper's Figures 2 and 6."""

PAPER_TABLE_MEAN = 0.9075
"""Mean of the ten accuracies in the paper's Table 1. The paper's text says 91.26 %."""
PAPER_TABLE_ABOVE_90 = 7
"""Number of classes above 90 % in the paper's Table 1. The paper's text says eight."""

UNCHANGED = {
    "augment.horizontal_flip": False,
    "augment.crop_padding": 0,
    "augment.rotation_degrees": 0.0,
    "augment.brightness": 0.0,
}
"""The settings that leave training images unchanged."""


def run_report(history: History, mesh: "Mesh", data_dir: str = "") -> Page:
    """The page of a run. The network predicts on the devices of `mesh`; `data_dir` is where its data set is now.

    Parts that the run does not have yet are left out, with a line that says so.
    """
    layers = describe(history.plan)
    evaluated = evaluate_run(history, mesh, data_dir)
    return Page(
        history.name,
        f"{history.config.data.name}, seed {history.config.seed}, {history.config.precision}",
        headline_tiles(history, evaluated.record, sum(layer.parameters for layer in layers)),
        [
            settings_section(history.config),
            images_section(history.plan, data_dir),
            network_section(layers),
            curves_section([RunGroup(history.name, [history])]),
            *evaluation_sections(history.plan, evaluated),
        ],
    )


def headline_tiles(history: History, evaluation: EvaluationRecord | None, parameters: int) -> list[Tile]:
    """The most important numbers of a run: accuracies, parameters, epochs and training time."""
    split, done, planned = history.split, len(history.epochs), history.config.epochs
    best = best_epoch(history.epochs, split) if split else None
    tiles = []
    if evaluation:
        tiles.append(Tile(f"test accuracy {_at(evaluation)}", f"{evaluation.accuracy:.2%}"))
    if best and split:
        chosen = ", chosen on the test split" if split == "test" else ""
        label = f"{split} accuracy of the best epoch, {best.epoch}{chosen}"
        tiles.append(Tile(label, f"{best.accuracy(split):.2%}"))
    tiles.append(Tile("parameters", f"{parameters:,}"))
    tiles.append(Tile("epochs", f"{done}" if done >= planned else f"{done} of {planned}"))
    if done:
        tiles.append(Tile("training time", f"{history.seconds / 60:,.1f} min"))
    return tiles


def _at(evaluation: EvaluationRecord) -> str:
    step = evaluation.step
    return f"with {evaluation.checkpoint}" if step is None else f"at step {step:,}"


def settings_section(config: Config) -> Section:
    """The settings that differ from the defaults, which are the paper's recipe; without the number of CPU devices."""
    title = "Settings that differ from the paper's recipe"
    differing = differing_settings(Config(), config)
    rows = [(name, str(paper), str(own)) for name, (paper, own) in differing.items() if name != "cpu_devices"]
    if not rows:
        return Section(title, "None.")
    return Section(title, table=[("setting", "paper.toml", "this run"), *rows])


def images_section(plan: Plan, data_dir: str = "") -> Section:
    """The first training images, unchanged and as the first step gets them."""
    title = "Training images"
    note = "The paper's Figure 2: the run's first images, and the same augmented."
    config = plan.config
    try:
        source = reopen_source(config, data_dir)
        split = load_split(source, "train", config.data.validation_examples, expected=plan.info)
    except UserError as error:
        return Section(title, note, remark=f"Not shown: {error}")
    pictures = [
        first_images(
            "training_images.png", "As they are", plan.with_config(config.replace(UNCHANGED)), split
        ),
        first_images("augmented_images.png", "Augmented", plan, split),
    ]
    return Section(title, note, pictures=pictures)


def first_images(name: str, caption: str, plan: Plan, split: Split) -> Picture:
    """The picture of the first images that a training by `plan` takes from `split`."""
    batches = train_batches(plan.config, split)
    few = list(itertools.islice(batches, -(-EXAMPLES // plan.config.batch_size)))
    images = [image for batch in few for image in batch.image][:EXAMPLES]
    titles = [plan.info.class_names[label] for batch in few for label in batch.label][:EXAMPLES]
    return picture(name, caption, lambda: image_grid(images, titles))


def network_section(layers: list[LayerInfo]) -> Section:
    """The section with the picture of the network."""
    drawn = picture(
        "architecture.png",
        "Height: size of the maps. Width: channels. Arcs: shortcuts, dashed where they are convolutions.",
        lambda: architecture(layers),
    )
    return Section("The network", "The paper's Figure 3, drawn from the network itself.", pictures=[drawn])


@dataclass(frozen=True)
class Evaluated:
    """The evaluation of a run and its mistakes, as far as they are available; `problem` says why one is missing."""

    record: EvaluationRecord | None
    mistakes: Picture | None = None
    problem: str = ""


def evaluate_run(history: History, mesh: "Mesh", data_dir: str = "") -> Evaluated:
    """The evaluation of the latest checkpoint, and its mistakes.

    If evaluation.json belongs to that checkpoint, it is used. If the checkpoint or the data cannot be loaded, it is
    used in any case.
    """
    saved = history.workdir.evaluation()
    try:
        network = load_run(history.workdir.path, mesh=mesh)
        split = load_split(reopen_source(history.config, data_dir), "test", expected=network.info)
    except UserError as error:
        return Evaluated(
            saved, problem=f"Mistakes not shown: {error}" if saved else f"Not evaluated: {error}"
        )
    print(
        f"predicting {len(split.labels):,} test images with the checkpoint of step {network.step:,}",
        flush=True,
    )
    evaluated = predict_run(network, split, mesh)
    return Evaluated(saved, evaluated.mistakes) if saved and saved.step == network.step else evaluated


def predict_run(network: TrainedNetwork, split: Split, mesh: "Mesh") -> Evaluated:
    """The evaluation of a trained network on a split, and its most confident mistakes."""
    learner = make_learner(network.plan, convolution_for(mesh))
    logits = predict_split(learner, network.variables, split, network.config.batch_size, mesh)
    metrics = metrics_of_logits(learner, logits, split.labels)
    record = evaluation_record(network.plan, metrics, network.checkpoint, network.step, network.selected_on)
    return Evaluated(record, mistakes_picture(split, logits, network.info.class_names))


def mistakes_picture(split: Split, logits: np.ndarray, names: tuple[str, ...]) -> Picture:
    """The picture of the mistakes with the highest probability.

    `logits` are float32 [N, C], those of the examples of `split`; `names` are the names of the classes.
    """
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = (exponentials / exponentials.sum(axis=1, keepdims=True)).max(axis=1)
    predicted = logits.argmax(axis=1)
    wrong = np.flatnonzero(predicted != split.labels)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:EXAMPLES]
    titles = [f"{names[split.labels[i]]} → {names[predicted[i]]}\n{confidence[i]:.1%}" for i in shown]
    return picture(
        "mistakes.png",
        "The most confident mistakes: true → predicted, and its probability",
        lambda: image_grid(list(split.images[shown]), titles),
    )


def evaluation_sections(plan: Plan, evaluated: Evaluated) -> list[Section]:
    """The sections with accuracy by class, confusion matrix and mistakes, or one that says why there are none."""
    if evaluated.record is None:
        return [Section("Evaluation", evaluated.problem)]
    matrix = np.array(evaluated.record.confusion_matrix)
    drawn = picture(
        "confusion.png",
        "Test examples by true and predicted class; the shade is the share of the true class",
        lambda: confusion(matrix, plan.info.class_names),
    )
    mistakes = [evaluated.mistakes] if evaluated.mistakes else []
    return [
        class_section(plan.info.name, evaluated.record),
        Section(
            "Predicted against true",
            "The paper's Figure 6.",
            pictures=[drawn, *mistakes],
            remark=evaluated.problem,
        ),
    ]


def class_section(dataset: str, evaluation: EvaluationRecord) -> Section:
    """The section with the accuracy by class; for CIFAR-10, beside the numbers of the paper."""
    accuracies = evaluation.per_class_accuracy
    known = [value for value in accuracies.values() if value is not None]
    rows = [("class", "test accuracy")]
    rows += [(name, "-" if value is None else f"{value:.2%}") for name, value in accuracies.items()]
    rows.append(("mean", f"{sum(known) / len(known):.2%}" if known else "-"))
    rows.append(("classes above 90 %", str(sum(value > 0.9 for value in known))))
    source = evaluation.checkpoint if evaluation.step is None else f"Checkpoint of step {evaluation.step:,}"
    note = f"{source} on {evaluation.examples:,} test images, loss {evaluation.loss:.4f}."
    title = "Accuracy by class"
    if dataset != "cifar10":
        return Section(title, note, rows)
    note = (
        f"The paper's Table 1. {note} The paper's Table 1 and its text disagree: the table's mean is "
        f"{100 * PAPER_TABLE_MEAN:.2f} % and {PAPER_TABLE_ABOVE_90} of its classes pass 90 %, "
        "the text says 91.26 % and eight."
    )
    column = ["paper", *[""] * len(accuracies), f"{PAPER_TABLE_MEAN:.2%}", str(PAPER_TABLE_ABOVE_90)]
    return Section(title, note, [(*row, cell) for row, cell in zip(rows, column, strict=True)])
