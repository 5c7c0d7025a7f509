"""Export a trained network for other programs: `python -m jaxresnet.export runs/digits digits.onnx`.

What is written is read again and compared with the original before it takes its place.
"""

if __name__ == "__main__":  # first, because the imports below take half a second
    from jaxresnet.errors import begin_command

    begin_command()

import argparse
from collections.abc import Sequence
from pathlib import Path

from jaxresnet.config.files import find_config
from jaxresnet.config.flags import ArgumentParser, add_device_argument, add_network_arguments
from jaxresnet.errors import UserError, printable, run_command
from jaxresnet.machine.memory import require_address_space
from jaxresnet.machine.workarounds import own_process
from jaxresnet.plan import Plan, load_plan

FORMATS = {
    "safetensors": "the weights under PyTorch's names, with the configuration: jaxresnet.load reads it",
    "stablehlo": "the prediction as a program of jax.export for CPU, GPU and TPU, and OUT.json",
    "onnx": "the prediction as a graph; needs the extra onnx",
    "timm": "the weights under the names of timm's ResNet, and a Python file that loads them",
    "huggingface": "a folder for the Hugging Face Hub: weights, config.json, model card",
}
SUFFIXES = {".safetensors": "safetensors", ".stablehlo": "stablehlo", ".onnx": "onnx"}
"""The formats that a suffix of OUT means."""


def main(argv: Sequence[str]) -> None:
    """Run the command with the arguments `argv`."""
    args = make_parser().parse(argv)
    args.format = args.format or SUFFIXES.get(args.out.suffix)
    if args.format is None:
        raise UserError(
            f"--format: expected one of {', '.join(FORMATS)}, found none, and an OUT that ends in none of "
            f"{', '.join(SUFFIXES)}",
            2,
        )
    for flag, given, formats in (
        ("--probabilities", args.probabilities, ("stablehlo", "onnx")),
        ("--dtype float16", args.dtype == "float16", ("safetensors", "huggingface")),
    ):
        if given and args.format not in formats:
            raise UserError(
                f"{flag}: expected with --format {' or '.join(formats)}, found with {args.format}", 2
            )
    require_address_space(2)
    own_process()
    plan = load_plan(args.config) if args.config else None
    export_command(args, plan)


def make_parser() -> ArgumentParser:
    """The command line's arguments."""
    parser = ArgumentParser(prog="python -m jaxresnet.export", description=__doc__)
    add_network_arguments(parser)
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write; with huggingface, a folder")
    parser.add_argument(
        "--format",
        choices=list(FORMATS),
        help=f"{'; '.join(f'{name}: {text}' for name, text in FORMATS.items())} (default: as the suffix of OUT says)",
    )
    parser.add_argument(
        "--config",
        type=find_config,
        metavar="FILE|NAME",
        help="configuration of a weights file that has none in it, such as one written by PyTorch",
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="with stablehlo and onnx: probabilities in place of logits",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16"],
        default="float32",
        help="of the kernels, with safetensors and huggingface; float16 halves the file (default: float32)",
    )
    add_device_argument(parser)
    return parser


def export_command(args: argparse.Namespace, plan: Plan | None) -> None:
    """Load, write, compare and tell, as the parsed arguments say; `plan` is that of --config. Raises UserError."""
    # Imported here, so that --help and a wrong flag are answered at once.
    from jaxresnet.exporting.origin import find_origin
    from jaxresnet.exporting.request import Request
    from jaxresnet.exporting.writing import batch_of, export
    from jaxresnet.machine.cache import use_compilation_cache
    from jaxresnet.machine.devices import start_devices
    from jaxresnet.machine.memory import out_of_memory_told
    from jaxresnet.trained.load import load_network

    mesh = start_devices(args.device, 1)
    use_compilation_cache()
    network = load_network(args.network, args.checkpoint, mesh, average=args.average, plan=plan)
    origin = find_origin(args.network, network, average=args.average)
    request = Request(network, origin, args.probabilities, args.dtype == "float16")
    with out_of_memory_told(batch_of(network), mesh, "a machine with more memory is needed"):
        found, written = export(args.format, request, args.out)
    print(
        f"compared on {found.images} ({printable(found.by)}): the {request.output_name} differ by at most "
        f"{found.largest:.1e} (allowed: {found.allowed:.1e}), the class is the same for {found.same} of "
        f"{found.examples}"
    )
    for path in written:
        print(f"written: {path} ({path.stat().st_size:,} bytes)")


if __name__ == "__main__":
    run_command(main)
