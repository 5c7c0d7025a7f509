"""Orbax checkpoints. They are saved in the background and verified by checksums. The latest ones and the best are kept.

A checkpoint is a folder named by its step. It holds the items that `jaxresnet.learning.state.ITEMS` lists, and the item
`meta`, which serves to verify them (`jaxresnet.runs.integrity`).
"""

import contextlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxresnet.disk import require_plain
from jaxresnet.errors import UserError
from jaxresnet.learning.state import ITEMS, TrainState, Variables
from jaxresnet.machine.workarounds import first_reason, is_of_machine, read_only_unremarked
from jaxresnet.runs.integrity import (
    DamagedCheckpointError,
    accuracy_metrics,
    accuracy_of,
    check_content,
    check_identity,
    check_meta,
    check_shapes,
    make_meta,
    mend_accuracies,
    require_readable,
)
from jaxresnet.runs.records import Identity

LATEST_KEPT = 2
"""Two, so that training can go on from the one before if the newest is damaged."""

REPLACED = ".replaced"
"""Ending of a checkpoint's folder while another of the same step is saved. Orbax passes over such a name."""


def _open_manager(directory: Path, read_only: bool) -> ocp.CheckpointManager:
    policy = checkpoint_managers.AnyPreservationPolicy(
        [
            checkpoint_managers.LatestN(LATEST_KEPT),
            # A checkpoint from the middle of an epoch has no metrics. It must not be kept forever.
            checkpoint_managers.BestN(get_metric_fn=accuracy_of, n=1, keep_checkpoints_without_metrics=False),
        ]
    )
    several = ocp.options.MultiprocessingOptions()
    if (
        jax.process_count() > 1
    ):  # orbax would wait for the others: each process that has a manager is on its own
        this = jax.process_index()
        several = ocp.options.MultiprocessingOptions(this, {this}, barrier_sync_key_prefix=f"process{this}")
    options = ocp.CheckpointManagerOptions(
        best_fn=accuracy_of,
        preservation_policy=None if read_only else policy,
        read_only=read_only,
        save_interval_steps=0 if read_only else 1,  # else orbax warns that it sets this
        create=not read_only and jax.process_count() == 1,  # `Checkpoints` creates it for a run on several
        multiprocessing_options=several,
        cleanup_tmp_directories=not read_only,
    )
    with read_only_unremarked():
        return ocp.CheckpointManager(directory, options=options, item_names=(*ITEMS, "meta"))


def _read(
    manager: ocp.CheckpointManager, step: int, templates: dict[str, Any], identity: Identity
) -> dict[str, Any]:
    """The items of a checkpoint that are named in `templates`, verified.

    Raises DamagedCheckpointError if the checkpoint is damaged. Raises UserError if it cannot be read, is of another run
    or network, or was written by a later version.
    """
    try:
        return _read_once(manager, step, templates, identity)
    except DamagedCheckpointError:
        require_readable(Path(manager.directory) / str(step))
    # All of its files can be read. Perhaps only a moment's failure prevented it.
    try:
        return _read_once(manager, step, templates, identity)
    except DamagedCheckpointError as error:
        if not is_of_machine(error):
            raise
        raise UserError(
            f"cannot read checkpoint {step} in {manager.directory}: {first_reason(error)}; nothing was removed: "
            "mend that, then run the same command again"
        ) from error


def _read_once(
    manager: ocp.CheckpointManager, step: int, templates: dict[str, Any], identity: Identity
) -> dict[str, Any]:
    """What `_read` returns. Raises DamagedCheckpointError also if the checkpoint cannot be read."""
    name = f"checkpoint {step} in {manager.directory}"
    try:
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        check_meta(meta, name)
        check_identity(meta, identity, step, name)
        check_shapes(meta, templates, name)
        items = {item: ocp.args.StandardRestore(tree) for item, tree in templates.items()}
        restored = manager.restore(step, args=ocp.args.Composite(**items))
        restored = {item: restored[item] for item in templates}
        check_content(meta, restored, name)
    except UserError:
        raise
    except Exception as error:  # a missing or truncated file raises one of a dozen types
        raise DamagedCheckpointError(f"{name} is damaged: {first_reason(error)}") from error
    return restored


def _newest_intact(
    steps: Iterable[int], restore: Callable[[int], TrainState], directory: Path
) -> tuple[TrainState | None, dict[int, str]]:
    """The state of the first of the `steps` that is intact, or None if there is no step.

    With it a line for each step before that is damaged. Raises UserError if all are, and what `restore` raises.
    """
    damaged: dict[int, str] = {}
    for step in steps:
        try:
            state = restore(step)
        except DamagedCheckpointError as error:
            damaged[step] = str(error)
        else:
            return state, {
                each: f"{problem}; going back to checkpoint {step}" for each, problem in damaged.items()
            }
    if damaged:
        advice = f"no checkpoint is intact: remove {directory} to start anew"
        raise UserError("\n".join([*damaged.values(), advice]))
    return None, {}


def _arguments(items: dict[str, Any], meta: dict[str, Any]) -> ocp.args.Composite:
    """What orbax takes to save a checkpoint."""
    trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    return ocp.args.Composite(**trees, meta=ocp.args.JsonSave(meta))


def _not_saved(directory: Path, kept: list[int], error: Exception) -> UserError:
    """The error that says that a save failed, and which steps are there."""
    return UserError(
        f"cannot save a checkpoint in {directory}: {first_reason(error)}; earlier checkpoints are intact "
        f"(steps: {', '.join(map(str, kept)) or 'none'}): mend that, then run the same command again"
    )


