"""The page that compares several runs: their results, the settings that differ, their curves."""

from collections.abc import Sequence

from jaxresnet.config.schema import differing_settings
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
