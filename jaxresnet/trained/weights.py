"""Converting weights to and from PyTorch's, and safetensors files.

The names are those of the usual PyTorch code for CIFAR ResNets (conv1, bn1, layer1.0.conv1, shortcut.0, linear). The
layouts are PyTorch's: OIHW kernels, [out, in] matrices. A safetensors file holds such a state dict, so that PyTorch can
read it without this package. Its metadata holds the configuration, the facts of the data set and a format number. So
the file alone describes the network, the size and normalisation of its input, and its classes. No pickle is used.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxresnet.config.files import dump_config, parse_config, portable
from jaxresnet.data.info import DatasetInfo
from jaxresnet.data.sources import known_facts
from jaxresnet.disk import CONFIG_LIMIT, MIB, require
from jaxresnet.errors import UserError
from jaxresnet.learning.learner import make_learner
from jaxresnet.learning.state import Variables, state_template
from jaxresnet.plan import Plan, resolve
from jaxresnet.runs.files import parse_record, to_json, write_named

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


_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The dtypes of arrays that can be read, by their names in a safetensors file."""


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


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an array in PyTorch's layout."""
    return tuple(shape[axis] for axis in (3, 2, 0, 1)) if len(shape) == 4 else shape[::-1]


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
    array has a wrong shape or is not floating point, and with one line if numbers are not finite.
    """
    arrays = {name: np.asarray(value) for name, value in state_dict.items()}
    header = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
    return _assemble(plan, header, arrays.__getitem__)


def _assemble(
    plan: Plan, header: Mapping[str, tuple[tuple[int, ...], str]], read: Callable[[str], np.ndarray]
) -> Variables:
    """The variables of a plan's network. No array is read unless the shapes and dtypes in `header` fit.

    Raises what `from_state_dict` raises.
    """
    found = {name: each for name, each in header.items() if not name.endswith("num_batches_tracked")}
    blocks = sum(plan.config.model.stage_blocks)
    if len(found) < blocks:  # before the network is traced, which takes long if it is absurdly deep
        raise UserError(f"expected the arrays of a network of {blocks:,} blocks, found {len(found):,} arrays")
    shapes = state_template(make_learner(plan)).variables
    template = cast(dict[tuple[str, ...], Any], flatten_dict(shapes))
    expected = {_torch_name(path): (path, leaf.shape) for path, leaf in template.items()}
    problems = [f"{name}: expected by the network, not found" for name in expected if name not in found]
    problems += [f"{name}: found, not expected by the network" for name in found if name not in expected]
    for name, (_, ours) in expected.items():
        shape, dtype = found.get(name, (_torch_shape(ours), "float32"))
        if shape != _torch_shape(ours):
            problems.append(f"{name}: expected shape {list(_torch_shape(ours))}, found {list(shape)}")
        elif dtype not in _FLOATS.values():
            problems.append(f"{name}: expected {' or '.join(_FLOATS.values())}, found {dtype}")
    if problems:
        raise UserError("\n".join(problems))
    with np.errstate(over="ignore"):  # what overflows is told below
        flat = {path: _from_torch(read(name).astype(np.float32)) for name, (path, _) in expected.items()}
    variables = unflatten_dict({path: np.ascontiguousarray(array) for path, array in flat.items()})
    require_usable(variables)
    return variables


def require_usable(variables: Variables, place: str = "") -> None:
    """Raise UserError if a number in `variables` is not finite, or a variance is negative. It begins with `place`.

    On a CPU a network with such numbers can give finite logits that mean nothing: XLA's ReLU makes 0 of NaN.
    """
    flat = cast(dict[tuple[str, ...], np.ndarray], flatten_dict(jax.device_get(variables)))
    useful = {
        path: np.isfinite(leaf) & ((leaf >= 0) if path[-1] == "var" else True) for path, leaf in flat.items()
    }
    bad = {path: int((~each).sum()) for path, each in useful.items() if not each.all()}
    if bad:
        path, count = next(iter(bad.items()))
        numbers = "finite numbers of at least 0" if path[-1] == "var" else "finite numbers"
        more = f", and such in {len(bad) - 1} more arrays" if len(bad) > 1 else ""
        raise UserError(
            f"{place}{_torch_name(path)}: expected {numbers}, found {count:,} of {flat[path].size:,} that are not{more}"
        )


def save_weights(
    path: Path | str,
    plan: Plan,
    variables: Variables,
    *,
    half: bool = False,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file that PyTorch and `load_weights` can read, completely or not at all.

    Its metadata holds the plan, without what makes sense on this machine only (`portable`), and the `notes`. With
    `half`, the kernels of convolutions and head are rounded to float16, which makes the file half as large; all else
    stays float32. Raises UserError if the file cannot be written.
    """
    metadata = {
        "jaxresnet_format": str(FORMAT),
        "config": dump_config(portable(plan.config)),
        "dataset": json.dumps(to_json(plan.info)),
    }
    arrays = to_state_dict(variables)
    if half:
        with np.errstate(over="ignore"):  # who reads the file is told
            arrays = {
                name: array.astype(np.float16) if array.ndim > 1 else array for name, array in arrays.items()
            }
    save_arrays(path, arrays, metadata | dict(notes or {}))


