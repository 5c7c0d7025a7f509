"""The sections on a run's predictions: scores by class, confusion matrix, mistakes, calibration."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxresnet.data.splits import Split
from jaxresnet.errors import UserError
from jaxresnet.learning.learner import make_learner
from jaxresnet.machine.memory import out_of_memory_told
from jaxresnet.network.cpu_convolution import convolution_for
from jaxresnet.plan import Plan
from jaxresnet.reporting.figures.calibration import confidence_counts, reliability
from jaxresnet.reporting.figures.confusion import confusion
from jaxresnet.reporting.figures.drawing import picture
from jaxresnet.reporting.figures.images import image_grid
from jaxresnet.reporting.page import Picture, Section
from jaxresnet.reporting.sections.data import RunData
from jaxresnet.reporting.sections.images import EXAMPLES, LONGEST_CLASS_NAME
from jaxresnet.reporting.sections.paper import PAPER_ACCURACIES, above_90, is_papers_data, like_figure
from jaxresnet.reporting.text import interval_of, one_line
from jaxresnet.runs.groups import History
from jaxresnet.runs.records import EvaluationRecord
from jaxresnet.trained.evaluation import evaluation_record, metrics_of_logits, predict_split
from jaxresnet.trained.load import TrainedNetwork, load_run
from jaxresnet.trained.scores import (
    CalibrationBin,
    calibration_bins,
    class_scores,
    expected_calibration_error,
    macro_mean,
    top_probabilities,
)

if TYPE_CHECKING:
    from jax.sharding import Mesh


@dataclass(frozen=True)
class Evaluated:
    """The evaluation of a run, its mistakes and its confidence, as far as they are available.

    `problem` says why one is missing.
    """

    record: EvaluationRecord | None
    mistakes: Picture | None = None
    calibration: Sequence[CalibrationBin] = ()
    problem: str = ""


def evaluate_run(history: History, mesh: "Mesh", data: RunData) -> Evaluated:
    """The evaluation of the latest checkpoint, its mistakes and its confidence.

    If evaluation.json belongs to that checkpoint, it is used. If the checkpoint or the data cannot be loaded, or the
    data has changed, it is used in any case. Raises UserError if it does not fit the run's classes.
    """
    saved = saved_evaluation(history)
    try:
        network = load_run(history.workdir.path, mesh=mesh)
        split = data.load("test")
    except UserError as error:
        missing = "Mistakes and confidence are not shown" if saved else "Not evaluated"
        return Evaluated(saved, problem=f"{missing}: {error}")
    print(
        f"predicting {len(split.labels):,} test images with the checkpoint of step {network.step:,}",
        flush=True,
    )
    evaluated = predict_run(network, split, mesh)
    return dataclasses.replace(evaluated, record=saved) if saved and saved.step == network.step else evaluated


def saved_evaluation(history: History) -> EvaluationRecord | None:
    """The evaluation in evaluation.json; None if there is none. Raises UserError if its classes are not the run's."""
    saved, names = history.workdir.evaluation(), history.plan.info.class_names
    if saved is None:
        return None
    if tuple(saved.per_class_accuracy) != names:
        path = history.workdir.evaluation_path("latest")
        raise UserError(
            f"{path}: expected the run's {len(names)} classes, found others: remove it, or write it again with "
            "python -m jaxresnet.evaluate"
        )
    return saved


def predict_run(network: TrainedNetwork, split: Split, mesh: "Mesh") -> Evaluated:
    """The evaluation of a trained network on a split, its most confident mistakes and its confidence."""
    learner = make_learner(network.plan, convolution_for(mesh))
    batch_size = network.config.batch_size
    with out_of_memory_told(batch_size, mesh, "a machine with more memory is needed"):
        logits = predict_split(learner, network.variables, split, batch_size, mesh)
    metrics = metrics_of_logits(learner, logits, split.labels)
    record = evaluation_record(network.plan, metrics, network.checkpoint, network.step, network.selected_on)
    mistakes = mistakes_picture(split, logits, network.info.class_names)
    bins = calibration_bins(top_probabilities(logits), logits.argmax(axis=1) == split.labels)
    return Evaluated(record, mistakes, bins, problem="" if mistakes else "There are no mistakes.")


