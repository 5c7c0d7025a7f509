"""Checks that a checkpoint is what was saved, because orbax restores flipped bytes without an error.

Besides its items a checkpoint has a `meta`: a format number, the checksums of the items, and the names, dtypes and
shapes of their arrays. The latter are needed because orbax does not say which array does not fit.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxresnet.errors import UserError
from jaxresnet.machine.workarounds import first_reason

FORMAT = 2
"""The format of the checkpoints that are written. Format 1 had no number, and was otherwise the same."""


class DamagedCheckpointError(UserError):
    """A checkpoint that cannot be read back as it was saved."""


def make_meta(items: dict[str, Any]) -> dict[str, Any]:
    """The meta of `items`, as JSON values. Each item is a pytree of NumPy arrays."""
    shapes = {name: shapes_of(tree) for name, tree in items.items()}
    checksums = {name: checksum(tree) for name, tree in items.items()}
    checksums |= {"shapes": text_checksum(shapes), "format": text_checksum(FORMAT)}
    return {"format": FORMAT, "shapes": shapes, "checksums": checksums}


def check_meta(meta: dict[str, Any], name: str) -> None:
    """Raise UserError if a later version wrote the checkpoint called `name`, ValueError if `meta` is damaged."""
    found, expected = meta.get("format", 1), meta["checksums"].get("format")
    if expected is not None and expected != text_checksum(found):
        raise ValueError("its format does not have the checksum there")
    if found > FORMAT:
        raise UserError(
            f"{name} has format {found}: expected at most {FORMAT}; it was written by a later version of jaxresnet"
        )
    if meta["checksums"]["shapes"] != text_checksum(meta["shapes"]):
        raise ValueError("the shapes in its meta do not have the checksum there")


def check_shapes(meta: dict[str, Any], templates: dict[str, Any], name: str) -> None:
    """Raise UserError if the items named in `templates` have other names, dtypes or shapes of arrays than these."""
    saved = {leaf: shape for item in templates for leaf, shape in meta["shapes"][item].items()}
    expected = {leaf: shape for tree in templates.values() for leaf, shape in shapes_of(tree).items()}
    if differing := sorted(leaf for leaf in saved | expected if saved.get(leaf) != expected.get(leaf)):
        leaf = differing[0]
        raise UserError(
            f"{name} is of another network: at {leaf} expected {expected.get(leaf, 'nothing')}, "
            f"found {saved.get(leaf, 'nothing')}; use the configuration that it was trained with"
        )


def check_content(meta: dict[str, Any], restored: dict[str, Any], name: str) -> None:
    """Raise DamagedCheckpointError if the restored items are not what was saved, bit for bit."""
    for item, tree in restored.items():
        expected, found = meta["checksums"][item], checksum(tree)
        if found != expected:
            raise DamagedCheckpointError(
                f"{name} is damaged: expected its {item} with SHA-256 {expected[:12]}, found {found[:12]}"
            )


def checksum(tree: Any) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of all leaves, in hexadecimal."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def text_checksum(value: Any) -> str:
    """SHA-256 of a JSON value, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def shapes_of(tree: Any) -> dict[str, str]:
    """The dtype and shape of each leaf as text, such as "float32[10]", by the leaf's name."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def accuracy_metrics(accuracy: float) -> dict[str, Any]:
    """The metrics that are saved with a checkpoint. They serve to choose the best one."""
    return {"accuracy": accuracy, "checksum": text_checksum(accuracy)}


def accuracy_of(metrics: Any) -> float:
    """The accuracy in a checkpoint's metrics, by which the best is chosen; -1 if there is none or it is not finite."""
    value = metrics["accuracy"] if metrics else math.nan
    return value if math.isfinite(value) else -1.0


def set_aside_accuracies(directory: Path, read_only: bool) -> list[str]:
    """Replace each checkpoint's accuracy that cannot be read by NaN, so that it is not chosen as the best.

    Returns a line for each. With `read_only` nothing is changed: the first one raises DamagedCheckpointError.
    """
    problems = []
    for path, reason in _unreadable_accuracies(directory):
        folder = path.parent.parent
        problem = f"checkpoint {folder.name} in {directory} is damaged: no accuracy in it ({reason})"
        if read_only:
            raise DamagedCheckpointError(
                f"{problem}: remove {folder}, or start the training again, which goes on without that accuracy"
            )
        path.write_text(json.dumps(accuracy_metrics(math.nan)))
        problems.append(f"{problem}; it no longer counts as the best")
    return problems


def _unreadable_accuracies(directory: Path) -> list[tuple[Path, str]]:
    """The files of checkpoints' accuracies that cannot be read, each with the reason."""
    found = []
    for path in sorted(directory.glob("*/metrics/metrics")):
        if not path.parent.parent.name.isdigit():
            continue  # a save that is not finished, or was killed; orbax ignores it, too
        try:
            metrics = json.loads(path.read_text())
            expected = text_checksum(float(metrics["accuracy"]))
            if metrics.get("checksum", expected) != expected:  # the first versions saved none
                raise ValueError("it does not have its checksum")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            found.append((path, first_reason(error)))
    return found
