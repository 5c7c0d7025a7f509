"""Tell what a trained network sees in pictures: `python -m jaxresnet.predict runs/digits photo.jpg holiday/`.

On a terminal it shows the most probable classes of each picture with their probabilities. If its output goes elsewhere,
or with --json, it writes a line of JSON for each: {"file": ..., "class": ..., "probability": ..., "top": [[class,
probability], ...]}. The order is that of the arguments. Pictures may have any format that Pillow reads, any size and
any mode. A file that cannot be used is named on stderr, the rest goes on, and the exit code is 1.
"""

if __name__ == "__main__":  # first, because the imports below take a quarter of a second
    from jaxresnet.errors import begin_command

    begin_command()

import argparse
import io
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxresnet.config.flags import ArgumentParser, add_device_argument, add_network_arguments
from jaxresnet.errors import UserError, printable, run_command, tell
from jaxresnet.machine.memory import require_address_space
from jaxresnet.trained.shipped import find_network

if TYPE_CHECKING:  # they load NumPy, Pillow and JAX
    import numpy as np

    from jaxresnet.data.pictures import Fit
    from jaxresnet.trained.load import TrainedNetwork

    Read = Callable[[str, tuple[int, int, int]], np.ndarray]

STDIN = "-"

MOST_ON_SHEET = 48
"""Pictures on a contact sheet: as many as can be told apart on a screen."""

SHEET_PIXELS = 128
"""The longer side of a picture on a contact sheet, at least."""


def main(argv: Sequence[str]) -> None:
    """Run the command with the arguments `argv`. Exits with 1 if a file cannot be used."""
    args = make_parser().parse(argv)
    for flag, number in (("--top", args.top), ("--batch-size", args.batch_size)):
        if number < 1:
            raise UserError(f"{flag}: expected at least 1, found {number}", 2)
    sheet: Path | None = args.contact_sheet
    if sheet and sheet.suffix.lower() != ".png":
        raise UserError(f"--contact-sheet: expected a name that ends in .png, found {sheet}", 2)
    if sheet and not sheet.parent.is_dir():
        raise UserError(f"--contact-sheet: expected a folder that exists, found {sheet.parent}")
    find_network(args.network)  # before anything is loaded
    require_address_space(2)
    if not predict_command(args):
        sys.exit(1)


def make_parser() -> ArgumentParser:
    """The command line's arguments."""
    parser = ArgumentParser(prog="python -m jaxresnet.predict", description=__doc__)
    add_network_arguments(parser)
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE|FOLDER|GLOB",
        help="picture, folder whose pictures are taken with those in the folders below it, sorted, or quoted pattern "
        "such as 'scans/**/*.png'; - is a picture on stdin",
    )
    parser.add_argument(
        "--top",
        type=int,
        default=3,
        metavar="K",
        help="how many classes to tell of each picture (default: 3)",
    )
    parser.add_argument("--json", action="store_true", help="write JSON lines on a terminal, too")
    parser.add_argument(
        "--fit",
        choices=["crop", "squash"],
        default="crop",
        help="how a picture of other proportions becomes an image for the network. crop: its largest centred part of "
        "the right proportions. squash: all of it, its sides scaled differently (default: crop)",
    )
    parser.add_argument(
        "--contact-sheet",
        type=Path,
        metavar="FILE.png",
        help=f"draw the pictures as they were cut out, with class and probability; the first {MOST_ON_SHEET}",
    )
    parser.add_argument(
        "--batch-size", type=int, default=128, metavar="INT", help="most pictures at a time (default: 128)"
    )
    add_device_argument(parser)
    return parser


def predict_command(args: argparse.Namespace) -> bool:
    """Predict and print what the parsed arguments say. Returns whether every file could be used. Raises UserError."""
    # Imported here and below, so that --help and a wrong flag are answered at once.
    from jaxresnet.data.pictures import refuse_huge_pictures

    refuse_huge_pictures()
    files, all_found = find_files(args.files)
    if not files:
        return False
    read = make_reader(files, args.fit)
    network = start_network(args, len(files))
    predicted = Predicted([])
    show_predictions(args, network, files, read, predicted)
    if args.contact_sheet:
        write_contact_sheet(args.contact_sheet, network, read, predicted)
    return all_found and predicted.number == len(files)


