"""The process around a run: environment variables, devices, compilation cache, signals, what to record."""

import contextlib
import datetime
import functools
import glob
import importlib.metadata
import logging
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Self, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxresnet.batch import Batch
from jaxresnet.errors import Interrupted, UserError
from jaxresnet.memory import free_bytes

T = TypeVar("T")

RECORDED_PACKAGES = (
    "jaxresnet", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "numpy", "tensorflow-datasets",
    "tensorflow-cpu", "tensorflow", "scikit-learn", "jax-cuda12-plugin", "jax-cuda13-plugin",
)  # fmt: skip


def quiet_libraries() -> None:
    """Silence notices that no user can act on. To be called before TensorFlow is imported.

    Environment variables that the user has set win.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax's, which raises what it logs as errors
    sys.unraisablehook = _ignore_closed_loops
    logging.getLogger("asyncio").addFilter(_not_of_checkpoints)
    # TensorFlow's start-up notices, and its comments on errors that it raises; JAX sets 1 as it is imported.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # no notice, and the same results on every CPU


def _not_of_checkpoints(record: logging.LogRecord) -> bool:
    """Leave out the reads of a damaged checkpoint that failed after the one whose error was raised."""
    message = record.getMessage()
    return "was never retrieved" not in message or not ("orbax" in message or "OCDBT" in message)


_unraisablehook = sys.unraisablehook


def _ignore_closed_loops(unraisable: Any) -> None:
    """Leave out the tracebacks, hundreds, of writes that outlive the first one that failed of a checkpoint.

    Orbax raises that one and closes the event loop which tensorstore's threads report the others to.
    """
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        _unraisablehook(unraisable)


def start_devices(device: str, cpu_devices: int) -> Mesh:
    """Start JAX's backend and lay all its local devices on a mesh with the one axis "data".

    `device` is "auto" (JAX's choice), "cpu" or "cuda". A CPU is divided into `cpu_devices` virtual devices,
    unless XLA_FLAGS says otherwise or the backend has started before. Raises UserError if there is no such
    device.
    """
    if device != "auto":
        jax.config.update("jax_platforms", device)
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # the backend has started
            jax.config.update("jax_num_cpu_devices", cpu_devices)
    try:
        devices = jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # which one, JAX's version decides
        reason = (str(error).strip() or "JAX has no such backend here").splitlines()[0]
        remedy = "install a CUDA extra (README) on a machine with an NVIDIA GPU, or use --device cpu"
        if device != "cuda":
            remedy = "JAX_PLATFORMS and XLA_FLAGS say what JAX may use"
        raise UserError(f"no {device} device: {reason}; {remedy}") from None
    # Auto, because the default of explicit axes does not trace a linen train step on jax 0.12.
    return jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole: the train state."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(mesh: Mesh, batch: Batch) -> Batch:
    """Start a NumPy batch on its way to the devices, each of which gets an equal part of the examples."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return Batch(*(jax.make_array_from_process_local_data(sharding, array) for array in batch))


def check_batch_size(batch_size: int, devices: int) -> None:
    """Raise UserError (exit code 2) if the batch does not divide evenly among the devices."""
    if batch_size % devices:
        below = batch_size // devices * devices
        nearest = f"{below} and {below + devices}" if below else f"{devices}"
        raise UserError(
            f"batch_size: expected a multiple of the {devices} devices, found {batch_size}; "
            f"the nearest is {nearest} (--cpu-devices 1 takes any on a CPU)",
            2,
        )


@contextlib.contextmanager
def telling_of_memory(batch_size: int, mesh: Mesh) -> Iterator[None]:
    """Raise UserError where the block runs out of memory, on a device or on the host."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        reason = (str(error).strip() or "MemoryError").splitlines()[0]
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in reason:
            raise
        devices = mesh.devices.size
        raise UserError(
            f"out of memory with batch_size {batch_size:,} on {devices} {mesh.devices.flat[0].platform} "
            f"device{'s' * (devices > 1)} ({reason}): lower batch_size, or model.stage_channels"
        ) from error


def check_memory(batch_size: int, mesh: Mesh, step: jax.stages.Compiled) -> None:
    """Raise UserError if the host has less memory than the compiled `step` takes on virtual CPU devices.

    There the system would kill the process, or one device fail while the others wait for it. A GPU fails by itself.
    """
    devices = mesh.devices.size
    analysis, free = step.memory_analysis(), free_bytes()
    if mesh.devices.flat[0].platform != "cpu" or analysis is None or free is None:
        return
    needed = devices * analysis.temp_size_in_bytes
    if needed > free:
        fitting = int(batch_size * free / needed) // devices * devices
        remedy = f"batch_size to about {fitting:,}" if fitting else "batch_size and model.stage_channels"
        raise UserError(
            f"out of memory: a step with batch_size {batch_size:,} needs {needed / 2**30:.1f} GiB on {devices} cpu "
            f"devices, {free / 2**30:.1f} GiB are free: lower {remedy}"
        )


def use_compilation_cache() -> None:
    """Keep compiled programs between runs: in $JAX_COMPILATION_CACHE_DIR, else in the user's cache folder."""
    warnings.showwarning = _mend_compilation_cache
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return  # JAX reads it itself
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxresnet" / "compilation"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        writable = os.access(cache, os.W_OK)
    except OSError:
        writable = False
    if writable:
        jax.config.update("jax_compilation_cache_dir", str(cache))
    else:
        print(f"note: no compilation cache, because {cache} is not writable", file=sys.stderr)


_showwarning = warnings.showwarning
_CACHE_PROBLEM = re.compile(r"Error (?:read|writ)ing persistent compilation cache entry for '(.+?)': (.*)")


def _mend_compilation_cache(message: Warning | str, *details: Any) -> None:
    """Remove an entry that JAX cannot read or write, which it would warn of and leave at every start.

    A process that is killed, or a full disk, leaves one. The entry's exact name is not told, so all of its
    program's go.
    """
    problem = _CACHE_PROBLEM.match(str(message))
    folder = jax.config.jax_compilation_cache_dir
    if problem is None or folder is None:
        _showwarning(message, *details)
        return
    program, reason = problem.groups()
    with contextlib.suppress(OSError):
        for entry in Path(folder).glob(f"{glob.escape(program)}-*"):
            entry.unlink(missing_ok=True)
    _tell_once(
        f"note: an entry of the compilation cache {folder} was of no use ({reason[:100]}) and is removed"
    )


@functools.cache
def _tell_once(line: str) -> None:
    print(line, file=sys.stderr)


class StopSignal:
    """Notes the first SIGINT or SIGTERM, and lets a second one end the process at once.

    A context manager; `number` is the signal's number, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.number = number
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)

    def run(self, function: Callable[[], T], doing: str) -> T:
        """`function()`, in a thread, so that a signal is noticed during minutes inside a library.

        Raises Interrupted at the first signal, leaving the thread to itself.
        """
        return self.wait(Background(function), doing)

    def wait(self, task: "Background[T]", doing: str) -> T:
        """What `task` returns, or raises. Raises Interrupted at the first signal, leaving it to itself."""
        while not task.done(0.05):
            if self.number is not None:
                raise Interrupted(
                    f"interrupted while {doing}: nothing new to save; run the same command again to go on",
                    self.number,
                )
        return task.result()


class Background(Generic[T]):
    """A function that runs in a thread from now on, which does not keep the process from ending."""

    def __init__(self, function: Callable[[], T]):
        self._function = function
        self._outcome: list[tuple[bool, Any]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome.append((True, self._function()))
        except BaseException as error:
            self._outcome.append((False, error))

    def done(self, seconds: float) -> bool:
        """Whether it has returned or raised, after waiting for that up to `seconds`."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> T:
        """What it returns, or raises, once it has."""
        self._thread.join()
        succeeded, value = self._outcome[0]
        if not succeeded:
            raise value
        return value


def describe_environment(mesh: Mesh, precision: str, argv: list[str]) -> dict[str, Any]:
    """What a start of a run is to be remembered by, as JSON values."""
    devices = list(mesh.devices.flat)
    gpu = devices[0].platform == "gpu"
    versions = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(argv),
        "versions": versions,
        "git": _git(),
        "backend": devices[0].platform,
        "devices": [device.device_kind for device in devices],
        "precision": precision,
        "driver": _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
        if gpu
        else None,
        "xla_flags": os.environ.get("XLA_FLAGS"),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_cores": os.cpu_count(),
    }


def peak_device_bytes(mesh: Mesh) -> int | None:
    """The most memory that any device of the mesh has had in use so far; None where it is not counted, on a CPU."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in mesh.local_devices]
    return max((peak for peak in peaks if peak is not None), default=None)


def _git() -> dict[str, Any] | None:
    """The commit that the package's source is checked out at; None where it is installed otherwise."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
    status = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(status)} if commit else None


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
