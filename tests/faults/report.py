"""What the campaign found, as Markdown."""

from typing import Any

from faults.random_signals import SIGNALS
from jaxresnet.reporting.tables import as_markdown


def report(results: dict[str, Any]) -> str:
    """The tables of what was tried."""
    paragraphs = [
        "# Faults",
        "Made by `python tests/fault_campaign.py`, which says what is compared: a small network on the digits, four "
        "epochs, a checkpoint about every second.",
    ]
    if rows := results.get("random"):
        paragraphs += [
            "## Signals at random moments",
            f"Each run is hit at a moment uniform over the {results['seconds_undisturbed']} seconds of the undisturbed "
            "run and a tenth more, and again with probability 1/3 at each start after.",
            as_markdown(signals_table(rows)),
        ]
    if rows := results.get("staged"):
        table = [("fault", "what happened", "held")]
        table += [(row["fault"], row["result"], "; ".join(row["problems"]) or "yes") for row in rows]
        paragraphs += [
            "## Staged faults",
            "Each goes on, where it can, to the undisturbed run's result, bit for bit.",
            as_markdown(table),
        ]
    return "\n\n".join(paragraphs) + "\n"


def signals_table(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A header and a row for each kind of signal."""
    table: list[tuple[str, ...]] = [
        ("signal", "runs", "signals that hit", "starts in all", "equal to the undisturbed run, bit for bit")
    ]
    for fault in SIGNALS:
        of_fault = [row for row in rows if row["fault"] == fault]
        hits = sum(len(row["moments"]) for row in of_fault)
        starts = sum(row["starts"] for row in of_fault)
        equal = sum(not row["problems"] for row in of_fault)
        table.append((fault, str(len(of_fault)), str(hits), str(starts), str(equal)))
    return table
