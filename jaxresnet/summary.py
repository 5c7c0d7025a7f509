"""Print a network's layers: `python -m jaxresnet.summary --config configs/resnet18.toml`.

Each layer's output shape (height, width, channels), parameters and multiply-accumulates per image. No data
set is needed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxresnet.config import ArgumentParser, add_config_arguments, config_from_arguments
from jaxresnet.errors import run_command

if TYPE_CHECKING:
    from jaxresnet.model import LayerInfo


def main(argv: Sequence[str]) -> None:
    """Run the command with the arguments `argv`."""
    parser = ArgumentParser(prog="python -m jaxresnet.summary", description=__doc__)
    add_config_arguments(parser)
    config = config_from_arguments(parser.parse(argv))

    from jaxresnet.model import describe  # here, so that --help is answered at once

    print(as_text(describe(config)))


def as_text(layers: "list[LayerInfo]") -> str:
    """The layers as a table, with the totals below it."""
    rows = [("layer", "kind", "output", "parameters", "MACs")]
    for layer in layers:
        shape = " x ".join(map(str, layer.output_shape))
        rows.append((layer.name, layer.kind, shape, f"{layer.parameters:,}", f"{layer.macs:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            f"{cell:{'<' if column < 3 else '>'}{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.append(f"total MACs per image: {sum(layer.macs for layer in layers):,}")
    lines.append(f"total parameters: {sum(layer.parameters for layer in layers):,}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
