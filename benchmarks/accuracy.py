"""Accuracy on CIFAR-10 against epochs and parameters: the paper's network as trained here, beside published results.

    python benchmarks/accuracy.py results/paper results/paper_cooldown results/fast16 results/best40

The arguments are folders of results: config.toml, evaluation.json, evaluation_best.json if it was made, and run.json
for a run that began with another one's weights. Their folders seed1, seed2 and so on have the same of other seeds. What
others published is in results/accuracy/published.json, with its sources. Writes README.md and accuracy.png beside it.
"""

import argparse
import json
import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from jaxresnet.errors import UserError, run_command
from jaxresnet.network.describe import describe
from jaxresnet.reporting.figures.drawing import COLOURS, render
from jaxresnet.reporting.tables import as_markdown, mean_and_spread
from jaxresnet.runs.files import write_whole
from jaxresnet.runs.groups import RunGroup, group_runs, read_histories
from jaxresnet.runs.records import EvaluationRecord, read_evaluation

OUTPUT = Path(__file__).parent.parent / "results" / "accuracy"


@dataclass(frozen=True)
class Result:
    """One trained network, or the mean of several.

    Accuracies are in percent; `views` is that with test-time augmentation, of this kind.
    """

    name: str
    note: str
    source: str
    parameters: int
    epochs: float
    accuracy: float
    views: tuple[str, float] | None = None


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of results")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder to write to")
    args = parser.parse_args(argv)
    published, ours = read_published(), [read_runs(run) for run in args.runs]
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "accuracy.png").write_bytes(render(lambda: draw(published, ours)))
    write_whole(args.output / "README.md", page(published, ours, shlex.join(argv)))


def read_published() -> list[Result]:
    return [
        Result(
            each["name"],
            each["note"],
            each["source"],
            each["parameters"],
            point["epochs"],
            point["accuracy"],
            ("flip", point["flip"]) if "flip" in point else None,
        )
        for each in json.loads((OUTPUT / "published.json").read_text())
        for point in each["points"]
    ]


def read_runs(folder: Path) -> Result:
    """The last step of a run, or the mean of it and of the same run with other seeds, in `folder`/seed1 and so on.

    The epochs of the run with whose weights it began, on the same data in the same batches, are counted as well. Raises
    UserError if a run has no evaluation, if one differs in more than the seed, or if it began with the weights of a
    file.
    """
    groups = group_runs(read_histories([folder, *sorted(folder.glob("seed*"))]))
    if len(groups) > 1:
        raise UserError(f"{folder}: expected runs that differ in their seed only, found {len(groups)} kinds")
    group = groups[0]
    records = [history.evaluation() for history in group.histories]
    evaluations = [record for record in records if record]
    if len(evaluations) < len(records):
        raise UserError(
            f"{folder}: expected each run's evaluation.json, of its last step; found {len(evaluations)}"
        )
    plan, initial = group.histories[0].plan, group.histories[0].workdir.initial_weights()
    if initial and initial.step is None:
        raise UserError(f"{folder}: its epochs are not known, because its first weights were those of a file")
    steps = (evaluations[0].step or 0) + ((initial.step or 0) if initial else 0)
    views = [record.tta_accuracy for record in evaluations if record.tta_accuracy is not None]
    kinds = {record.tta for record in evaluations}
    kind = kinds.pop() if len(kinds) == 1 else None  # views of different kinds have no common mean
    return Result(
        f"ours: {folder.name}",
        note_of(group, evaluations),
        f"[results/{folder.name}](../{folder.name})",
        sum(layer.parameters for layer in describe(plan)),
        round(steps * plan.config.batch_size / plan.train_examples, 1),
        100 * statistics.mean(record.accuracy for record in evaluations),
        (kind, 100 * statistics.mean(views)) if kind else None,
    )


def note_of(group: RunGroup, evaluations: Sequence[EvaluationRecord]) -> str:
    """The seeds, with the spread of several or the best epoch of one."""
    seeds = ", ".join(str(history.config.seed) for history in group.histories)
    if len(evaluations) > 1:
        spread = mean_and_spread([record.accuracy for record in evaluations], 100)
        return f"{spread} of seeds {seeds}, last step"
    best = read_evaluation(group.histories[0].workdir.evaluation_path("best"))
    chosen = f"; best epoch {best.accuracy:.2%}, chosen on the {best.selected_on} set" if best else ""
    return f"seed {seeds}, last step{chosen}"


def draw(published: Sequence[Result], ours: Sequence[Result]) -> Figure:
    """Two panels with one axis of accuracy: against epochs, and against parameters. Ours are named stars."""
    figure = Figure(figsize=(8, 4.6))
    panels = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    abscissas: list[Callable[[Result], float]] = [
        lambda result: result.epochs,
        lambda result: result.parameters / 1e6,
    ]
    by_name: dict[str, list[Result]] = {}
    for result in published:
        by_name.setdefault(result.name, []).append(result)
    for axis, abscissa in zip(panels, abscissas, strict=True):
        for results, colour in zip(by_name.values(), COLOURS, strict=False):
            x, y = [abscissa(result) for result in results], [result.accuracy for result in results]
            line = "-" if axis is panels[0] else ""
            axis.plot(
                x,
                y,
                color=colour,
                marker="o",
                markersize=5,
                linestyle=line,
                linewidth=1,
                label=results[0].name,
            )
        for result in ours:
            axis.plot(
                abscissa(result), result.accuracy, color="#d62728", marker="*", markersize=13, linestyle=""
            )
            # All have the same number of parameters: on the right their names would cover each other.
            if axis is panels[0]:
                axis.annotate(
                    result.name,
                    (abscissa(result), result.accuracy),
                    (8, -3),
                    textcoords="offset points",
                    fontsize=8,
                )
        axis.grid(alpha=0.6)
    left, right = panels
    left.set(xlabel="epochs", ylabel="test accuracy, one view (%)", xscale="log")
    left.xaxis.set_major_locator(FixedLocator([16, 24, 40, 60, 100, 200, 400]))
    left.xaxis.set_minor_locator(NullLocator())
    left.xaxis.set_major_formatter(ScalarFormatter())
    right.set(xlabel="parameters (millions)")
    right.axvline(5, color="0.5", linestyle=":")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def page(published: Sequence[Result], ours: Sequence[Result], arguments: str) -> str:
    rows = [("network", "parameters", "epochs", "one view (%)", "more views (%)", "how", "source")]
    rows += [
        (
            result.name,
            f"{result.parameters / 1e6:.2f} M",
            f"{result.epochs:g}",
            f"{result.accuracy:.2f}",
            f"{result.views[1]:.2f} ({result.views[0]})" if result.views else "-",
            result.note,
            result.source,
        )
        for result in sorted((*published, *ours), key=lambda each: (each.epochs, each.accuracy))
    ]
    return f"""# Accuracy against epochs and parameters

CIFAR-10's 10,000 test images. Ours are read from the runs in this repository, the others from their sources, which are
in [published.json](published.json). Networks, recipes and ways to choose a result differ; one binomial standard
deviation of a single run is 0.2 to 0.3 points. Made by
`python benchmarks/accuracy.py {arguments}`.

![test accuracy against epochs and against parameters](accuracy.png)

{as_markdown(rows)}
"""


if __name__ == "__main__":
    run_command(main)
