"""The page that compares several runs: their results, the settings that differ, their curves."""

from collections.abc import Sequence

from jaxresnet.config.schema import differing_settings
from jaxresnet.reporting.figures import Curve, curves, picture
from jaxresnet.reporting.page import Page, Picture, Section
from jaxresnet.reporting.tables import comparison_table
from jaxresnet.runs.groups import RunGroup
from jaxresnet.runs.records import EpochRecord


def comparison_report(groups: Sequence[RunGroup]) -> Page:
    """The page that compares groups of runs. The runs of a group differ only in the seed."""
    results = Section(
        "Results",
        "Runs that differ only in their seed stand in one row, as mean ± standard deviation. The best epoch is "
        "chosen on the split that it is measured on, so it is optimistic; the last epoch is not chosen.",
        comparison_table(groups),
    )
    sections, settings = [results], settings_table(groups)
    if len(settings) > 1:
        sections.append(Section("Settings that differ", table=settings))
    title = f"{sum(len(group.histories) for group in groups)} runs compared"
    return Page(title, sections=[*sections, curves_section(groups)])


def settings_table(groups: Sequence[RunGroup]) -> list[tuple[str, ...]]:
    """A header, and a row for each setting in which a group differs from the first one, without the seed."""
    first, *others = [group.histories[0].config for group in groups]
    differing = [differing_settings(first, other) for other in others]
    rows: list[tuple[str, ...]] = [("setting", *(group.name for group in groups))]
    for name in {name: None for each in differing for name in each if name != "seed"}:
        base = next(each[name][0] for each in differing if name in each)
        values = [base, *(each[name][1] if name in each else base for each in differing)]
        rows.append((name, *map(str, values)))
    return rows


def curves_section(groups: Sequence[RunGroup]) -> Section:
    """The section with the curves of loss, accuracy and learning rate by epoch."""
    histories = [history for group in groups for history in group.histories]
    if not any(history.epochs for history in histories):
        return Section("Curves", "No epoch is finished yet.")
    evaluated = dict.fromkeys(history.split for history in histories if history.split)
    names = {"train": "training"} | {split: split for split in evaluated}
    return Section(
        "Loss and accuracy by epoch",
        "The paper's Figures 4 and 5. Training values are means over the epoch while the network learns, on "
        "augmented images and with dropout where the run has them.",
        pictures=_curve_pictures(groups, names),
    )


def _curve_pictures(groups: Sequence[RunGroup], names: dict[str, str]) -> list[Picture]:
    """The pictures of the curves. `names` maps each split to its name in the legends."""
    losses = [Curve(name, lambda record, split=split: record.loss(split)) for split, name in names.items()]
    accuracies = [
        Curve(name, lambda record, split=split: record.accuracy(split)) for split, name in names.items()
    ]
    dashed = " (dashed: training)" if len(groups) > 1 else ""
    return [
        picture("loss.png", f"Loss{dashed}", lambda: curves(groups, losses, "loss")),
        picture("accuracy.png", f"Accuracy{dashed}", lambda: curves(groups, accuracies, "accuracy (%)", 100)),
        picture(
            "learning_rate.png",
            "Learning rate at the epoch's last step",
            lambda: curves(groups, [Curve("", learning_rate)], "learning rate", from_zero=True),
        ),
    ]


def learning_rate(record: EpochRecord) -> float:
    """The learning rate of an epoch's last step."""
    return record.learning_rate
