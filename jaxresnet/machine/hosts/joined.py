"""Joining the other processes of a run, by JAX's own engine. Only this package uses JAX's internal parts."""

import contextlib
import itertools
import json
import secrets
import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxresnet.errors import Interrupted, UserError, exit_now, tell
from jaxresnet.machine.devices import local_mesh, replicated
from jaxresnet.machine.environment import source_digest, versions
from jaxresnet.machine.hosts.launch import Launch
from jaxresnet.machine.hosts.output import Output
from jaxresnet.machine.hosts.peers import Peers
from jaxresnet.machine.hosts.presence import Presence
from jaxresnet.machine.signals import Background
from jaxresnet.machine.workarounds import before_abort

T = TypeVar("T")

WAIT_MILLISECONDS = 24 * 3600 * 1000
"""How long a process waits for the others while all of them live: one may have to download a data set."""

PROBE_SECONDS = 75
"""A network's file system may show a new file that late: NFS remembers for up to 60 seconds that there was none
(acdirmax, nfs(5))."""

WISHES_IN_FLIGHT = 2
"""Wishes that have been exchanged and not yet read, so that no step waits for the exchange."""


def join(launch: Launch) -> "Joined":
    """Find and join the other processes of the run, before JAX's backend starts.

    For commands only: it changes JAX's configuration and the process's standard streams. Raises UserError if that
    fails. If not all processes come within the launch's timeout, it prints one line and ends the process.
    """
    from jax._src import distributed

    output = Output()
    if launch.process_id is not None:
        output.of_process(launch.process_id)
    # It would take over SIGTERM, and knows no SIGINT: `agreed` takes its place.
    jax.config.update("jax_enable_preemption_service", False)
    before_abort(lambda: _sent_away(launch))
    timer = threading.Timer(launch.timeout, _not_all_came, [launch])
    timer.daemon = True
    timer.start()
    try:
        # JAX itself would end the process with a stack trace: it notices all things later than we do.
        jax.distributed.initialize(
            launch.coordinator,
            launch.processes,
            launch.process_id,
            cluster_detection_method="deactivate" if launch.complete else None,
            initialization_timeout=2 * launch.timeout,
            heartbeat_timeout_seconds=launch.timeout + 20,
            shutdown_timeout_seconds=600,
        )
    except Exception as error:  # of many types: each way to find the processes has its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        code = 1 if launch.complete else 2
        raise UserError(f"cannot join the other processes: {reason}; {_REMEDY}", code) from error
    finally:
        timer.cancel()
    state = distributed.global_state
    if launch.process_id is None:
        output.of_process(state.process_id)
    return Joined(state.client, state.process_id, state.num_processes, launch.timeout)


def _sent_away(launch: Launch) -> NoReturn:
    """JAX ends this process while it joins: process 0 knows another one of this number."""
    number = "" if launch.process_id is None else f" {launch.process_id}"
    tell(
        f"error: process 0 has sent this process away: expected each number to be started once, found another process"
        f"{number}, or one that was started again; end all processes of the run, then start them again"
    )
    exit_now(1)


_REMEDY = "expected Slurm, Open MPI or Kubernetes, or --coordinator HOST:PORT --processes N --process-id I"


def _not_all_came(launch: Launch) -> NoReturn:
    this, where = "this process", "the coordinator"
    if launch.complete:
        this = f"this is process {launch.process_id} of {launch.processes}"
        where = f"process 0 at {launch.coordinator}"
    tell(
        f"error: waited {launch.timeout} s for all processes to come to {where} ({this}): expected each number to be "
        "started once, and the address to be reachable from all"
    )
    exit_now(1)


class _Told(Peers):
    """Processes that tell each other values, and how they end."""

    def __init__(self, client: Any, index: int, count: int, timeout: float):
        self.index, self.count = index, count
        self._client = client
        self._calls = itertools.count()
        self._presence = Presence(client, index, count, timeout)

    def __enter__(self) -> Self:
        """Raise UserError if a process has another number of them in mind, or runs another version of the code."""
        code = {"the package's code": source_digest()}
        try:
            self.require_same({"the number of processes": self.count, **code, **versions()}, 2)
        except BaseException as error:
            self.__exit__(type(error), error)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if error is None:
            self.barrier()
            self._presence.stop()
            jax.distributed.shutdown()
            return
        # A computation that breaks raises one, and a later one that needs its result the other.
        computed = isinstance(error, (jax.errors.JaxRuntimeError, ValueError))
        if computed and (reason := self._presence.broken()):
            self._presence.leave(reason.exit_code, str(reason))
            raise reason from None
        code = getattr(error, "exit_code", 1)
        self._presence.leave(code, str(error) or type(error).__name__)
        if isinstance(error, Interrupted) and self.index:
            exit_now(code)  # process 0 tells it
        if not isinstance(error, (UserError, Interrupted, OSError)):
            traceback.print_exception(error)
            exit_now(code)  # a usual end would wait for the others

    def _wait(self, function: Callable[[], T]) -> T:
        """Call a function that waits for other processes. Raises what has made one of them end meanwhile."""
        task = Background(function)
        while not task.done(0.05):
            self._presence.check()
        try:
            return task.result()
        except jax.errors.JaxRuntimeError:
            self._presence.check()
            raise

    def _exchanged(self, value: Any, of: int = 0) -> str:
        """Tell the others a value, as JSON. Returns that of process `of`."""
        place = f"value/{next(self._calls)}"
        self._client.key_value_set(f"{place}/{self.index}", json.dumps(value))
        return self._wait(lambda: self._client.blocking_key_value_get(f"{place}/{of}", WAIT_MILLISECONDS))

    def barrier(self) -> None:
        """As for one process, with a wait."""
        name = f"barrier/{next(self._calls)}"
        self._wait(lambda: self._client.wait_at_barrier(name, WAIT_MILLISECONDS))

    def told(self, value: T) -> T:
        """As for one process, through JSON."""
        return json.loads(self._exchanged(value))

    def require_same(self, values: Mapping[str, Any], exit_code: int = 1) -> None:
        """As for one process. When it returns, all processes have called it."""
        own, first = json.loads(json.dumps(values)), self.told(values)
        differing = "; ".join(
            f"{name} is {own.get(name)!r} here and {first.get(name)!r} there"
            for name in own | dict(first)
            if own.get(name) != first.get(name)
        )
        if differing:
            raise UserError(f"expected the same in every process as in process 0: {differing}", exit_code)
        self.barrier()

    def in_turn(self, function: Callable[[], T]) -> T:
        """As for one process."""
        result = function() if self.first else None
        self.barrier()
        return result if result is not None else function()


