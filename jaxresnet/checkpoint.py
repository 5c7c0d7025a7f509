"""Orbax checkpoints: saved in the background, verified by checksum, the latest and the best kept.

A checkpoint is a folder named by its step that holds two items, `weights` (params and batch_stats: what
evaluation reads) and `rest` (optimiser state, step, metrics of the epoch under way), and `meta`, their
checksums, because orbax restores flipped bytes without a word, and their arrays' shapes, because it does
not say which array does not fit.
"""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxresnet.errors import UserError
from jaxresnet.step import TrainState, Variables

LATEST_KEPT = 2
"""Two, so that a damaged newest checkpoint leaves one to go on from."""


class DamagedCheckpointError(UserError):
    """A checkpoint that cannot be read back as it was saved."""


def _checksum(tree: Any) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all leaves."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()


def _reason(error: BaseException) -> str:
    """What first went wrong, in a line: orbax wraps it in pages about how it was reading."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = " ".join(str(error).split()) or type(error).__name__
    reason = words.split(" [")[0]
    # The system's own words come last, after all that tensorstore was about to do.
    return reason.rpartition(": ")[2] if "[os_error_code=" in words else reason[:200]


def _text_checksum(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _shapes(tree: Any) -> dict[str, str]:
    """Each leaf's dtype and shape by its name, as JSON values."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _items(state: TrainState) -> dict[str, Any]:
    rest = {"opt_state": state.opt_state, "step": state.step, "metrics": state.metrics}
    return {"weights": state.variables, "rest": rest}


def _metrics(accuracy: float) -> dict[str, Any]:
    return {"accuracy": accuracy, "checksum": _text_checksum(accuracy)}


def _unreadable_accuracies(directory: Path) -> list[tuple[Path, str]]:
    """The files that cannot be read of those which hold each checkpoint's accuracy, and why."""
    found = []
    for path in sorted(directory.glob("*/metrics/metrics")):
        if not path.parent.parent.name.isdigit():
            continue  # a save under way, or one that was killed; orbax leaves it aside, too
        try:
            metrics = json.loads(path.read_text())
            expected = _text_checksum(float(metrics["accuracy"]))
            if metrics.get("checksum", expected) != expected:  # the first versions saved none
                raise ValueError("it does not have its checksum")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            found.append((path, _reason(error)))
    return found


def _accuracy(metrics: Any) -> float:
    """What the best checkpoint is best in; a value that is not finite loses to every other."""
    value = metrics["accuracy"] if metrics else math.nan
    return value if math.isfinite(value) else -1.0


