"""The cores of a run, where several runs train on one machine at the same time."""

import contextlib
import os
import random
import socket
from collections.abc import Iterator, Sequence

PLACE = "\0jaxresnet-core-"
"""Beginning of the names that hold cores. They are no files (unix(7), abstract): the kernel frees one with its last
process."""


@contextlib.contextmanager
def cores_for_a_run(number: int) -> Iterator[Sequence[int]]:
    """In the block, this thread and what it starts run on `number` cores only, which no other run here has.

    So the number of a CPU's devices and the sizes of the thread pools of XLA and TensorFlow follow `number`, and runs
    do not disturb each other. Yields descriptors: a process that inherits them keeps the cores even if this one is
    killed. If too few cores are free, some are shared. Where threads cannot be bound to cores (not on Linux), nothing
    is done.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    allowed = os.sched_getaffinity(0)
    with contextlib.ExitStack() as held:
        # In random order: machines in containers may share their cores without knowing of each other.
        names = random.sample(sorted(allowed), len(allowed))
        taken: dict[int, int] = {}
        for core in names:
            if len(taken) < number and (descriptor := _take(core, held)) is not None:
                taken[core] = descriptor
        others = [core for core in names if core not in taken]
        os.sched_setaffinity(0, [*taken, *others[: number - len(taken)]])
        try:
            yield tuple(taken.values())
        finally:
            os.sched_setaffinity(0, allowed)


def _take(core: int, held: contextlib.ExitStack) -> int | None:
    """The descriptor that holds a core until `held` closes; None if another process has it."""
    place = held.enter_context(socket.socket(socket.AF_UNIX))
    try:
        place.bind(f"{PLACE}{core}")
    except OSError:
        return None
    return place.fileno()