def _finish_replacing(directory: Path) -> None:
    """Remove each checkpoint whose replacement is complete, and put back the others."""
    for old in list(directory.glob(f"*{REPLACED}")):
        new = old.with_suffix("")
        if new.exists():  # orbax gives it this name when it is complete
            shutil.rmtree(old)
        else:
            old.rename(new)


def _refuse_half_replaced(directory: Path) -> None:
    """Raise UserError if only the old checkpoint of a step is complete while it is replaced."""
    for old in directory.glob(f"*{REPLACED}"):
        if not (new := old.with_suffix("")).exists():
            raise UserError(
                f"checkpoint {new.name} in {directory} is being replaced: wait a moment; if no training is under way "
                f"there, rename {old} to {new.name}"
            )


class Checkpoints:
    """The checkpoints of one run, whose `identity` they are saved with, and must have to be restored.

    A context manager that waits at its end for the save in the background. With `read_only` the folder is not changed,
    also while a run goes on. Raises UserError if `directory` is a file, or an accuracy in it cannot be read.

    If the accuracy of a checkpoint is damaged: with `read_only`, raises DamagedCheckpointError. Otherwise it is taken
    from `recorded`, step to accuracy, or else no longer counts. `restore_latest` reports it.
    """

    def __init__(
        self,
        directory: Path,
        identity: Identity | None = None,
        *,
        recorded: Mapping[int, float] | None = None,
        read_only: bool = False,
    ):
        if directory.exists() and not directory.is_dir():
            raise UserError(f"expected a folder of checkpoints, found a file: {directory}")
        require_plain(directory)
        self._directory = directory.absolute()  # with a relative path, orbax would fail at the first save
        self._identity, self._read_only, self._damaged = identity or Identity(), read_only, list[int]()
        (_refuse_half_replaced if read_only else _finish_replacing)(self._directory)
        # Orbax reads all accuracies when it opens the folder, and fails if it cannot read one.
        if not read_only and jax.process_count() > 1:
            self._directory.mkdir(exist_ok=True)
        self._mended = mend_accuracies(self._directory, recorded or {}, read_only)
        self._manager = _open_manager(self._directory, read_only)

    def saved_steps(self) -> list[int]:
        """The steps of the complete checkpoints that are not known to be damaged, in ascending order."""
        return sorted(set(self._manager.all_steps()) - set(self._damaged))

    def newest_step(self) -> int:
        """The step of the newest checkpoint, damaged or not; 0 if there is none."""
        return max(self._manager.all_steps(), default=0)

    def best_step(self) -> int | None:
        """The step of the most accurate checkpoint; None if none was evaluated."""
        return self._manager.best_step()

    def save(self, state: TrainState, accuracy: float | None = None) -> None:
        """Save `state` in the background, with its `accuracy` (0 to 1) if it was evaluated.

        It replaces a checkpoint of the same step, which was saved before the evaluation and stays until this one is
        complete. Raises UserError if this save cannot be started, or if the one before it failed.
        """
        step = int(state.step)
        # As NumPy arrays: of a JAX array on several devices, orbax saves a slice from each. It compiles a program for
        # every shape and device, which takes seconds. Copied: with a view, the next train step could not reuse the
        # buffers.
        items = jax.tree.map(np.array, jax.device_get(state.items()))
        meta = make_meta(items, self._identity, step)

        def save() -> None:
            self._wait()  # the save before this one may be of the same step; orbax would wait for it, too
            while self._damaged:
                self._manager.delete(self._damaged.pop())
            if step in self._manager.all_steps():  # orbax would keep the old one and return False
                (self._directory / str(step)).rename(self._directory / f"{step}{REPLACED}")
                self._manager.reload()
            metrics = None if accuracy is None else accuracy_metrics(accuracy)
            self._manager.save(step, args=_arguments(items, meta), metrics=metrics)

        self._reporting(save)

    def wait(self) -> None:
        """Wait for the save in the background. Raises UserError if it failed."""
        self._reporting(self._wait)

    def _wait(self) -> None:
        self._manager.wait_until_finished()
        if not self._read_only:
            _finish_replacing(self._directory)

    def _reporting(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # one of many types; each means that nothing was saved
            with contextlib.suppress(OSError):  # the first error counts; else the next start does it
                _finish_replacing(self._directory)
                self._manager.reload()
            raise _not_saved(self._directory, self.saved_steps(), error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
            self._reporting(self._manager.close)
        except UserError:
            if kind is None:  # else the first error is the one to report
                raise

    def restore(self, step: int, template: TrainState) -> TrainState:
        """The state that was saved at `step`.

        `template` is a state with a jax.ShapeDtypeStruct that has a sharding in place of each array. Raises
        DamagedCheckpointError if what is read is not what was saved, and UserError if it cannot be read, is of another
        run or network or was written by a later version.
        """
        return TrainState.from_items(_read(self._manager, step, template.items(), self._identity))

    def restore_latest(self, template: TrainState, report: Callable[[str], None]) -> TrainState | None:
        """The newest intact state, or None if nothing was saved yet.

        Newer checkpoints that are damaged are passed to `report`, a line for each. The next save deletes them. Raises
        UserError if all are damaged, or one cannot be read or belongs to another run or network.
        """
        for problem in self._mended:
            report(problem)
        steps = reversed(self.saved_steps())
        state, damaged = _newest_intact(steps, lambda step: self.restore(step, template), self._directory)
        self._damaged = list(damaged)
        for problem in damaged.values():
            report(problem)
        return state

    def restore_variables(self, step: int, template: Variables, *, average: bool = False) -> Variables:
        """The weights that were saved at `step`, or their average. `template` and errors are as in `restore`."""
        if average:
            items = _read(self._manager, step, {"average": {"average": template}}, self._identity)
            return items["average"]["average"]
        return _read(self._manager, step, {"weights": template}, self._identity)["weights"]
