"""The compiled train steps of a run: a program for each size of its images, compiled while the run goes on."""

import functools
from collections.abc import Callable, Iterable

from jaxresnet.data.batches import Batch
from jaxresnet.data.resolution import Size
from jaxresnet.learning.metrics import Metrics
from jaxresnet.learning.state import TrainState
from jaxresnet.machine.signals import Background

Program = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
"""A compiled train step with the run's hyperparameters put in."""


class TrainPrograms:
    """The programs of a run by the size of the images. It is called like one of them, with a batch of any size begun.

    `compile_for` compiles the program for a size.
    """

    def __init__(self, compile_for: Callable[[Size], Program]):
        self._compile_for = compile_for
        self._tasks: dict[Size, Background[Program]] = {}

    def begin(self, sizes: Iterable[Size]) -> None:
        """Compile in the background for each of these sizes for which that has not begun, one after the other."""
        for size in sizes:
            if size not in self._tasks:
                before = list(self._tasks.values())
                self._tasks[size] = Background(functools.partial(self._compile_after, before, size))

    def _compile_after(self, before: list[Background[Program]], size: Size) -> Program:
        for task in before:  # one at a time, because the first one is needed first
            task.done()
        return self._compile_for(size)

    def ready(self, size: Size, seconds: float = 0.0) -> bool:
        """Whether the program for `size` is compiled. Waits for that for at most `seconds`.

        Raises what compiling for any size has raised, because a run that cannot be finished need not go on.
        """
        for task in self._tasks.values():
            if task.done(0):
                task.result()
        return self._tasks[size].done(seconds)

    def of(self, size: Size) -> Program:
        """The program for `size`. Waits for it. Raises what compiling it raised."""
        return self._tasks[size].result()

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Take a step with the program for the size of the batch."""
        return self.of(batch.image.shape[1:3])(state, batch)
