"""The devices that compute a network: one mesh, over which batches are sharded."""

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxresnet.errors import UserError
from jaxresnet.machine.environment import available_cores

T = TypeVar("T")

MOST_CPU_DEVICES = 256
"""As many virtual devices as the setting `cpu_devices` takes."""

ARITHMETIC = {
    "jax_enable_x64": False,
    "jax_disable_jit": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
}
"""JAX's settings on which the results depend, each with the only value that a command computes with. An environment
variable of the same name in capitals sets them."""


def start_devices(device: str, cpu_devices: int) -> Mesh:
    """Start JAX's backend. Returns the mesh of all devices, from `local_mesh`: those of all processes that have joined.

    For commands only, because it changes JAX's configuration. `device` is "auto" (JAX's choice), "cpu" or "cuda". A CPU
    is divided into `cpu_devices` virtual devices, unless XLA_FLAGS sets another number or the backend has started
    before. Raises UserError if there is no such device, or if JAX is set to compute otherwise (`check_arithmetic`).
    """
    check_arithmetic()
    if device != "auto":
        jax.config.update("jax_platforms", device)
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # the backend has started
            jax.config.update("jax_num_cpu_devices", cpu_devices)
    try:
        return local_mesh(jax.devices())
    except (RuntimeError, AssertionError) as error:  # the type depends on JAX's version
        reason = (str(error).strip() or "JAX has no such backend here").splitlines()[0]
        remedy = "install a CUDA extra (README) on a machine with an NVIDIA GPU, or use --device cpu"
        if device != "cuda":
            remedy = "JAX_PLATFORMS and XLA_FLAGS say what JAX may use"
        raise UserError(f"no {device} device: {reason}; {remedy}") from None


def check_arithmetic() -> None:
    """Raise UserError (exit code 2) if one of JAX's settings would make this another computation, or one that fails."""
    found = {name: jax.config.values.get(name, usual) for name, usual in ARITHMETIC.items()}
    problems = [
        f"{name.upper()}: expected {ARITHMETIC[name]}, found {value}; the results would be others: unset it"
        for name, value in found.items()
        if value != ARITHMETIC[name]
    ]
    if problems:
        raise UserError("\n".join(problems), 2)


def local_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of JAX's `devices`, by default all of this process, with the single axis "data"."""
    devices = jax.local_devices() if devices is None else devices
    # Auto, because jax 0.12 cannot trace a linen train step with its default, explicit axes.
    return jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=(AxisType.Auto,))


def on_cpu(mesh: Mesh) -> bool:
    """Whether the mesh's devices are a CPU's."""
    return mesh.devices.flat[0].platform == "cpu"


def automatic_cpu_devices(batch_size: int) -> int:
    """Number of virtual devices for a CPU: the largest that divides the batch and is at most `available_cores()`.

    One for each core is the fastest: on two cores, two are faster than one or four (results/speed/curves).
    """
    cores = available_cores()
    return next(
        devices
        for devices in range(min(cores, batch_size, MOST_CPU_DEVICES), 0, -1)
        if batch_size % devices == 0
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that puts the whole array on every device, as for the train state."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(mesh: Mesh, tree: T) -> T:
    """The arrays of a pytree on every device of the mesh; every process must give the same ones."""
    sharding = replicated(mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def on_each(array: Any) -> jax.Array:
        # device_put would compare the arrays of all processes, in a computation of its own.
        copies = [jax.device_put(array, device) for device in mesh.local_devices]
        return jax.make_array_from_single_device_arrays(copies[0].shape, sharding, copies)

    return jax.tree.map(on_each, tree)


def _examples(mesh: Mesh) -> NamedSharding:
    """The sharding that gives each device an equal part of the examples."""
    return NamedSharding(mesh, PartitionSpec("data"))


def own_rows(mesh: Mesh, batch_size: int) -> slice | None:
    """The rows of a batch that lie on this process's devices; None if they are all."""
    sharding = _examples(mesh)
    if sharding.is_fully_addressable:
        return None
    places = [index[0] for index in sharding.addressable_devices_indices_map((batch_size,)).values() if index]
    return slice(min(rows.start for rows in places), max(rows.stop for rows in places))


def shard_batch(mesh: Mesh, batch: T) -> T:
    """Start to copy a pytree of NumPy arrays to the devices. Each device gets an equal part of the examples.

    Every process gives the whole batch. Returns the same pytree of JAX arrays, without waiting for the copies.
    """
    return _shard(mesh, batch, whole=True)


def _shard(mesh: Mesh, batch: T, whole: bool) -> T:
    """What `shard_batch` does; if the batch is not `whole`, every process gives its own rows of it."""
    put, sharding = jax.make_array_from_process_local_data, _examples(mesh)
    return jax.tree.map(lambda array: put(sharding, array, array.shape if whole else None), batch)


def device_batches(batches: Iterator[T], mesh: Mesh, ahead: int = 2) -> Iterator[T]:
    """The same batches on the devices. The next `ahead` batches are copied while one is in use.

    Every process gives its `own_rows` of each batch. The first batches are being copied already when this function
    returns.
    """
    waiting = deque(_shard(mesh, batch, whole=False) for batch in itertools.islice(batches, ahead))

    def stream() -> Iterator[T]:
        for batch in batches:
            waiting.append(_shard(mesh, batch, whole=False))
            yield waiting.popleft()
        yield from waiting

    return stream()


def check_batch_size(batch_size: int, devices: int) -> None:
    """Raise UserError (exit code 2) if the number of devices does not divide the batch size."""
    if batch_size % devices:
        below = batch_size // devices * devices
        nearest = f"{below} and {below + devices}" if below else f"{devices}"
        fewest = jax.process_count()
        raise UserError(
            f"batch_size: expected a multiple of the {devices} devices, found {batch_size}; the nearest is {nearest} "
            f"(on a CPU, --cpu-devices {fewest} takes any{f' multiple of {fewest}' if fewest > 1 else ''})",
            2,
        )
