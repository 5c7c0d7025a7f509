"""The page of one run: its result, data, network, curves, table by class, confusion matrix and mistakes."""

from typing import TYPE_CHECKING

from jaxresnet.config.schema import Config, differing_settings
from jaxresnet.network.describe import describe
from jaxresnet.reporting.page import Page, Section, Tile
from jaxresnet.reporting.sections.curves import curves_section
from jaxresnet.reporting.sections.data import find_data
from jaxresnet.reporting.sections.evaluation import evaluate_run, evaluation_sections
from jaxresnet.reporting.sections.images import images_section
from jaxresnet.reporting.sections.network import network_section
from jaxresnet.reporting.sections.origin import origin_section
from jaxresnet.reporting.text import interval_of
from jaxresnet.runs.groups import History, RunGroup
from jaxresnet.runs.records import EvaluationRecord, best_epoch

if TYPE_CHECKING:
    from jax.sharding import Mesh


def run_report(history: History, mesh: "Mesh", data_dir: str = "") -> Page:
    """The page of a run. The network predicts on the devices of `mesh`; `data_dir` is where its data set is now.

    Parts that the run does not have yet are left out, with a line that says so.
    """
    layers = describe(history.plan)
    data = find_data(history.plan, data_dir)
    evaluated = evaluate_run(history, mesh, data)
    return Page(
        history.name,
        f"{history.config.data.name}, seed {history.config.seed}, {history.config.precision}",
        headline_tiles(history, evaluated.record, sum(layer.parameters for layer in layers)),
        [
            settings_section(history.config),
            images_section(data),
            network_section(history.plan, layers),
            curves_section([RunGroup(history.name, [history])]),
            *evaluation_sections(history.plan, evaluated),
            origin_section(history),
        ],
    )


def headline_tiles(history: History, evaluation: EvaluationRecord | None, parameters: int) -> list[Tile]:
    """The most important numbers of a run: accuracies, parameters, epochs and training time."""
    split, done, planned = history.split, len(history.epochs), history.config.epochs
    best = best_epoch(history.epochs, split) if split else None
    tiles = []
    if evaluation:
        accuracy, interval = evaluation.accuracy, interval_of(evaluation.accuracy, evaluation.examples)
        tiles.append(Tile(f"test accuracy {_at(evaluation)}", f"{accuracy:.2%}", interval))
    if average := history.evaluation(average=True):
        label = f"test accuracy of the average of the weights {_at(average)}"
        tiles.append(Tile(label, f"{average.accuracy:.2%}"))
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
