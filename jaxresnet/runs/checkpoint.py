"""Orbax checkpoints. They are saved in the background and verified by checksums. The latest ones and the best are kept.

A checkpoint is a folder named by its step. It holds the items that `jaxresnet.learning.state.ITEMS` lists, and the item
`meta`, which serves to verify them (`jaxresnet.runs.integrity`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxresnet.disk import require_plain
from jaxresnet.errors import UserError
from jaxresnet.learning.state import ITEMS, TrainState, Variables
from jaxresnet.machine.workarounds import first_reason
from jaxresnet.runs.integrity import (
    DamagedCheckpointError,
    accuracy_metrics,
    accuracy_of,
    check_content,
    check_meta,
    check_shapes,
    make_meta,
    set_aside_accuracies,
)

LATEST_KEPT = 2
"""Two, so that training can go on from the one before if the newest is damaged."""


def _options(read_only: bool) -> ocp.CheckpointManagerOptions:
    policy = checkpoint_managers.AnyPreservationPolicy(
        [
            checkpoint_managers.LatestN(LATEST_KEPT),
            # A checkpoint from the middle of an epoch has no metrics. It must not be kept forever.
            checkpoint_managers.BestN(get_metric_fn=accuracy_of, n=1, keep_checkpoints_without_metrics=False),
        ]
    )
    return ocp.CheckpointManagerOptions(
        best_fn=accuracy_of,
        preservation_policy=None if read_only else policy,
        read_only=read_only,
        save_interval_steps=0 if read_only else 1,  # else orbax warns that it sets this
        create=not read_only,
        cleanup_tmp_directories=not read_only,
    )


def _read(manager: ocp.CheckpointManager, step: int, templates: dict[str, Any]) -> dict[str, Any]:
    """The items of a checkpoint that are named in `templates`, verified.

    Raises DamagedCheckpointError if the checkpoint is damaged. Raises UserError if it is intact, but belongs to another
    network or was written by a later version.
    """
    name = f"checkpoint {step} in {manager.directory}"
    try:
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        check_meta(meta, name)
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


class Checkpoints:
    """The checkpoints of one run.

    A context manager that waits at its end for the save in the background. With `read_only` the folder is not changed,
    so that a checkpoint can be evaluated while the run goes on. Raises UserError if `directory` is a file.

    If the recorded accuracy of a checkpoint is damaged: with `read_only`, raises DamagedCheckpointError. Otherwise the
    checkpoint no longer counts as the best, and `restore_latest` reports it.
    """

    def __init__(self, directory: Path, *, read_only: bool = False):
        if directory.exists() and not directory.is_dir():
            raise UserError(f"expected a folder of checkpoints, found a file: {directory}")
        require_plain(directory)
        self._directory = directory.absolute()  # with a relative path, orbax would fail at the first save
        # Orbax reads all accuracies when it opens the folder, and fails if it cannot read one.
        self._set_aside = set_aside_accuracies(self._directory, read_only)
        self._manager = ocp.CheckpointManager(
            self._directory, options=_options(read_only), item_names=(*ITEMS, "meta")
        )

    def saved_steps(self) -> list[int]:
        """The steps of the complete checkpoints, in ascending order."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step of the most accurate checkpoint; None if none was evaluated."""
        return self._manager.best_step()

    def save(self, state: TrainState, accuracy: float | None = None) -> None:
        """Save `state` in the background, with its `accuracy` (0 to 1) if it was evaluated.

        It replaces a checkpoint of the same step, which was saved before the evaluation. Raises UserError if this save
        cannot be started, or if the one before it failed.
        """
        step = int(state.step)
        # As NumPy arrays: of a JAX array on several devices, orbax saves a slice from each. It compiles a program for
        # every shape and device, which takes seconds. Copied: with a view, the next train step could not reuse the
        # buffers.
        items = jax.tree.map(np.array, jax.device_get(state.items()))
        meta = make_meta(items)

        def save() -> None:
            # Wait for the save before this one: it may be of the same step. Orbax would wait for it, too.
            self._manager.wait_until_finished()
            if step in self._manager.all_steps():  # orbax would keep the old one and return False
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
                    meta=ocp.args.JsonSave(meta),
                ),
                metrics=None if accuracy is None else accuracy_metrics(accuracy),
            )

        self._reporting(save)

    def wait(self) -> None:
        """Wait for the save in the background. Raises UserError if it failed."""
        self._reporting(self._manager.wait_until_finished)

    def _reporting(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # one of many types; each means that nothing was saved
            kept = ", ".join(map(str, self.saved_steps())) or "none"
            raise UserError(
                f"cannot save a checkpoint in {self._directory}: {first_reason(error)}; earlier checkpoints are intact "
                f"(steps: {kept}): mend that, then run the same command again"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._reporting(self._manager.close)
        except UserError:
            if kind is None:  # else the first error is the one to report
                raise

    def restore(self, step: int, template: TrainState) -> TrainState:
        """The state that was saved at `step`.

        `template` is a state with a jax.ShapeDtypeStruct that has a sharding in place of each array. Raises
        DamagedCheckpointError if what is read is not what was saved, and UserError if it belongs to another network or
        was written by a later version.
        """
        restored = _read(self._manager, step, template.items())
        return TrainState.from_items(restored)

    def restore_latest(self, template: TrainState, report: Callable[[str], None]) -> TrainState | None:
        """The newest intact state, or None if nothing was saved yet.

        Newer checkpoints that are damaged are passed to `report`, a line for each, and deleted, so that training can
        save their steps again. Raises UserError, and deletes nothing, if all are damaged or one that is intact belongs
        to another network.
        """
        for problem in self._set_aside:
            report(problem)
        damaged: dict[int, str] = {}
        for step in reversed(self.saved_steps()):
            try:
                state = self.restore(step, template)
            except DamagedCheckpointError as error:
                damaged[step] = str(error)
                continue
            for each, problem in damaged.items():
                report(f"{problem}; going back to checkpoint {step}")
                self._manager.delete(each)
            return state
        if damaged:
            advice = f"no checkpoint is intact: remove {self._directory} to start anew"
            raise UserError("\n".join([*damaged.values(), advice]))
        return None

    def restore_variables(self, step: int, template: Variables) -> Variables:
        """The weights that were saved at `step`. `template` and errors are as in `restore`."""
        return _read(self._manager, step, {"weights": template})["weights"]
