"""Helpers for several test modules and the fault campaign: small plans, devices, commands in new processes."""

import contextlib
import functools
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxresnet.config.schema import Config
from jaxresnet.data.batches import Batch
from jaxresnet.data.info import outline
from jaxresnet.data.sources import open_source
from jaxresnet.learning.learner import Learner, make_hyperparameters, make_learner, random_key
from jaxresnet.learning.metrics import Metrics
from jaxresnet.learning.state import TrainState, make_init, state_template
from jaxresnet.learning.step import make_train_step
from jaxresnet.machine.devices import replicated
from jaxresnet.plan import Plan, resolve
from jaxresnet.runs.checkpoint import Checkpoints
from jaxresnet.runs.workdir import Workdir

ROOT = Path(__file__).parent.parent

TINY_SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 8,
    "model.stem_kernel": 3,
    "model.stem_channels": 4,
    "model.stage_blocks": (1, 1),
    "model.stage_channels": (4, 6),
    "model.stage_strides": (1, 2),
    "data.name": "digits",
    "augment.horizontal_flip": False,
    "optimizer.schedule_epochs": 0,
}
"""A network with one block of each kind (with and without a convolution in the shortcut), on the digits."""


def plan_of(config: Config | None = None, settings: Mapping[str, Any] | None = None) -> Plan:
    """The plan of a configuration, by default the paper's, with new values for some settings.

    Of a data set whose facts must be read, those that are known without; of a folder that is not named, made-up ones.
    """
    config = (config or Config()).replace(settings or {})
    if config.data.name == "folder" and not config.data.dir:
        side = config.data.image_size
        return resolve(config, outline("folder", (side, side, 3), ["a", "b"], 100, 10))
    return resolve(config, open_source(config.data).outline)


def mesh_of(devices: int) -> Mesh:
    """A mesh of the first `devices` virtual devices."""
    from jaxresnet.machine.devices import local_mesh

    return local_mesh(jax.devices()[:devices])


def initial_state(learner: Learner, sharding: Any = None) -> TrainState:
    """The state before the first step."""
    init = jax.jit(make_init(learner), out_shardings=sharding)
    return init(random_key(learner.plan.config.seed))


def jitted_train_step(
    learner: Learner, sharding: Any = None, *, donate: bool = False
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted train step with the hyperparameters of the learner's plan put in."""
    step = jax.jit(make_train_step(learner), out_shardings=sharding, donate_argnums=1 if donate else ())
    return functools.partial(step, make_hyperparameters(learner.plan))


def timeless_records(workdir: Path) -> list[dict[str, Any]]:
    """The records in a run's metrics.jsonl, without the measured times."""
    records = [record.as_json() for record in Workdir(workdir).epochs.read()]
    return [{key: value for key, value in record.items() if "second" not in key} for record in records]


def final_state(workdir: Path, config: Config) -> TrainState:
    """The newest state that a run of `config` on four devices has saved."""
    template = state_template(make_learner(plan_of(config)), replicated(mesh_of(4)))
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return jax.device_get(checkpoints.restore(checkpoints.saved_steps()[-1], template))


def assert_same_run(workdir: Path, expected: Path, config: Config) -> None:
    """Both runs of `config` have the same records, evaluation and last state, to the bit."""
    assert timeless_records(workdir) == timeless_records(expected)
    assert (workdir / "evaluation.json").read_text() == (expected / "evaluation.json").read_text()
    jax.tree.map(np.testing.assert_array_equal, final_state(workdir, config), final_state(expected, config))


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """In the block, writing a file beyond `size` bytes fails, as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores the signal, the write fails
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def start_command(
    command: str,
    *arguments: object,
    python: str = sys.executable,
    log: Any = subprocess.PIPE,
    **variables: str,
) -> "subprocess.Popen[str]":
    """Start a command of the package in its own process, with `variables` added to its environment.

    stdout and stderr are pipes; if `log` is a file, both are written to it.
    """
    inherited = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return subprocess.Popen(
        [python, "-m", f"jaxresnet.{command}", *map(str, arguments)],
        stdout=log,
        stderr=subprocess.PIPE if log == subprocess.PIPE else subprocess.STDOUT,
        text=True,
        env=inherited | variables,
    )


def run_command(command: str, *arguments: object, **options: Any) -> tuple[int, str, str]:
    """Run a command to its end. Returns exit code, stdout and stderr."""
    process = start_command(command, *arguments, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def processes(
    count: int, *command: object, own: Mapping[int, Sequence[str]] | None = None, timeout: int = 60
) -> Iterator[list["subprocess.Popen[str]"]]:
    """Start a command of the package, or Python code after "-c", in each of `count` processes of one run.

    `own` are more arguments for some of them. At the end of the block all are killed that are left.
    """
    address = f"127.0.0.1:{free_port()}"
    inherited = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    started = []
    for index in range(count):
        program = [*command] if command[0] == "-c" else ["-m", f"jaxresnet.{command[0]}", *command[1:]]
        flags = f"--distributed --coordinator {address} --processes {count} --process-id {index}".split()
        flags += ["--peer-timeout", str(timeout), *(own or {}).get(index, [])]
        process = subprocess.Popen(
            [sys.executable, *map(str, program), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=inherited | {"JAX_COORDINATOR_BIND_ADDRESS": address},
        )
        started.append(process)
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def endings(started: "list[subprocess.Popen[str]]", timeout: float = 180) -> list[tuple[int, str, str]]:
    """Wait for all processes. Returns each one's exit code, stdout and stderr."""
    until = time.monotonic() + timeout
    found = []
    for process in started:
        out, err = process.communicate(timeout=max(1, until - time.monotonic()))
        found.append((process.returncode, out, err))
    return found


def wait_for_line(process: "subprocess.Popen[str]", beginning: str) -> None:
    """Read a command's stdout up to the first line with this beginning. Raises AssertionError if there is none."""
    assert process.stdout is not None
    assert any(line.startswith(beginning) for line in process.stdout), f"no line begins with {beginning!r}"


def children_of(pid: int) -> list[int]:
    """The processes that the process has started."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def signal_command(number: int, after: str, command: str, *arguments: object) -> tuple[int, str]:
    """Start a command and send it a signal when it prints a line that begins with `after`.

    Returns exit code and stderr.
    """
    process = start_command(command, *arguments)
    wait_for_line(process, after)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


def at_step(state: TrainState, step: int) -> TrainState:
    """The same state after another number of steps."""
    return state.replace(step=jax.device_put(jnp.int32(step), state.step.sharding))


def assert_same_state(found: TrainState | None, expected: TrainState) -> None:
    """Both are equal to the bit."""
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