class Checkpoints:
    """The checkpoints of one run.

    A context manager, which waits at its end for the save in the background. `read_only` opens the folder
    without touching it, for evaluation beside a run; raises DamagedCheckpointError if it cannot tell how accurate
    one of them is. Otherwise that one is kept, but not for the best; `restore_latest` reports it.
    """

    def __init__(self, directory: Path, *, read_only: bool = False):
        if directory.exists() and not directory.is_dir():
            raise UserError(f"expected a folder of checkpoints, found a file: {directory}")
        self._directory = directory.absolute()  # a relative path fails only at the first save
        self._mended: list[str] = []
        # Orbax reads them all as it opens the folder, and stops at one that it cannot read.
        for path, reason in _unreadable_accuracies(self._directory):
            folder = path.parent.parent
            problem = (
                f"checkpoint {folder.name} in {self._directory} is damaged: no accuracy in it ({reason})"
            )
            if read_only:
                raise DamagedCheckpointError(
                    f"{problem}: remove {folder}, or start the training again, which goes on without that accuracy"
                )
            path.write_text(json.dumps(_metrics(math.nan)))
            self._mended.append(f"{problem}; it no longer counts as the best")
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(LATEST_KEPT),
                # A save in the middle of an epoch has no metrics; it must not be kept for ever.
                checkpoint_managers.BestN(
                    get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=_accuracy,
            preservation_policy=None if read_only else policy,
            read_only=read_only,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
        )
        self._manager = ocp.CheckpointManager(
            self._directory, options=options, item_names=("weights", "rest", "meta")
        )

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Step of the most accurate checkpoint, None if none was evaluated."""
        return self._manager.best_step()

    def save(self, state: TrainState, accuracy: float | None = None) -> None:
        """Save in the background; a checkpoint of the same step, saved before its evaluation, is replaced.

        Raises UserError if this save or the one before it fails.
        """
        step = int(state.step)
        # As NumPy arrays: of an array on several devices orbax saves a slice from each, and compiles a program for
        # every shape and device, seconds' work. Copied: a view would keep the next train step from taking the buffers
        # over.
        items = jax.tree.map(np.array, jax.device_get(_items(state)))
        shapes = {name: _shapes(tree) for name, tree in items.items()}
        checksums = {name: _checksum(tree) for name, tree in items.items()}
        meta = {"shapes": shapes, "checksums": checksums | {"shapes": _text_checksum(shapes)}}

        def save() -> None:
            # The one before, which may be of this step and still be under way; orbax would wait for it, too.
            self._manager.wait_until_finished()
            if step in self._manager.all_steps():  # orbax would leave it and return False
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
                    meta=ocp.args.JsonSave(meta),
                ),
                metrics=None if accuracy is None else _metrics(accuracy),
            )

        self._reporting(save)

    def wait(self) -> None:
        """Wait for the save in the background. Raises UserError if it failed."""
        self._reporting(self._manager.wait_until_finished)

    def _reporting(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # orbax and tensorstore raise many types; all mean that nothing was saved
            kept = ", ".join(map(str, self.steps())) or "none"
            raise UserError(
                f"cannot save a checkpoint in {self._directory}: {_reason(error)}; earlier checkpoints are intact "
                f"(steps: {kept}): make space there, then run the same command again"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._reporting(self._manager.close)
        except UserError:
            if kind is None:  # else the first error is the one to tell
                raise

    def _restore(self, step: int, templates: dict[str, Any]) -> dict[str, Any]:
        """Read the items named in `templates`, verified.

        Raises DamagedCheckpointError, and UserError if the checkpoint is intact but of another network.
        """
        name = f"checkpoint {step} in {self._directory}"
        try:
            meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            checksums, shapes = meta["checksums"], meta["shapes"]
            if checksums["shapes"] != _text_checksum(shapes):
                raise ValueError("the shapes in its meta do not have the checksum there")
            saved = {leaf: shape for item in templates for leaf, shape in shapes[item].items()}
        except Exception as error:
            raise DamagedCheckpointError(f"{name} is damaged: {_reason(error)}") from error
        expected = {leaf: shape for tree in templates.values() for leaf, shape in _shapes(tree).items()}
        if differing := sorted(leaf for leaf in saved | expected if saved.get(leaf) != expected.get(leaf)):
            leaf = differing[0]
            raise UserError(
                f"{name} is of another network: at {leaf} expected {expected.get(leaf, 'nothing')}, "
                f"found {saved.get(leaf, 'nothing')}; use the configuration that it was trained with"
            )
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    **{item: ocp.args.StandardRestore(tree) for item, tree in templates.items()}
                ),
            )
        except Exception as error:  # a missing or truncated file surfaces as any of a dozen types
            raise DamagedCheckpointError(f"{name} is damaged: {_reason(error)}") from error
        for item in templates:
            found = _checksum(restored[item])
            if found != checksums[item]:
                raise DamagedCheckpointError(
                    f"{name} is damaged: expected its {item} with SHA-256 {checksums[item][:12]}, "
                    f"found {found[:12]}"
                )
        return {item: restored[item] for item in templates}

    def restore(self, step: int, template: TrainState) -> TrainState:
        """The state of `step`.

        `template` holds a jax.ShapeDtypeStruct with a sharding in place of each array. Raises
        DamagedCheckpointError if the checkpoint does not read back as it was saved, and UserError if it is
        of another network.
        """
        restored = self._restore(step, _items(template))
        return TrainState(**restored["weights"], **restored["rest"])

    def restore_latest(self, template: TrainState, report: Callable[[str], None]) -> TrainState | None:
        """The newest intact state, or None if nothing was saved yet.

        Damaged checkpoints newer than it are told to `report` and deleted, so that training can save
        their steps again. Raises UserError, and deletes nothing, if all are damaged or of another network.
        """
        for problem in self._mended:
            report(problem)
        damaged: list[int] = []
        problems: list[str] = []
        for step in reversed(self.steps()):
            try:
                state = self.restore(step, template)
            except DamagedCheckpointError as error:
                damaged.append(step)
                problems.append(str(error))
                continue
            for problem in problems:
                report(f"{problem}; going back to checkpoint {step}")
            for each in damaged:
                self._manager.delete(each)
            return state
        if problems:
            raise UserError(
                "\n".join([*problems, f"no checkpoint is intact: remove {self._directory} to start anew"])
            )
        return None

    def restore_variables(self, step: int, template: Variables) -> Variables:
        """The weights of `step`, as `restore` would give them."""
        return self._restore(step, {"weights": template})["weights"]
