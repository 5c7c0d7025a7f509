"""timm: the weights under timm's names, and beside them a Python file that makes timm's network of them.

timm's ResNets have no biases in their convolutions, so each is folded into the running mean after it, which it only
shifts. Their stem has a stride of 2 and a pool, for images of 224 pixels, which the Python file replaces.
"""

import dataclasses
import runpy
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

import jaxresnet
from jaxresnet.errors import UserError
from jaxresnet.exporting.request import Reader, Request
from jaxresnet.runs.files import write_to_disk
from jaxresnet.trained.weights import from_state_dict, read_arrays, save_arrays, to_state_dict

STRIDES, STEM_CHANNELS = (1, 2, 2, 2), 64
"""What timm's ResNet has built in: the strides of its four stages, and the channels in front of them."""

_NAMES = {"shortcut.": "downsample.", "linear.": "fc."}
"""Parts of names that differ: ours to timm's."""

_LOADER = '''"""Loads the weights beside this file into timm. Written by jaxresnet.export {version}.

    model = load()
    logits = model(preprocess(images))  # uint8 [B, {height}, {width}, {channels}] -> float32 [B, {classes}]
"""

from pathlib import Path

import timm
import torch
from safetensors.torch import load_file


def load(path=Path(__file__).with_name({file})):
    model = timm.create_model(
        "resnet18", layers={layers}, channels={stage_channels}, num_classes={classes}, in_chans={channels}
    )
    # Without these two lines timm loads the same weights without an error, and computes something else.
    model.conv1 = torch.nn.Conv2d({channels}, {stem}, {kernel}, stride=1, padding={padding}, bias=False)
    model.maxpool = torch.nn.Identity()
    model.load_state_dict(load_file(path))
    return model.eval()


def preprocess(images):
    """Normalised float32 images [B, C, H, W] of uint8 images [B, H, W, C]."""
    mean, std = torch.tensor({mean}), torch.tensor({std})
    return ((images / 255 - mean) / std).permute(0, 3, 1, 2)
'''


def loader_path(path: Path) -> Path:
    """The Python file that is written beside the weights in `path`."""
    return path.with_name(f"{path.stem}_timm.py")


def write(request: Request, path: Path) -> None:
    """Write the weights to `path`, and beside it the Python file that loads them.

    Raises UserError (exit code 2) if timm has no such network.
    """
    _require_expressible(request)
    state_dict = _without_biases(to_state_dict(request.network.variables))
    save_arrays(path, _renamed(state_dict, _NAMES), request.metadata_texts())
    model, info = request.network.config.model, request.network.info
    height, width, channels = info.image_shape
    # Only numbers and the file's name, as a literal, get into the program: no name of a class.
    program = _LOADER.format(
        file=ascii(path.name),
        version=jaxresnet.__version__,
        height=height,
        width=width,
        channels=channels,
        classes=info.classes,
        layers=model.stage_blocks,
        stage_channels=model.stage_channels,
        stem=model.stem_channels,
        kernel=model.stem_kernel,
        padding=(model.stem_kernel - 1) // 2,
        mean=info.mean,
        std=info.std,
    )
    write_to_disk(loader_path(path), "w", program)


def _require_expressible(request: Request) -> None:
    model = request.network.config.model
    problems = []
    if model.stage_strides != STRIDES:
        problems.append(f"model.stage_strides: timm's ResNet has {STRIDES}, found {model.stage_strides}")
    if model.stem_channels != STEM_CHANNELS:
        problems.append(
            f"model.stem_channels: timm's ResNet has {STEM_CHANNELS}, found {model.stem_channels}"
        )
    if problems:
        raise UserError(
            "\n".join(f"--format timm: {problem}: choose another format" for problem in problems), 2
        )


def _without_biases(state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict with each convolution's bias taken from the running mean of the BatchNorm after it."""
    norms = {"conv1": "bn1", "conv2": "bn2", "shortcut.0": "shortcut.1"}
    kept = dict(state_dict)
    for conv, norm in norms.items():
        for name in [name for name in kept if name.endswith(f"{conv}.bias")]:
            mean = f"{name.removesuffix(f'{conv}.bias')}{norm}.running_mean"
            kept[mean] = kept[mean] - kept.pop(name)
    return kept


def read(request: Request, path: Path) -> Reader:
    """The network that the Python file makes in timm. Without timm, the arrays are put into our own network."""
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:  # the latter from a torchvision for another torch
        reason = str(error).splitlines()[0]
        return _read_without_timm(request, path, reason)
    import torch

    loader = runpy.run_path(str(loader_path(path)))
    model = loader["load"](path)

    def outputs(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(loader["preprocess"](torch.from_numpy(images))).numpy()

    return Reader(outputs, f"timm {timm.__version__}")


def _read_without_timm(request: Request, path: Path, reason: str) -> Reader:
    """The arrays of the file in our own network, whose convolutions have no biases then."""
    plan = request.exact.plan.with_config(request.exact.config.replace({"model.conv_bias": False}))
    arrays = _renamed(read_arrays(path), {theirs: ours for ours, theirs in _NAMES.items()})
    variables = from_state_dict(plan, arrays)
    apply = jax.jit(dataclasses.replace(request.exact, plan=plan).apply)
    return Reader(
        lambda images: apply(variables, images),
        f"jaxresnet with the file's arrays; timm itself was not run: {reason}",
    )


def _renamed(state_dict: Mapping[str, np.ndarray], names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The state dict with parts of its names replaced."""
    renamed = {}
    for name, array in state_dict.items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = array
    return renamed
