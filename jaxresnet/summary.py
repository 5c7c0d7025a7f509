"""Print a network's layers: `python -m jaxresnet.summary --config resnet18`.

It shows each layer's output shape (height, width, channels), number of parameters and multiply-accumulates (MACs) per
image. The names are those in the network's variables, which count stages from 0. The data set is not read.
"""

if __name__ == "__main__":  # first, because the imports below take half a second
    from jaxresnet.errors import begin_command

    begin_command()

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxresnet.config.flags import ArgumentParser, add_config_arguments, config_from_arguments
from jaxresnet.data.sources import open_source
from jaxresnet.errors import run_command
from jaxresnet.machine.memory import require_address_space
from jaxresnet.plan import resolve

if TYPE_CHECKING:
    from jaxresnet.network.describe import LayerInfo


def main(argv: Sequence[str]) -> None:
    """Run the command with the arguments `argv`."""
    parser = ArgumentParser(prog="python -m jaxresnet.summary", description=__doc__)
    add_config_arguments(parser)
    args = parser.parse(argv)
    config = config_from_arguments(args)
    source = f"{args.config}: " if args.config else ""
    plan = resolve(config, open_source(config.data, source).info, source)

    require_address_space(1.5)
    from jaxresnet.network.describe import describe  # here, so that --help is answered at once

    print(as_text(describe(plan)))


def as_text(layers: "list[LayerInfo]") -> str:
    """The layers as a table of text, with the totals below it."""
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
    lines.append("stage0_block0 is the first block of stage 1: layer1.0 in exported weights")
    lines.append(f"total MACs per image: {sum(layer.macs for layer in layers):,}")
    lines.append(f"total parameters: {sum(layer.parameters for layer in layers):,}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
