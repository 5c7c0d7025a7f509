"""What is recorded about each start of a run: command, versions, devices, times; and the cores it may use."""

import contextlib
import datetime
import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:  # JAX need not be loaded to read the records of starts
    from jax.sharding import Mesh

RECORDED_PACKAGES = (
    "jaxresnet", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "numpy", "tensorflow-datasets",
    "tensorflow-cpu", "tensorflow", "scikit-learn", "jax-cuda12-plugin", "jax-cuda13-plugin",
)  # fmt: skip


CPU_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")
"""Instruction sets that XLA's programs, and so their speed and their rounding, depend on."""

_CPU_INFO = Path("/proc/cpuinfo")
_CPU_IDENTITY = ("vendor_id", "cpu family", "model", "stepping")


@dataclass(frozen=True)
class Start:
    """One start of a run, an entry of environment.json.

    `started` is the time in ISO format, UTC. `git` holds the "commit" of the source and whether it was "dirty", or None
    if git did not say; it is None if the package does not lie in a git checkout. `cpu_identity` is the CPU's vendor,
    family, model and stepping, and `cpu_flags` are those of its instruction sets on which speed and rounding depend.
    Rounding also depends on `available_cores`, the number that the process may use, if it is larger than that of the
    devices. `jax_variables` are the environment variables that set JAX, whose names begin with JAX_. `processes` is the
    number of processes that the devices belong to. These fields are None until they are known: `compile_seconds`,
    before the first step; `train_seconds`, without compilation and evaluation, up to the last save; `seconds` of the
    whole start from the call of `jaxresnet.fit.fit` on, if it came to its end or was stopped; `peak_device_bytes`,
    which stays None on a CPU.
    """

    started: str
    command: str
    versions: dict[str, str]
    git: dict[str, Any] | None
    backend: str
    devices: list[str]
    precision: str
    driver: str | None
    xla_flags: str | None
    platform: str
    cpu: str
    cpu_cores: int | None
    cpu_identity: str | None = None
    cpu_flags: list[str] = field(default_factory=list)
    physical_cores: int | None = None
    available_cores: int | None = None
    memory_bytes: int | None = None
    compile_seconds: float | None = None
    train_seconds: float | None = None
    seconds: float | None = None
    peak_device_bytes: int | None = None
    jax_variables: dict[str, str] = field(default_factory=dict)
    processes: int = 1

    __pydantic_config__: ClassVar[dict[str, bool]] = {"allow_inf_nan": False}  # read by jaxresnet.runs.files


def describe_environment(mesh: "Mesh", precision: str, argv: list[str]) -> Start:
    """The record of a start of a run on `mesh`. `precision` is the run's setting, `argv` its command line."""
    devices, cpu = list(mesh.devices.flat), _first_cpu()
    gpu = devices[0].platform == "gpu"
    return Start(
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=_text(shlex.join(argv)),
        versions=versions(),
        git=_git(),
        backend=devices[0].platform,
        devices=[device.device_kind for device in devices],
        precision=precision,
        driver=_output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
        if gpu
        else None,
        xla_flags=_text(os.environ["XLA_FLAGS"]) if "XLA_FLAGS" in os.environ else None,
        platform=platform.platform(),
        cpu=cpu.get("model name") or platform.processor(),
        cpu_cores=os.cpu_count(),
        cpu_identity=" ".join(cpu[key] for key in _CPU_IDENTITY if key in cpu) or None,
        cpu_flags=[flag for flag in CPU_FLAGS if flag in cpu.get("flags", "").split()],
        physical_cores=_physical_cores(),
        available_cores=available_cores(),
        memory_bytes=_memory_bytes(),
        jax_variables={
            _text(key): _text(value) for key, value in os.environ.items() if key.startswith("JAX_")
        },
        processes=len({device.process_index for device in devices}),
    )


def _text(value: str) -> str:
    """A name or variable of the system as UTF-8, which it need not be; other bytes are escaped."""
    return value.encode(errors="backslashreplace").decode()


def versions() -> dict[str, str]:
    """The versions of Python and of those of RECORDED_PACKAGES that are installed."""
    found = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def source_digest() -> str:
    """A digest of the package's own modules: another one means another version of the code, also an uncommitted one."""
    root, digest = Path(__file__).resolve().parent.parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def peak_device_bytes(mesh: "Mesh") -> int | None:
    """The most memory in bytes that any device of the mesh has used so far; None on a CPU, which does not count it."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in mesh.local_devices]
    return max((peak for peak in peaks if peak is not None), default=None)


def available_cores() -> int:
    """Number of cores that this process may keep busy: those it may run on, within its control group's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def _git() -> dict[str, Any] | None:
    """The commit of the package's source, and whether files differ from it; None if it is not in a git checkout."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / ".git").exists():
        return None
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
    status = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if status is None else bool(status)} if commit else None


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_entries() -> list[dict[str, str]]:
    """What Linux says of each logical CPU; empty elsewhere."""
    try:
        text = _CPU_INFO.read_text(encoding="utf-8")
    except OSError:
        return []
    pairs = [[line.partition(":") for line in entry.splitlines()] for entry in text.strip().split("\n\n")]
    return [{key.strip(): value.strip() for key, _, value in entry} for entry in pairs]


def _first_cpu() -> dict[str, str]:
    return next(iter(_cpu_entries()), {})


def _physical_cores() -> int | None:
    """Cores, counted without their second threads; None if the system does not say."""
    cores = {
        (cpu["physical id"], cpu["core id"])
        for cpu in _cpu_entries()
        if "core id" in cpu and "physical id" in cpu
    }
    return len(cores) or None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # no such function on Windows
        return None
