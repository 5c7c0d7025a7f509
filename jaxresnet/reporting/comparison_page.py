"""The page that compares several runs: their results, the settings that differ, their curves."""

from collections.abc import Sequence

from jaxresnet.config.schema import differing_settings
from jaxresnet.data.resolution import size_text
from jaxresnet.reporting.page import Page, Section
from jaxresnet.reporting.sections.curves import curves_section
from jaxresnet.reporting.tables import comparison_table
from jaxresnet.runs.groups import RunGroup


def comparison_report(groups: Sequence[RunGroup]) -> Page:
    """The page that compares groups of runs. The runs of a group differ only in the seed."""
    results = Section(
        "Results",
        "Runs that differ only in their seed stand in one row, as mean ± standard deviation. The best epoch is "
        "chosen on the split that it is measured on, so it is optimistic; the last epoch is not chosen.",
        # Accuracies first, which a phone shows without scrolling.
        [(row[0], *row[4:7], *row[1:4], *row[7:]) for row in comparison_table(groups)],
    )
    sections = [results]
    for title, table in (("Settings", settings_table(groups)), ("Facts of the data", data_table(groups))):
        if len(table) > 1:
            sections.append(Section(f"{title} that differ", table=table))
    title = f"{sum(len(group.histories) for group in groups)} runs compared"
    return Page(title, sections=[*sections, curves_section(groups)])


def data_table(groups: Sequence[RunGroup]) -> list[tuple[str, ...]]:
    """A header, and a row for each fact of the data that is not the same for all groups."""
    facts = [group.histories[0].plan.info for group in groups]
    rows = {
        "training images": [f"{info.train_examples:,}" for info in facts],
        "test images": [f"{info.test_examples:,}" for info in facts],
        "classes": [f"{info.classes:,}" for info in facts],
        "size": [size_text(info.image_shape[:2]) for info in facts],
        "SHA-256 of the images": [info.digest[:12] or "known in advance" for info in facts],
    }
    differing = [(name, *values) for name, values in rows.items() if len(set(values)) > 1]
    return [("data", *(group.name for group in groups)), *differing]


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
