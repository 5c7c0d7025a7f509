"""Converting weights to and from PyTorch's, and safetensors files.

The names are those of the usual PyTorch code for CIFAR ResNets (conv1, bn1, layer1.0.conv1, shortcut.0, linear). The
layouts are PyTorch's: OIHW kernels, [out, in] matrices. A safetensors file holds such a state dict, so that PyTorch can
read it without this package. Its metadata holds the configuration, the facts of the data set and a format number. So
the file alone describes the network, the size and normalisation of its input, and its classes. No pickle is used.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxresnet.config.files import dump_config, parse_config
from jaxresnet.data.info import DatasetInfo
from jaxresnet.data.sources import open_source
from jaxresnet.errors import UserError
from jaxresnet.learning.learner import make_learner
from jaxresnet.learning.state import Variables, state_template
from jaxresnet.plan import Plan, resolve
from jaxresnet.runs.files import parse_record, to_json

FORMAT = 2
"""The format of the files that are written. Format 1 had no number and no facts of the data set."""

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
    """PyTorch's name of a leaf: layer1.0.bn1.weight for ("params", "stage0_block0", "norm1", "scale")."""
    *blocks, module, leaf = path[1:]
    prefix = ""
    if blocks:
        stage, block = blocks[0].removeprefix("stage").split("_block")
        prefix = f"layer{int(stage) + 1}.{block}."
    return f"{prefix}{_MODULES[module]}.{_LEAVES[leaf]}"


def _to_torch(array: np.ndarray) -> np.ndarray:
    """An array in PyTorch's layout: HWIO becomes OIHW, [in, out] becomes [out, in], vectors stay the same."""
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.T


def _from_torch(array: np.ndarray) -> np.ndarray:
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T


def to_state_dict(variables: Variables) -> dict[str, np.ndarray]:
    """The network's parameters and running statistics as a PyTorch state dict of float32 NumPy arrays.

    `running_var` is the biased variance that flax keeps. PyTorch itself would keep the unbiased one, which is n/(n-1)
    times as large for n values per channel and batch. Both libraries evaluate with the given values, so the logits are
    the same.
    """
    flat = cast(dict[tuple[str, ...], np.ndarray], flatten_dict(jax.device_get(variables)))
    return {_torch_name(path): np.ascontiguousarray(_to_torch(leaf)) for path, leaf in flat.items()}


def from_state_dict(plan: Plan, state_dict: Mapping[str, np.ndarray]) -> Variables:
    """The variables of a plan's network, in float32, from a PyTorch state dict of arrays.

    `num_batches_tracked` is ignored. Raises UserError with one line for each name that is missing or unknown, or whose
    array has a wrong shape or is not floating point.
    """
    shapes = state_template(make_learner(plan)).variables
    template = cast(dict[tuple[str, ...], Any], flatten_dict(shapes))
    expected = {_torch_name(path): (path, leaf) for path, leaf in template.items()}
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


def save_weights(path: Path | str, plan: Plan, variables: Variables) -> None:
    """Write a safetensors file that PyTorch and `load_weights` can read. Raises UserError if it cannot be written.

    Its metadata holds the plan, without `data.dir`, which makes sense on this machine only.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    metadata = {
        "format": "pt",  # tells other readers of safetensors that the layout is PyTorch's
        "jaxresnet_format": str(FORMAT),
        "config": dump_config(plan.config.replace({"data.dir": ""})),
        "dataset": json.dumps(to_json(plan.info)),
    }
    try:
        save_file(to_state_dict(variables), path, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the weights {path}: {error}") from None


def load_weights(path: Path | str, plan: Plan | None = None) -> tuple[Plan, Variables]:
    """The plan and the variables, as NumPy arrays, in a safetensors file.

    If `plan` is given, it is used in place of the file's own. It is needed for a file from another program, which has
    no configuration in it. Raises UserError if the file cannot be read, has no configuration and `plan` is not given,
    was written by a later version, or does not fit the network.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the weights {path}: {error}") from None
    plan = plan or _plan_in(metadata, str(path))
    try:
        return plan, from_state_dict(plan, state_dict)
    except UserError as error:
        raise UserError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None


def _plan_in(metadata: Mapping[str, str], path: str) -> Plan:
    """The plan in a file's metadata. Raises UserError if there is none that this version can read."""
    found = metadata.get("jaxresnet_format", "1")
    if found not in map(str, range(1, FORMAT + 1)):
        raise UserError(
            f"{path} has format {found!r}: expected at most {FORMAT}; it was written by a later version of jaxresnet"
        )
    if "config" not in metadata:
        raise UserError(f"{path}: expected a configuration in its metadata, found none: name one (--config)")
    config = parse_config(metadata["config"], source=f"{path}: ")
    if "dataset" in metadata:
        info = parse_record(DatasetInfo, metadata["dataset"], f"{path}: dataset")
    else:
        info = open_source(config.data, f"{path}: ").info
    return resolve(config, info, source=f"{path}: ")