def find_files(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The files that the arguments mean, in their order, and whether each argument means one. Tells what is missing."""
    from jaxresnet.data.pictures import named_pictures

    files: list[str] = []
    problems: list[Exception] = []
    for argument in arguments:
        try:
            files += [argument] if argument == STDIN else named_pictures(argument, problems.append)
        except (UserError, OSError) as error:
            problems.append(error)
    for problem in problems:
        tell_problem(problem)
    return files, not problems


def tell_problem(problem: Exception) -> None:
    """Print an error of a file in one line on stderr, whatever its name is."""
    if isinstance(problem, OSError):
        problem = UserError(f"{problem.filename}: cannot read it: {problem.strerror}")
    tell(printable(f"error: {problem}"))


def make_reader(files: Sequence[str], fit: "Fit") -> "Read":
    """The function that reads one of the files. What is on stdin is read here, if it is one of them."""
    from jaxresnet.data.pictures import decode_picture, read_picture

    content = sys.stdin.buffer.read() if STDIN in files and sys.stdin else b""

    def read(file: str, shape: tuple[int, int, int]) -> "np.ndarray":
        if file == STDIN:
            return decode_picture(io.BytesIO(content), STDIN, shape, fit)
        return read_picture(Path(file), shape, fit)

    return read


def start_network(args: argparse.Namespace, files: int) -> "TrainedNetwork":
    """Load the network that the arguments name. A CPU is divided into as many devices as are useful for `files`."""
    from jaxresnet.machine.workarounds import own_process

    own_process()
    from jaxresnet.machine.cache import use_compilation_cache
    from jaxresnet.machine.devices import available_cores, start_devices
    from jaxresnet.trained.load import load_network

    mesh = start_devices(args.device, min(available_cores(), files))
    use_compilation_cache(least_seconds=0.1)  # compiling for one picture takes half a second, starting two
    return load_network(args.network, args.checkpoint, mesh, average=args.average)


@dataclass
class Predicted:
    """The number of pictures that were predicted, and the first of them, at most MOST_ON_SHEET and one more.

    Each is a file with the probabilities of its classes, float32 [classes].
    """

    first: "list[tuple[str, np.ndarray]]"
    number: int = 0

    def add(self, file: str, probabilities: "np.ndarray") -> None:
        """Count a picture."""
        self.number += 1
        if len(self.first) <= MOST_ON_SHEET:
            self.first.append((file, probabilities))


def show_predictions(
    args: argparse.Namespace,
    network: "TrainedNetwork",
    files: Sequence[str],
    read: "Read",
    predicted: Predicted,
) -> None:
    """Predict the files and print each prediction as it comes; the pictures are added to `predicted`."""
    from jaxresnet.machine.devices import available_cores
    from jaxresnet.machine.memory import out_of_memory_told
    from jaxresnet.reporting.console.predictions import PredictionConsole
    from jaxresnet.trained.prediction import fitting_batch_size, predict_files

    def read_image(file: str) -> "np.ndarray":
        return read(file, network.info.image_shape)

    batch_size = fitting_batch_size(args.batch_size, len(files), network.mesh.devices.size)
    with (
        out_of_memory_told(batch_size, network.mesh, "lower --batch-size"),
        PredictionConsole(network.class_names, args.top, len(files), args.json) as console,
    ):
        for file, result in predict_files(network, files, read_image, batch_size, available_cores()):
            if isinstance(result, UserError):
                tell_problem(result)
            else:
                console.show(file, result)
                predicted.add(file, result)
            console.done()


def write_contact_sheet(path: Path, network: "TrainedNetwork", read: "Read", predicted: Predicted) -> None:
    """Draw the first predicted pictures in a PNG, and tell on stderr which are left out. Raises UserError."""
    from jaxresnet.reporting.console.predictions import ranking
    from jaxresnet.reporting.figures.images import contact_sheet
    from jaxresnet.runs.files import write_named

    if not predicted.number:
        return
    height, width, _ = network.info.image_shape
    scale = math.ceil(SHEET_PIXELS / max(height, width))
    shown, left_out = predicted.first[:MOST_ON_SHEET], predicted.first[MOST_ON_SHEET:]
    pictures = [read(file, (scale * height, scale * width, 3)) for file, _ in shown]
    names = [Path(file).name for file, _ in shown]
    best = [ranking(network.class_names, probabilities, 1)[0] for _, probabilities in shown]
    try:
        write_named(path, contact_sheet(pictures, names, best))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    what = ""
    if left_out:
        what = f": {len(shown)} of {predicted.number:,} pictures, without {left_out[0][0]} and those after it"
    tell(printable(f"written to {path}{what}"))


if __name__ == "__main__":
    run_command(main)
