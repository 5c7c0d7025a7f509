"""Writing a network in a format, reading it again, and putting it in its place only if it computes the same."""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxresnet.data.sources import reopen_source
from jaxresnet.data.splits import load_split
from jaxresnet.disk import require
from jaxresnet.errors import UserError
from jaxresnet.exporting import huggingface, onnx_graph, stablehlo, timm_resnet
from jaxresnet.exporting.request import Reader, Request
from jaxresnet.trained.load import TrainedNetwork
from jaxresnet.trained.weights import save_weights

IMAGES, BATCH = 256, 64
"""Number of images that are compared, in all and at a time."""

BATCH_PIXELS, BYTES = 2**18, 2**28
"""The most that these take together. Of images larger than 64 x 64 pixels fewer are compared at a time, and of very
large ones fewer in all."""

ALLOWED, ALLOWED_HALF = 1e-4, 1e-2
"""The largest difference allowed, as a share of the largest output: of float32, and of kernels in float16."""


@dataclass(frozen=True)
class Format:
    """How a format is written to a path, which does not exist yet, and how the network is read from it.

    `write` may also write other files into the same folder. `folder` says that the path is a folder.
    """

    write: Callable[[Request, Path], None]
    read: Callable[[Request, Path], Reader]
    folder: bool = False


def _write_safetensors(request: Request, path: Path) -> None:
    notes = {"origin": json.dumps(request.metadata()["origin"])}
    save_weights(path, request.network.plan, request.network.variables, half=request.half, notes=notes)


FORMATS = {
    "safetensors": Format(_write_safetensors, Request.read_weights),
    "stablehlo": Format(stablehlo.write, stablehlo.read),
    "onnx": Format(onnx_graph.write, onnx_graph.read),
    "timm": Format(timm_resnet.write, timm_resnet.read),
    "huggingface": Format(huggingface.write, huggingface.read, folder=True),
}
"""The formats by name."""


@dataclass(frozen=True)
class Comparison:
    """What was compared: `images` and `by` in words, and the largest difference of the outputs, and what is allowed.

    `same` of the `examples` images have the same class.
    """

    images: str
    by: str
    largest: float
    allowed: float
    same: int
    examples: int


def export(format_name: str, request: Request, out: Path) -> tuple[Comparison, list[Path]]:
    """Export a network to `out`. Returns the comparison with the original, and every file that was written.

    An `out` that exists is replaced when the new one is complete and was compared. Raises UserError if it computes
    something else than the original, cannot be written, or is not to be replaced, and what the format raises; then
    nothing is changed.
    """
    form, out = FORMATS[format_name], Path(os.path.realpath(out))
    require("a folder" if form.folder else "a file", out)
    if form.folder:
        huggingface.require_ours(out)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            made = Path(folder) / out.name
            form.write(request, made)
            comparison = compare(request, form.read(request, made))
            return comparison, _put(Path(folder), out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None


def _put(folder: Path, out: Path) -> list[Path]:
    """Move what is in `folder` to where `out` is, each file at once, and that of the name of `out` last."""
    made = folder / out.name
    if made.is_dir() and not out.exists():
        made.rename(out)
        return sorted(out.iterdir())
    target = out if made.is_dir() else out.parent
    found = sorted((made if made.is_dir() else folder).iterdir(), key=lambda path: path.name == out.name)
    for path in found:
        require("a file", target / path.name)
    for path in found:
        path.replace(target / path.name)
    return sorted(target / path.name for path in found)


def compare(request: Request, reader: Reader) -> Comparison:
    """Compare the outputs for some images. Raises UserError if they are not the same."""
    images, words = sample_images(request.network)
    batches = np.split(
        images, len(images) // batch_of(request.network)
    )  # one size, because JAX compiles anew for another
    ours = np.concatenate([request.outputs(request.network.variables, each) for each in batches])
    theirs = np.concatenate([np.asarray(reader.outputs(each)) for each in batches])
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        raise UserError(
            f"expected finite {request.output_name} {list(ours.shape)}, found others: {list(theirs.shape)}"
        )
    largest = float(np.abs(ours - theirs).max())
    allowed = float((ALLOWED_HALF if request.half else ALLOWED) * max(1.0, np.abs(ours).max()))
    same = ours.argmax(1) == theirs.argmax(1)
    # Two classes that are as likely as each other may change places by rounding.
    top = np.sort(ours, axis=1)
    decided = top[:, -1] - top[:, -2] > allowed if ours.shape[1] > 1 else np.ones(len(ours), bool)
    if not largest <= allowed or (decided & ~same).any():
        raise UserError(
            f"the export computes something else: expected {request.output_name} that differ by at most {allowed:.1e} "
            f"on {words}, found {largest:.1e} and another class for {(~same).sum()}; nothing was written"
        )
    return Comparison(words, reader.by, largest, allowed, int(same.sum()), len(images))


def batch_of(network: TrainedNetwork) -> int:
    """The number of images that are compared at a time."""
    height, width, _ = network.info.image_shape
    return max(1, min(BATCH, BATCH_PIXELS // (height * width)))


def sample_images(network: TrainedNetwork) -> tuple[np.ndarray, str]:
    """The uint8 images [N, H, W, C] to compare, and what they are: test images if at hand, else random ones.

    They are whole batches, if possible IMAGES images.
    """
    batch = batch_of(network)
    bytes_of_batch = batch * math.prod(network.info.image_shape)
    number = batch * max(1, min(IMAGES // batch, BYTES // bytes_of_batch))
    # The data is not where it was or cannot be read, or other data has its name now.
    with contextlib.suppress(UserError, OSError):
        source = reopen_source(network.config)
        if source.at_hand and network.info.test_examples >= number:
            images = load_split(source, "test", expected=network.info).images[:number]
            if len(images) == number:  # a folder may have fewer pictures than there were
                return images, f"{number} test images of {network.info.name}"
    images = np.random.default_rng(0).integers(0, 256, (number, *network.info.image_shape), np.uint8)
    return images, f"{number} random images"