def mistakes_picture(split: Split, logits: np.ndarray, names: tuple[str, ...]) -> Picture | None:
    """The picture of the mistakes with the highest probability; None if there are no mistakes.

    `logits` are float32 [N, C], those of the examples of `split`; `names` are the names of the classes.
    """
    confidence, predicted = top_probabilities(logits), logits.argmax(axis=1)
    wrong = np.flatnonzero(predicted != split.labels)
    if not wrong.size:
        return None
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:EXAMPLES]
    true, guess = ([one_line(name, LONGEST_CLASS_NAME - less) for name in names] for less in (0, 3))
    titles = [f"{true[split.labels[i]]} →\n{guess[predicted[i]]} {confidence[i]:.1%}" for i in shown]
    return picture(
        "mistakes.png",
        "The most confident mistakes: true → predicted, and its probability",
        lambda: image_grid(list(split.images[shown]), titles),
    )


def evaluation_sections(plan: Plan, evaluated: Evaluated) -> list[Section]:
    """The sections with scores by class, confusion matrix, mistakes and confidence, or one that says why not."""
    if evaluated.record is None:
        return [Section("Evaluation", evaluated.problem)]
    matrix = np.array(evaluated.record.confusion_matrix)
    drawn = picture(
        "confusion.png",
        "Test examples by true and predicted class; the shade is the share of the true class",
        lambda: confusion(matrix, plan.info.class_names),
    )
    predictions = Section(
        "Predicted against true",
        like_figure(plan, "Figure 6").strip(),
        pictures=[drawn, *([evaluated.mistakes] if evaluated.mistakes else [])],
        remark=evaluated.problem,
    )
    calibration = [calibration_section(evaluated.calibration)] if evaluated.calibration else []
    return [class_section(plan, evaluated.record), predictions, *calibration]


def class_section(plan: Plan, evaluation: EvaluationRecord) -> Section:
    """The section with the scores of each class; for CIFAR-10, beside the paper's accuracies."""
    accuracies, scores = evaluation.per_class_accuracy, class_scores(np.array(evaluation.confusion_matrix))
    columns: dict[str, Sequence[float | None]] = {"accuracy (recall)": list(accuracies.values())}
    note = (
        f"{_source(evaluation)} on {evaluation.examples:,} test images: accuracy {100 * evaluation.accuracy:.2f} % "
        f"({interval_of(evaluation.accuracy, evaluation.examples)}), loss {evaluation.loss:.4f}. The accuracy of a "
        "class is its recall, the share of its images that are found. The means are over the classes that have a value."
    )
    if is_papers_data(plan):
        columns["paper"] = [PAPER_ACCURACIES.get(name) for name in accuracies]
        note += (
            f" The paper's numbers are those of its Table 1. Their mean and the {above_90(columns['paper'])} classes "
            "above 90 % follow from them; the paper's text says 91.26 % and eight."
        )
    columns |= {"precision": [each.precision for each in scores], "F1": [each.f1 for each in scores]}
    rows = [
        ("class", *columns),
        *((name, *map(_percent, row)) for name, *row in zip(accuracies, *columns.values(), strict=True)),
        ("mean", *(_percent(macro_mean(column)) for column in columns.values())),
        ("classes above 90 %", *(str(above_90(column)) for column in columns.values())),
    ]
    return Section("Scores by class", note, rows)


def _source(evaluation: EvaluationRecord) -> str:
    return (
        f"Checkpoint {evaluation.checkpoint if evaluation.step is None else f'of step {evaluation.step:,}'}"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def calibration_section(bins: Sequence[CalibrationBin]) -> Section:
    """The section that compares how sure the network is with how often it is right."""
    error = expected_calibration_error(bins)
    pictures = [
        picture(
            "calibration.png",
            "Share of correct predictions by confidence. On the dashed line they are right as often as expected.",
            lambda: reliability(bins),
        ),
        picture("confidence.png", "Test images by confidence", lambda: confidence_counts(bins)),
    ]
    note = (
        f"Expected calibration error {100 * error:.2f} %: the difference between the confidence and the share of "
        f"correct predictions, averaged over the test images in {len(bins)} bins of equal width (Guo et al., 2017)."
    )
    return Section("Confidence", note, pictures=pictures)
