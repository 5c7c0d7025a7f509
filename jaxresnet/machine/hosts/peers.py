"""The processes of one run, as seen by a process that is alone. `jaxresnet.machine.hosts.joined` has several."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:  # a process that is alone need not load JAX for this
    from jax.sharding import Mesh

T = TypeVar("T")

SAVE = 1
"""What `Peers.agreed` is asked for a save. A stop is asked for by its exit code, from 129 on."""


class Peers:
    """The processes of one run: this one, number `index`, is one of `count`. Here it is the only one.

    Process 0 is the first: it alone writes files and prints. A context manager around everything that the processes do
    together: all leave it together.
    """

    index = 0
    count = 1

    @property
    def first(self) -> bool:
        """Whether this is process 0."""
        return self.index == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        pass

    def barrier(self) -> None:
        """Wait until all processes are here. Raises UserError if one of them has failed or is lost."""

    def told(self, value: T) -> T:
        """The value, which JSON can hold, that process 0 has called this with."""
        return value

    def require_same(self, values: Mapping[str, Any], exit_code: int = 1) -> None:
        """Raise UserError with that exit code in each process whose `values`, by name, are others than process 0's."""

    def in_turn(self, function: Callable[[], T]) -> T:
        """Call a function in process 0 and then in the others, which so find what it has left. Returns its result."""
        return function()

    def require_shared(self, folder: Path) -> None:
        """Raise UserError unless the folder, which process 0 can write to, is the same one in all processes."""

    def meet(self, mesh: "Mesh") -> None:
        """Compute together on `mesh`. Raises UserError if a process has more of its devices than another."""

    def spread(self, tree: T | None, like: T) -> T:
        """The arrays of process 0's `tree` on all devices, bit for bit; the other processes pass None.

        `like` is the same tree with a jax.ShapeDtypeStruct in place of each array, each with its sharding.
        """
        assert tree is not None
        return tree

    def begin(self, function: "Callable[[T, Mesh], T]", like: T, mesh: "Mesh") -> T:
        """What `function(like, mesh)` returns in process 0, for the devices of all; there it is called for its own."""
        return function(like, mesh)

    def agreed(self, wish: int) -> int:
        """What all processes do after this step: the largest wish of any, or 0.

        All processes call this at the same points. `wish` is 0, SAVE, or the exit code of a stop.
        """
        return wish
