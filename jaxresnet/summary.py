"""Print a network's layers: `python -m jaxresnet.summary --config resnet18`.

It shows each layer's output shape (height, width, channels), number of parameters and multiply-accumulates (MACs) per
image. The names are those in the network's variables, which count stages from 0. Images are not read, and nothing is
downloaded: the classes and the size of the images are known, or told by tensorflow-datasets or the names of folders.
"""

if __name__ == "__main__":  # first, because the imports below take half a second
    from jaxresnet.errors import begin_command

    begin_command()

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxresnet.config.files import naming
from jaxresnet.config.flags import (
    ArgumentParser,
    add_config_arguments,
    config_from_arguments,
    setting_arguments,
)
from jaxresnet.data.resolution import Phase, size_text
from jaxresnet.data.sources import open_source
from jaxresnet.errors import run_command
from jaxresnet.machine.memory import require_address_space
from jaxresnet.machine.workarounds import own_process
from jaxresnet.plan import resolve
from jaxresnet.trained.initial import with_initial_model

if TYPE_CHECKING:
    from jaxresnet.network.describe import LayerInfo


def main(argv: Sequence[str]) -> None:
    """Run the command with the arguments `argv`."""
    parser = ArgumentParser(prog="python -m jaxresnet.summary", description=__doc__)
    add_config_arguments(parser)
    args = parser.parse(argv)
    require_address_space(1.5)
    own_process()
    config = with_initial_model(config_from_arguments(args))
    with naming(args.config, setting_arguments(args)):
        plan = resolve(config, open_source(config.data).outline)

    # Imported here, so that --help is answered at once.
    from jaxresnet.network.describe import describe, macs_of_phases

    print(as_text(describe(plan), training_notes(plan.phases, macs_of_phases(plan))))


def training_notes(phases: Sequence[Phase], macs: Sequence[int]) -> list[str]:
    """If the size of the training images changes: the `macs` of each of the phases, and their mean over the steps."""
    if len(phases) == 1:
        return []
    steps = [phase.end - phase.start for phase in phases]
    # Shares, because the number of steps is not known before the data set is downloaded.
    shares = [count / sum(steps) for count in steps]
    mean = sum(each * share for each, share in zip(macs, shares, strict=True))
    lines = [
        f"MACs per image of {size_text(phase.size)}, in {share:.1%} of the steps: {each:,}"
        for phase, share, each in zip(phases, shares, macs, strict=True)
    ]
    return [*lines, f"mean MACs per training image: {mean:,.0f} ({mean / macs[-1]:.1%} of the last)"]


def as_text(layers: "list[LayerInfo]", notes: Sequence[str] = ()) -> str:
    """The layers as a table of text, with the totals below it, and `notes` before the last of these."""
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
    lines += notes
    lines.append(f"total parameters: {sum(layer.parameters for layer in layers):,}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
