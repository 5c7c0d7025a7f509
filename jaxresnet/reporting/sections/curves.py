"""The section with the curves of one run or of groups of runs."""

import functools
from collections.abc import Sequence

from jaxresnet.data.resolution import size_text
from jaxresnet.reporting.figures.curves import Curve, curves
from jaxresnet.reporting.figures.drawing import picture
from jaxresnet.reporting.page import Picture, Section
from jaxresnet.reporting.sections.paper import like_figure
from jaxresnet.runs.groups import RunGroup
from jaxresnet.runs.records import EpochRecord


def curves_section(groups: Sequence[RunGroup]) -> Section:
    """The section with the curves of loss, accuracy and learning rate by epoch."""
    histories = [history for group in groups for history in group.histories]
    if not any(history.epochs for history in histories):
        return Section("Curves", "No epoch is finished yet.")
    evaluated = dict.fromkeys(history.split for history in histories if history.split)
    names = {"train": "training"} | {split: split for split in evaluated}
    if len(groups) == 1:  # of several groups, each has one colour for all of its curves
        averages = [f"{split}_average" for split in evaluated]
        names |= {
            name: name.replace("_average", ", average of the weights")
            for name in averages
            if any(record.accuracy(name) is not None for history in histories for record in history.epochs)
        }
    papers = min(
        like_figure(history.plan, "Figures 4 and 5") for history in histories
    )  # of all runs or of none
    return Section(
        "Loss and accuracy by epoch",
        "Training values are means over the epoch while the network learns, on augmented images and with dropout "
        f"where the run has them.{_sizes_note(groups)}{papers}",
        pictures=_curve_pictures(groups, names),
    )


def _sizes_note(groups: Sequence[RunGroup]) -> str:
    """A sentence on the sizes of the training images of one group, if they change."""
    sizes = [size_text(phase.size) for phase in groups[0].histories[0].plan.phases]
    if not curve_marks(groups):
        return ""
    return (
        f" Dotted lines: the size of the training images changes ({', '.join(sizes)}), as planned for "
        f"{groups[0].histories[0].config.epochs} epochs. Evaluations always have the last size."
    )


def curve_marks(groups: Sequence[RunGroup]) -> list[float]:
    """Where the size of the training images changes, in epochs. Several groups, which may differ in it, have none."""
    if len(groups) > 1:
        return []
    plan = groups[0].histories[0].plan
    return [phase.end * plan.config.batch_size / plan.train_examples for phase in plan.phases[:-1]]


def _curve_pictures(groups: Sequence[RunGroup], names: dict[str, str]) -> list[Picture]:
    """The pictures of the curves. `names` maps each split to its name in the legends."""
    draw = functools.partial(curves, groups, marks=curve_marks(groups))
    losses = [Curve(name, lambda record, split=split: record.loss(split)) for split, name in names.items()]
    accuracies = [
        Curve(name, lambda record, split=split: record.accuracy(split)) for split, name in names.items()
    ]
    dashed = " (dashed: training)" if len(groups) > 1 and len(names) > 1 else ""
    return [
        picture("loss.png", f"Loss{dashed}", lambda: draw(losses, "loss")),
        picture("accuracy.png", f"Accuracy{dashed}", lambda: draw(accuracies, "accuracy (%)", 100)),
        picture(
            "learning_rate.png",
            "Learning rate at the epoch's last step",
            lambda: draw([Curve("", learning_rate)], "learning rate", from_zero=True),
        ),
    ]


def learning_rate(record: EpochRecord) -> float:
    """The learning rate of an epoch's last step."""
    return record.learning_rate
