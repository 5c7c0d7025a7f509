"""Memory: how much is free, and an error of one line when there is too little."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jaxresnet.errors import UserError

if TYPE_CHECKING:  # how much memory there is, is asked before JAX is loaded
    import jax
    from jax.sharding import Mesh


def free_bytes() -> int | None:
    """Bytes of memory that this process can still allocate on Linux; None elsewhere.

    It is the least of three: the free memory of the machine, including swap; what RLIMIT_AS (`ulimit -v`) leaves; and
    what the control group leaves (version 2, as a container sees it).
    """
    try:
        import resource

        machine = _fields(Path("/proc/meminfo"))
        free = [1024 * (machine["MemAvailable:"] + machine["SwapFree:"])]
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            free.append(limit - pages * resource.getpagesize())
    except (ImportError, OSError, KeyError, ValueError):
        return None
    with contextlib.suppress(OSError, KeyError, ValueError):  # no such group, or "max"
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text()) - _fields(group / "memory.stat")["inactive_file"]
        free.append(int((group / "memory.max").read_text()) - used)
    return max(0, min(free))


def _fields(path: Path) -> dict[str, int]:
    """The first two words of each line in a file: name to number."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {name: int(number) for name, number, *_ in lines}


def require_address_space(gibibytes: float) -> None:
    """Raise UserError if `ulimit -v` leaves less, with which JAX or TensorFlow fails or aborts while it is loaded."""
    try:
        import resource
    except ImportError:  # Windows: no such limit
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < gibibytes * 2**30:
        raise UserError(
            f"expected at least {gibibytes:g} GiB of address space for JAX and TensorFlow, found "
            f"{limit / 2**30:.1f} GiB (ulimit -v): raise that limit"
        )


@contextlib.contextmanager
def out_of_memory_told(
    batch_size: int, mesh: "Mesh", remedy: str = "lower batch_size, or model.stage_channels"
) -> Iterator[None]:
    """Raise UserError, which ends with `remedy`, if the block runs out of memory, on a device or on the host."""
    import jax

    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        reason = (str(error).strip() or "MemoryError").splitlines()[0]
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in reason:
            raise
        devices = mesh.devices.size
        raise UserError(
            f"out of memory with batch_size {batch_size:,} on {devices} {mesh.devices.flat[0].platform} "
            f"device{'s' * (devices > 1)} ({reason}): {remedy}"
        ) from error


def check_memory(batch_size: int, mesh: "Mesh", step: "jax.stages.Compiled", free: int | None = None) -> None:
    """Raise UserError if the host has less free memory than the compiled `step` needs on virtual CPU devices.

    `free` is that memory in bytes, by default what `free_bytes` says now. Otherwise the system would kill the process,
    or one device would fail while the others wait for it. A GPU is not checked: running out of its memory raises an
    error anyway.
    """
    from jaxresnet.machine.devices import on_cpu

    devices = len(mesh.local_devices)
    analysis, free = step.memory_analysis(), free_bytes() if free is None else free
    if not on_cpu(mesh) or analysis is None or free is None:
        return
    needed = devices * analysis.temp_size_in_bytes
    if needed > free:
        fitting = int(batch_size * free / needed) // mesh.devices.size * mesh.devices.size
        remedy = f"batch_size to about {fitting:,}" if fitting else "batch_size and model.stage_channels"
        raise UserError(
            f"out of memory: a step with batch_size {batch_size:,} needs {needed / 2**30:.1f} GiB on {devices} cpu "
            f"devices, {free / 2**30:.1f} GiB are free: lower {remedy}"
        )
