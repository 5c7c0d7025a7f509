"""Weights to and from PyTorch, and safetensors files.

The names are those of the usual PyTorch code for CIFAR ResNets (conv1, bn1, layer1.0.conv1, shortcut.0,
linear), the layouts PyTorch's: OIHW kernels, [out, in] matrices. A safetensors file holds such a state
dict, so that PyTorch reads it without this package; this package's configuration travels in its metadata.
No pickle is involved.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxresnet.config import Config, dump_config, override, parse_config
from jaxresnet.errors import UserError
from jaxresnet.step import Variables, make_init

_MODULES = {
    "stem_conv": "conv1",
    "stem_norm": "bn1",
    "head": "linear",
    "conv1": "conv1",
    "norm1": "bn1",
    "conv2": "conv2",
    "norm2": "bn2",
    "shortcut_conv": "shortcut.0",
    "shortcut_norm": "shortcut.1",
}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def _torch_name(path: tuple[str, ...]) -> str:
    """layer1.0.bn1.weight for ("params", "stage0_block0", "norm1", "scale")."""
    *blocks, module, leaf = path[1:]
    prefix = ""
    if blocks:
        stage, block = blocks[0].removeprefix("stage").split("_block")
        prefix = f"layer{int(stage) + 1}.{block}."
    return f"{prefix}{_MODULES[module]}.{_LEAVES[leaf]}"


def _to_torch(array: np.ndarray) -> np.ndarray:
    """HWIO to OIHW, [in, out] to [out, in]; vectors as they are."""
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.T


def _from_torch(array: np.ndarray) -> np.ndarray:
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T


def to_state_dict(variables: Variables) -> dict[str, np.ndarray]:
    """The network's parameters and running statistics as a PyTorch state dict of float32 arrays.

    `running_var` is the biased variance that flax keeps; PyTorch keeps the unbiased one, n/(n-1) times as
    large for n values per channel and batch. Both evaluate with whatever they hold, so the logits are the same.
    """
    flat = flatten_dict(jax.device_get(variables))
    return {_torch_name(path): np.ascontiguousarray(_to_torch(leaf)) for path, leaf in flat.items()}


def from_state_dict(config: Config, state_dict: Mapping[str, np.ndarray]) -> Variables:
    """The variables of `config`'s network from a PyTorch state dict of arrays; `num_batches_tracked` is ignored.

    Raises UserError, one line for each name that is missing or unknown or whose shape does not fit.
    """
    template = jax.eval_shape(make_init(config)).variables
    expected = {_torch_name(path): (path, leaf) for path, leaf in flatten_dict(template).items()}
    found = {name: value for name, value in state_dict.items() if not name.endswith("num_batches_tracked")}
    problems = [f"{name}: expected by the network, not found" for name in expected if name not in found]
    problems += [f"{name}: found, not expected by the network" for name in found if name not in expected]
    variables = {}
    for name, (path, leaf) in expected.items():
        if name not in found:
            continue
        array = np.asarray(found[name])
        shape = _to_torch(np.empty(leaf.shape)).shape
        if array.shape != shape:
            problems.append(f"{name}: expected shape {list(shape)}, found {list(array.shape)}")
        elif not np.issubdtype(array.dtype, np.floating):
            problems.append(f"{name}: expected floating-point numbers, found {array.dtype}")
        else:
            variables[path] = np.ascontiguousarray(_from_torch(array), np.float32)
    if problems:
        raise UserError("\n".join(problems))
    return unflatten_dict(variables)


def save_weights(path: Path, config: Config, variables: Variables) -> None:
    """Write a safetensors file that PyTorch and `load_weights` read. Raises UserError if it cannot be written.

    The configuration goes with it, but for the data set's folder, which is this machine's own.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    text = dump_config(override(config, {"data.dir": ""}))
    try:
        save_file(to_state_dict(variables), path, metadata={"format": "pt", "config": text})
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the weights {path}: {error}") from None


def load_weights(path: Path, config: Config | None = None) -> tuple[Config, Variables]:
    """The configuration and variables in a safetensors file.

    A file written by others has no configuration in it: give `config`, which wins over the file's. Raises
    UserError if the file cannot be read, lacks a configuration, or does not fit the network.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the weights {path}: {error}") from None
    if config is None:
        if "config" not in metadata:
            raise UserError(f"{path}: expected a configuration in its metadata, found none: name one")
        config = parse_config(metadata["config"], source=f"{path}: ")
    try:
        return config, from_state_dict(config, state_dict)
    except UserError as error:
        raise UserError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None
