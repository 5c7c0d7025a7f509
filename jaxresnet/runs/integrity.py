"""Checks that a checkpoint is what was saved, because orbax restores flipped bytes without an error.

Besides its items a checkpoint has a `meta`: a format number, the checksums of the items, the names, dtypes and shapes
of their arrays, and its identity: step, run and settings. The shapes are needed because orbax does not say which array
does not fit; the identity, because the checkpoint of another step or run may fit.

A file that cannot be read is not damaged: what a disk or a permission withholds now may be there again later.
"""

import dataclasses
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from jaxresnet.errors import UserError
from jaxresnet.machine.workarounds import first_reason
from jaxresnet.runs.files import write_whole
from jaxresnet.runs.records import Identity

FORMAT = 2
"""The format of the checkpoints that are written. Format 1 had no number, and was otherwise the same."""


class DamagedCheckpointError(UserError):
    """A checkpoint that cannot be read back as it was saved."""


def make_meta(items: dict[str, Any], identity: Identity, step: int) -> dict[str, Any]:
    """The meta of `items`, as JSON values. Each item is a pytree of NumPy arrays."""
    shapes = {name: shapes_of(tree) for name, tree in items.items()}
    checksums = {name: checksum(tree) for name, tree in items.items()}
    bound = {"step": step, **dataclasses.asdict(identity)}
    checksums |= {
        "shapes": text_checksum(shapes),
        "format": text_checksum(FORMAT),
        "identity": text_checksum(bound),
    }
    return {"format": FORMAT, "shapes": shapes, "identity": bound, "checksums": checksums}


def check_meta(meta: dict[str, Any], name: str) -> None:
    """Raise UserError if a later version wrote the checkpoint called `name`, ValueError if `meta` is damaged."""
    found, expected = meta.get("format", 1), meta["checksums"].get("format")
    if expected is not None and expected != text_checksum(found):
        raise ValueError("its format does not have the checksum there")
    bound = meta.get("identity")  # earlier versions wrote none
    if meta["checksums"].get("identity") != (None if bound is None else text_checksum(bound)):
        raise ValueError("its identity does not have the checksum there")
    if found > FORMAT:
        raise UserError(
            f"{name} has format {found}: expected at most {FORMAT}; it was written by a later version of jaxresnet"
        )
    if meta["checksums"]["shapes"] != text_checksum(meta["shapes"]):
        raise ValueError("the shapes in its meta do not have the checksum there")


def check_identity(meta: dict[str, Any], identity: Identity, step: int, name: str) -> None:
    """Raise UserError if the checkpoint called `name` was not saved at `step` by the run that `identity` describes.

    What one of both does not say is not compared: earlier versions wrote less.
    """
    bound = meta.get("identity")
    if bound is None:
        return
    if bound["step"] != step:
        raise UserError(
            f"{name} was saved at step {bound['step']}: expected it in a folder of that name; rename it back"
        )
    ours = identity.settings
    differing = {key: value for key, value in bound["settings"].items() if ours.get(key, value) != value}
    if differing:
        listed = "; ".join(
            f"{key} was {was!r}, config.toml says {ours[key]!r}" for key, was in differing.items()
        )
        raise UserError(
            f"{name} is of another run: {listed}: put back the run's own config.toml or checkpoints, "
            "or name another --workdir"
        )
    if identity.run and bound["run"] and identity.run != bound["run"]:
        raise UserError(
            f"{name} is of another run: expected the id {identity.run} of run.json, found {bound['run']}: put back the "
            "run's own checkpoints, or name another --workdir"
        )


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


def mend_accuracies(directory: Path, recorded: Mapping[int, float], read_only: bool) -> list[str]:
    """Replace each checkpoint's accuracy that is damaged.

    `recorded` has the accuracies that the run's records tell, by step. Without one it is NaN, so that the checkpoint is
    not chosen as the best. Returns a line for each. With `read_only` nothing is changed: the first one raises
    DamagedCheckpointError. Raises UserError, and changes nothing more, if one cannot be read.
    """
    problems = []
    for path, reason in _damaged_accuracies(directory):
        folder = path.parent.parent
        problem = f"checkpoint {folder.name} in {directory} is damaged: no accuracy in it ({reason})"
        if read_only:
            raise DamagedCheckpointError(
                f"{problem}: remove {folder}, or start the training again, which mends it"
            )
        accuracy = recorded.get(int(folder.name), math.nan)
        write_whole(path, json.dumps(accuracy_metrics(accuracy)))
        mended = (
            "it no longer counts as the best" if math.isnan(accuracy) else "it is taken from metrics.jsonl"
        )
        problems.append(f"{problem}; {mended}")
    return problems


def _damaged_accuracies(directory: Path) -> Iterator[tuple[Path, str]]:
    """The files of checkpoints' accuracies that are damaged, each with the reason."""
    try:
        # Other names are of saves that are not finished, or were killed; orbax ignores them, too.
        folders = sorted(folder for folder in directory.iterdir() if folder.name.isdigit())
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_read(directory, error) from error
    for folder in folders:
        path = folder / "metrics" / "metrics"
        try:
            metrics = json.loads(path.read_bytes())
            accuracy = metrics["accuracy"]
            if not isinstance(accuracy, float | int):
                raise ValueError(f"expected a number, found {accuracy!r}")
            expected = text_checksum(float(accuracy))
            if metrics.get("checksum", expected) != expected:  # the first versions saved none
                raise ValueError("it does not have its checksum")
        except FileNotFoundError:
            continue  # it was not evaluated
        except OSError as error:
            raise _cannot_read(path, error) from error
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
            yield path, first_reason(error)


def require_readable(folder: Path) -> None:
    """Raise UserError if a file in a checkpoint's `folder` is there and cannot be read, or the folder has gone."""

    def refuse(error: OSError) -> NoReturn:
        raise error

    path = folder
    try:
        for parent, _, names in os.walk(folder, onerror=refuse):
            for path in (Path(parent, name) for name in names):
                _read_through(path)
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no longer there: it was replaced or removed meanwhile; run the same command again"
        ) from None
    except OSError as error:
        raise _cannot_read(path, error) from error


def _read_through(path: Path) -> None:
    """Read a file to its end. One that is missing, or no regular file, has nothing to read. Raises OSError."""
    try:
        if stat.S_ISREG(path.stat().st_mode):
            with path.open("rb") as file:
                while file.read(2**20):
                    pass
    except FileNotFoundError:
        pass  # a link that leads nowhere


def _cannot_read(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot read {error.filename or path}: {error.strerror or error}; nothing was removed: mend that, then run "
        "the same command again"
    )