def save_arrays(path: Path | str, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file in PyTorch's layouts, completely or not at all.

    Raises UserError if it cannot be written.
    """
    from safetensors.numpy import save

    # "pt" tells other readers of safetensors that the layout is PyTorch's.
    content = save(dict(arrays), metadata={"format": "pt", **metadata})
    try:
        write_named(Path(path), content)
    except OSError as error:
        raise UserError(f"cannot write the weights {path}: {error}") from None


@contextlib.contextmanager
def _opened(path: Path | str) -> Iterator[Any]:
    """A safetensors file, open to be read. Raises UserError if it cannot be read."""
    from safetensors import SafetensorError, safe_open

    require("a file", Path(path), follow=True)
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, SafetensorError, UnicodeEncodeError) as error:
        raise UserError(f"cannot read the weights {path}: {error}") from None


def read_metadata(path: Path | str) -> dict[str, str]:
    """The metadata of a safetensors file. Raises UserError if it cannot be read."""
    with _opened(path) as file:
        return file.metadata() or {}


def read_arrays(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, by name. Raises UserError if it cannot be read."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


def has_half(path: Path | str) -> bool:
    """Whether an array in a safetensors file is float16. Raises UserError if it cannot be read."""
    with _opened(path) as file:
        return any(file.get_slice(name).get_dtype() == "F16" for name in file.keys())  # noqa: SIM118 - no mapping


def load_weights(path: Path | str, plan: Plan | None = None) -> tuple[Plan, Variables]:
    """The plan and the variables, as NumPy arrays, in a safetensors file.

    If `plan` is given, it is used in place of the file's own. It is needed for a file from another program, which has
    no configuration in it. Raises UserError if the file cannot be read, has no configuration and `plan` is not given,
    was written by a later version, or does not fit the network.
    """
    with _opened(path) as file, _naming(path):
        plan = plan or _plan_in(file.metadata() or {})
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        dtypes = {name: str(each.get_dtype()) for name, each in slices.items()}
        header = {
            name: (tuple(each.get_shape()), _FLOATS.get(dtypes[name], dtypes[name]))
            for name, each in slices.items()
        }
        return plan, _assemble(plan, header, file.get_tensor)


def plan_in_file(path: Path | str) -> Plan | None:
    """The plan in a safetensors file; None if it is of another program and has none. No array is read.

    Raises UserError if the file cannot be read or was written by a later version.
    """
    metadata = read_metadata(path)
    with _naming(path):
        return _plan_in(metadata) if "config" in metadata else None


def head_shape(path: Path | str) -> tuple[int, ...] | None:
    """The shape of the head's matrix in a safetensors file, [classes, channels]; None if there is none.

    Raises UserError if the file cannot be read.
    """
    with _opened(path) as file:
        name = f"{_MODULES['head']}.weight"
        return tuple(file.get_slice(name).get_shape()) if name in file.keys() else None  # noqa: SIM118 - no mapping


@contextlib.contextmanager
def _naming(path: Path | str) -> Iterator[None]:
    """UserErrors from inside the block get the name of the file, in each line."""
    try:
        yield
    except UserError as error:
        lines = "\n".join(f"{path}: {line}" for line in str(error).splitlines())
        raise UserError(lines, error.exit_code) from None


def _plan_in(metadata: Mapping[str, str]) -> Plan:
    """The plan in a file's metadata. Raises UserError if there is none that this version can read."""
    found = metadata.get("jaxresnet_format", "1")
    if found not in map(str, range(1, FORMAT + 1)):
        raise UserError(
            f"expected at most format {FORMAT}, found {found!r}: it was written by a later version of jaxresnet"
        )
    if "config" not in metadata:
        raise UserError(
            "expected a configuration in its metadata, found none: `python -m jaxresnet.export FILE NEW.safetensors "
            "--config NAME` writes a file that has one; evaluate takes --config, too"
        )
    if len(metadata["config"]) > CONFIG_LIMIT:
        raise UserError(
            f"expected at most {CONFIG_LIMIT // MIB} MiB of configuration in its metadata, found more"
        )
    config = parse_config(metadata["config"])
    if "dataset" in metadata:
        info = parse_record(DatasetInfo, metadata["dataset"], "dataset")
    else:
        info = known_facts(config.data)
    return resolve(config, info)
