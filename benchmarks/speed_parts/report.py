"""The report of benchmarks/speed.py: what was measured, in Markdown."""

from typing import Any

from jaxresnet.reporting.tables import as_markdown

REFERENCE = "PyTorch float32, eager"
STEPS = {
    "name": "",
    "images_per_second": "images/s, median",
    "range": "range",
    "ratio": "to PyTorch float32 eager",
    "ceiling": "of the matrix product's rate",
}
TRAIN_STEPS = STEPS | {
    "compile_seconds": "seconds to compile",
    "memory": "MiB of temporary arrays on each device",
}
SIZES = {
    "side": "side of the images",
    "seconds": "seconds, median",
    "range": "range",
    "time": "to the largest",
    "macs": "multiply-accumulates, to the largest",
    "memory": "MiB of temporary arrays on each device",
}
CONVOLUTIONS = {
    "convolution": "kernel/stride, channels, map",
    "count": "in the network",
    "forward": "forward",
    "inputs": "gradient of the inputs",
    "kernel": "gradient of the kernel",
}
INPUT = {
    "pipeline": "",
    "images_per_second": "images/s",
    "ratio": "to the first",
    "microseconds": "microseconds more for an image",
}
START = {
    "compilation_cache": "compilation cache",
    "seconds_to_first_step": "seconds to the first step",
    "compile_seconds": "of them compiling, beside other things",
    "images_per_second": "images/s of the epoch",
    "seconds": "seconds of the whole command",
}
SECTIONS = {
    "sizes": ("Train step on smaller images", SIZES),
    "convolutions": ("Convolutions, GFLOP/s", CONVOLUTIONS),
    "input": ("Input pipeline", INPUT),
    "start": ("The whole command, one epoch of a tenth of the images", START),
}
"""The parts whose rows are a table as they are: their headings, and each key's column."""


def report(results: dict[str, Any]) -> str:
    """The report of the parts that `results` holds."""
    environment = results["environment"]
    devices = environment["devices"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [
        "# Speed",
        f"{environment['cpu']}, {environment['cpu_cores']} cores; {len(devices)} x {devices[0]}; {versions}; batches "
        f"of {results['batch_size']}. Made by `{results['command']}`.",
    ]
    if "steps" in results:
        parts += step_sections(results["steps"])
    for part, (title, columns) in SECTIONS.items():
        if part in results:
            parts += [f"## {title}", table(results[part], columns)]
    return "\n\n".join(parts) + "\n"


def step_sections(steps: dict[str, Any]) -> list[str]:
    """The tables of both steps, and what could not be measured."""
    parts = []
    for what, title, columns in (
        ("train", "Train step", TRAIN_STEPS),
        ("evaluate", "Evaluation step", STEPS),
    ):
        rows = [row for row in steps["rows"] if row["what"] == what]
        parts += [f"## {title}", table([step_row(row, rows) for row in rows], columns)]
    return parts + [f"Not measured: {line}" for line in steps["skipped"]]


def step_row(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of a step's table, with what is reckoned from its others."""
    if "images_per_second" not in row:
        return {"name": f"{row['name']}: {row['gflops_per_second']:,.0f} GFLOP/s"}
    more: dict[str, Any] = {
        "range": f"{row['lowest']:,.0f} to {row['highest']:,.0f}",
        "ceiling": f"{row['share_of_ceiling']:.0%}",
    }
    if "temporary_bytes" in row:
        more["memory"] = f"{row['temporary_bytes'] / 2**20:,.0f}"
    if reference := [each["images_per_second"] for each in rows if each["name"] == REFERENCE]:
        more["ratio"] = f"{row['images_per_second'] / reference[0]:.2f}"
    return row | more


def table(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """Rows as a Markdown table; `columns` gives each key its heading."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"
        return "" if value is None else str(value)

    return as_markdown([list(columns.values()), *([cell(row.get(key)) for key in columns] for row in rows)])
