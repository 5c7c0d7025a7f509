"""StableHLO: the whole prediction as a program of `jax.export`, which runs without flax and without this package."""

from pathlib import Path

import jax
import numpy as np
from jax import export

from jaxresnet.exporting.request import Reader, Request
from jaxresnet.runs.files import json_text, write_to_disk

PLATFORMS = ("cpu", "cuda", "tpu")
"""The platforms that a program is compiled for when it is loaded. One more costs no byte: the program is the same."""


def write(request: Request, path: Path) -> None:
    """Write the program, with the weights as constants in it, and beside it its metadata: PATH.json."""
    variables = jax.device_get(request.network.variables)
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *request.network.info.image_shape), np.uint8)
    program = jax.jit(lambda images: request.outputs(variables, images))
    exported = export.export(program, platforms=PLATFORMS)(images)
    write_to_disk(path, "w", bytes(exported.serialize()))
    metadata = request.metadata() | {"platforms": PLATFORMS, "jax": jax.__version__}
    write_to_disk(path.with_name(f"{path.name}.json"), "w", json_text(metadata))


def read(request: Request, path: Path) -> Reader:
    """The program in a file."""
    program = export.deserialize(bytearray(path.read_bytes()))
    return Reader(jax.jit(program.call), f"jax.export of jax {jax.__version__}")