class Joined(_Told):
    """The processes that have joined, and compute together; `join` makes it."""

    def __init__(self, client: Any, index: int, count: int, timeout: float):
        super().__init__(client, index, count, timeout)
        self._wishes: deque[jax.Array] = deque()
        self._flags: dict[int, jax.Array] = {}

    def require_shared(self, folder: Path) -> None:
        """As for one process: process 0 leaves a file there for a moment, which the others look for."""
        probe, content = folder / "shared.probe", secrets.token_hex(8)
        place = f"{folder.absolute()} on {socket.gethostname()}"
        with contextlib.ExitStack() as last:
            if self.first:
                last.callback(probe.unlink, missing_ok=True)
                probe.write_text(content)
            content, first = self.told((content, place))
            until = time.monotonic() + PROBE_SECONDS
            while not self.first and not _holds(probe, content):
                if time.monotonic() > until:
                    raise UserError(
                        f"{place} is not the folder of process 0, {first}: expected a --workdir on a file system that "
                        "all computers share"
                    )
                time.sleep(0.2)
            self.barrier()

    def meet(self, mesh: Mesh) -> None:
        """As for one process."""
        found = [0] * self.count
        for device in mesh.devices.flat:
            found[device.process_index] += 1
        if len(set(found)) > 1:
            raise UserError(
                "expected the same number of devices in every process, found " + ", ".join(map(str, found))
            )
        self._sharding = NamedSharding(mesh, PartitionSpec("data"))
        self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def spread(self, tree: T | None, like: T) -> T:
        """As for one process, in one exchange."""
        from jax.experimental.multihost_utils import broadcast_one_to_all

        leaves, structure = jax.tree.flatten(like)
        if tree is None:
            whole = np.zeros(sum(leaf.size * leaf.dtype.itemsize for leaf in leaves), np.uint8)
        else:
            # As bytes: a sum with the other processes' zeros would make -0.0 into 0.0.
            arrays = [np.asarray(leaf).reshape(-1).view(np.uint8) for leaf in jax.tree.leaves(tree)]
            whole = np.concatenate(arrays)
        self.barrier()  # gloo waits for only 30 s when it connects
        whole, begin, spread = np.asarray(broadcast_one_to_all(whole)), 0, []
        for leaf in leaves:
            end = begin + leaf.size * leaf.dtype.itemsize
            array = whole[begin:end].copy().view(leaf.dtype).reshape(leaf.shape)
            spread.append(jax.make_array_from_process_local_data(leaf.sharding, array, leaf.shape))
            begin = end
        return jax.tree.unflatten(structure, spread)

    def begin(self, function: Callable[[T, Mesh], T], like: T, mesh: Mesh) -> T:
        """As for one process: the others get what process 0 makes on its own devices."""
        here = local_mesh()
        local = jax.tree.map(lambda leaf: leaf.update(sharding=replicated(here)), like)
        return self.spread(function(local, here) if self.first else None, like)

    def agreed(self, wish: int) -> int:
        """As for one process, of the wishes WISHES_IN_FLIGHT calls before."""
        self._wishes.append(self._largest(self._flag(wish)))
        if len(self._wishes) <= WISHES_IN_FLIGHT:
            return 0
        heard = int(np.asarray(self._wishes.popleft().addressable_data(0)))
        if heard:
            self._wishes.clear()  # those since then ask for the same, or will be asked for again
        return heard

    def _flag(self, wish: int) -> jax.Array:
        """The wish on each device of this process. Made once, because nearly all wishes are 0."""
        if wish not in self._flags:
            own = np.full(len(self._sharding.addressable_devices), wish, np.int32)
            self._flags[wish] = jax.make_array_from_process_local_data(self._sharding, own)
        return self._flags[wish]


def _holds(probe: Path, content: str) -> bool:
    with contextlib.suppress(OSError):
        return probe.read_text() == content
    return False
