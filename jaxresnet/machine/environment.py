"""What is recorded about each start of a run: command, versions, devices, times."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # JAX need not be loaded to read the records of starts
    from jax.sharding import Mesh

RECORDED_PACKAGES = (
    "jaxresnet", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "numpy", "tensorflow-datasets",
    "tensorflow-cpu", "tensorflow", "scikit-learn", "jax-cuda12-plugin", "jax-cuda13-plugin",
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """One start of a run, an entry of environment.json.

    `started` is the time in ISO format, UTC. `git` holds the "commit" of the source and whether it was "dirty"; None if
    the package does not lie in a git checkout. The last three fields are None until they are known: `compile_seconds`;
    `seconds` of the whole start; `peak_device_bytes`, which stays None on a CPU.
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
    compile_seconds: float | None = None
    seconds: float | None = None
    peak_device_bytes: int | None = None


def describe_environment(mesh: "Mesh", precision: str, argv: list[str]) -> Start:
    """The record of a start of a run on `mesh`. `precision` is the run's setting, `argv` its command line."""
    devices = list(mesh.devices.flat)
    gpu = devices[0].platform == "gpu"
    versions = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Start(
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=shlex.join(argv),
        versions=versions,
        git=_git(),
        backend=devices[0].platform,
        devices=[device.device_kind for device in devices],
        precision=precision,
        driver=_output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
        if gpu
        else None,
        xla_flags=os.environ.get("XLA_FLAGS"),
        platform=platform.platform(),
        cpu=_cpu_model(),
        cpu_cores=os.cpu_count(),
    )


def peak_device_bytes(mesh: "Mesh") -> int | None:
    """The most memory in bytes that any device of the mesh has used so far; None on a CPU, which does not count it."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in mesh.local_devices]
    return max((peak for peak in peaks if peak is not None), default=None)


def _git() -> dict[str, Any] | None:
    """The commit of the package's source, and whether files differ from it; None if it is not in a git checkout."""
    root = Path(__file__).resolve().parent.parent.parent
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
