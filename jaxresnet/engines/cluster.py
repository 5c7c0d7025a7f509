"""The runs of a sweep as tasks of Ray, several at a time, on this machine or on a cluster.

Ray decides which machine trains a run and when, and starts a run again whose worker or machine is lost. What a task
does is in `jaxresnet.engines.task`. The driver, here, shows what goes on and tells the tasks to stop. For commands
only: it changes the environment, and takes the signals over.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxresnet.engines.process import problem_of, run_arguments, standing
from jaxresnet.engines.shares import Share, Wish, share_of
from jaxresnet.engines.task import RunLost, train_here
from jaxresnet.engines.watch import EpochWatch
from jaxresnet.errors import Interrupted, UserError, printable
from jaxresnet.machine.environment import available_cores
from jaxresnet.machine.signals import Stop, StopSignal
from jaxresnet.machine.workarounds import silence_ray
from jaxresnet.plan import Plan
from jaxresnet.reporting.progress import epoch_line

RETRIES = 3
"""How often a run is started again whose worker or machine is lost, or that somebody else ended. Ray's own default. A
run that fails by itself is not started again: it would fail again."""

OBJECT_STORE_BYTES = 80 * 2**20
"""Ray's least (78,643,200) and a little more. Tasks exchange only a line of text."""

POLL_SECONDS = 0.5
"""Seconds between looks at signals and finished epochs."""

PROBE_SECONDS = 60
"""How long all machines have to tell whether they see the folder of the sweep."""

LOCAL_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it reports to Ray's makers
    "RAY_AUTH_MODE": "token",  # Ray listens on all interfaces, and runs what it is sent
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` it would copy this folder, with all runs in it
    "RAY_memory_monitor_refresh_ms": "0",  # it ends what uses 95 % of the memory; the runs check theirs
    "RAY_kill_child_processes_on_worker_exit": "0",  # by SIGKILL; the runs save and end by themselves
}
"""Environment variables for a Ray of this command's own."""


def load_ray(address: str | None) -> Any:
    """The module ray, for the cluster at `address` or for a Ray on this machine. Raises UserError if it is missing.

    Ray reads its environment variables when it is imported.
    """
    if address is None:
        os.environ.update(LOCAL_RAY)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            "--engine ray: expected Ray, which is not installed: pip install 'jaxresnet[ray]'"
        ) from None
    return ray


def train_on_ray(runs: Mapping[Path, Plan], wish: Wish) -> Generator[dict[Path, str]]:
    """Train the runs, by workdir, that are not finished, several at a time.

    Yields after each run, in the order in which they end: its workdir and why it failed if it did, else {}. Raises
    UserError if Ray cannot be used so, and Interrupted after a signal has stopped the runs.
    """
    driver = _Driver(runs)
    yield from driver.settle()
    if not driver.todo:
        return
    ray = load_ray(wish.address)
    notice = "stopping: all runs save first; a second signal ends the sweep at once"
    with StopSignal(notice) as stop, connected(ray, wish.address):
        nodes = [node for node in ray.nodes() if node["Alive"]]
        share = share_of(wish, [node["Resources"] for node in nodes])
        nodes = [node for node in nodes if share.fits(node["Resources"])]
        driver.prepare(share, nodes)
        if wish.address:
            require_shared(ray, nodes, log_of(driver.todo[0]).parent)
        yield from driver.train(ray, share, stop)


@contextlib.contextmanager
def connected(ray: Any, address: str | None) -> Iterator[None]:
    """Start a Ray on this machine that ends with the block, or connect to the cluster at `address`.

    Raises UserError if that fails, and Interrupted if SIGTERM comes meanwhile.
    """
    options: dict[str, Any] = {"address": address or "local", "log_to_driver": False}
    with contextlib.ExitStack() as leaving:
        if address is None:
            folder = tempfile.mkdtemp(prefix="ray-")  # Ray's default is shared by all users, and stays
            leaving.callback(shutil.rmtree, folder, ignore_errors=True)
            options |= {
                "num_cpus": available_cores(),
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                "_temp_dir": folder,
            }
        leaving.callback(ray.shutdown)
        previous = signal.getsignal(signal.SIGTERM)
        try:
            _knock(address)
            ray.init(**options, logging_level="ERROR")
        except SystemExit:  # Ray's handler of SIGTERM
            raise Interrupted(
                "the sweep stopped while Ray started: no run has begun", signal.SIGTERM
            ) from None
        except (
            OSError,
            RuntimeError,
            ValueError,
            AssertionError,
            ImportError,
            ray.exceptions.RayError,
        ) as error:
            what = f"reach Ray at {address}" if address else "start Ray"
            raise UserError(f"cannot {what}: {_first_line(error)}") from None
        finally:
            signal.signal(signal.SIGTERM, previous)
        silence_ray()
        yield


def _knock(address: str | None) -> None:
    """Raise OSError or ValueError if nobody listens at HOST:PORT: Ray would try for two minutes, and print warnings."""
    host, colon, port = (address or "").rpartition(":")
    if colon and "://" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def require_shared(ray: Any, nodes: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Raise UserError if one of `nodes`, as Ray describes them, does not see a file that is written to `folder` now."""
    from ray.util.scheduling_strategies import (  # pyright: ignore[reportMissingImports]
        NodeAffinitySchedulingStrategy,
    )

    probe = folder.absolute() / f".probe-{secrets.token_hex(8)}"
    probe.touch()
    try:
        look = ray.remote(num_cpus=0)(os.path.exists)
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        tasks = [look.options(scheduling_strategy=place).remote(str(probe)) for place in places]
        seen = ray.get(tasks, timeout=PROBE_SECONDS)
    except ray.exceptions.RayError as error:
        raise UserError(f"Ray's nodes do not answer: {_first_line(error)}") from None
    finally:
        probe.unlink()
    missing = [node["NodeManagerAddress"] for node, there in zip(nodes, seen, strict=True) if not there]
    if missing:
        raise UserError(
            f"expected a --workdir on a file system that all nodes share, found that {', '.join(missing)} "
            f"cannot see {folder.absolute()}"
        )


def outcome_of(ray: Any, task: Any) -> tuple[int, str] | None:
    """The exit code of a task's run and its last line on stderr; None if the sweep stopped before it began."""
    starts = RETRIES + 1
    try:
        return ray.get(task)
    except ray.exceptions.TaskCancelledError:
        return None
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        return 1, _first_line(cause) + (f", {starts} times" if isinstance(cause, RunLost) else "")
    except ray.exceptions.RayError as error:
        return 1, f"its worker was lost {starts} times ({_first_line(error)})"


class _Driver:
    """The sweep's side of Ray: submits the runs, shows what goes on, and stops them."""

    def __init__(self, runs: Mapping[Path, Plan]):
        self.todo: list[Path] = []
        """The runs that `settle` has left to train."""
        self._runs, self._ended = runs, 0

    def settle(self) -> Generator[dict[Path, str]]:
        """Yield as `train_on_ray` does for the runs that are finished, or whose folder holds something else."""
        for path, plan in self._runs.items():
            done, problem = standing(path, plan)
            if done or problem:
                yield self._told(path, problem)
            else:
                self.todo.append(path)

    def prepare(self, share: Share, nodes: Sequence[Mapping[str, Any]]) -> None:
        """Make the files for what the runs print, and tell how they will train: with `share`, on `nodes`."""
        for path in self.todo:
            path.parent.mkdir(parents=True, exist_ok=True)
            log_of(path).touch()
        at_a_time = sum(share.fits(node["Resources"]) for node in nodes)
        print(f"Ray: up to {at_a_time} run{'s' * (at_a_time > 1)} at a time, each on {share}")
        if not share.gpus:
            print(
                f"note: the bits of a run on a CPU depend on its number of cores, here {share.cpus}, and of devices, "
                "by default as many (--cpu-devices)"
            )
        print("what a run prints is in the file beside its folder whose name ends with .log", flush=True)

    def train(self, ray: Any, share: Share, stop: Stop) -> Generator[dict[Path, str]]:
        """Train the runs that are left; yields and raises as `train_on_ray` does."""
        watch = EpochWatch(self.todo)
        pending = {self._submit(ray, share, path): path for path in self.todo}
        stopped: list[str] = []
        asked = False
        while pending:
            ready, _ = ray.wait(list(pending), timeout=POLL_SECONDS)
            for path, record in watch.new(pending.values()):
                print(f"{path}: {epoch_line(record, self._runs[path].config.epochs)}", flush=True)
            if stop.requested and not asked:
                asked = True
                for task in pending:
                    ray.cancel(task)
            for task in ready:
                path, outcome = pending.pop(task), outcome_of(ray, task)
                if outcome and asked and outcome[0]:
                    stopped.append(f"the sweep stopped in {path}: {outcome[1] or f'exit code {outcome[0]}'}")
                elif outcome:
                    yield self._told(path, problem_of(*outcome))
        if stop.requested:
            raise stop.interrupted("\n".join(stopped) or "the sweep stopped: no run was in progress")

    def _submit(self, ray: Any, share: Share, path: Path) -> Any:
        """Have Ray train a run when there is room. Returns the task."""
        plan = self._runs[path]
        if plan.config.data.dir:  # absolute, like the workdir, because a worker has another current folder
            folder = str(Path(plan.config.data.dir).expanduser().absolute())
            plan = plan.with_config(plan.config.replace({"data.dir": folder}))
        arguments = run_arguments(path.absolute(), plan, share.device)
        task = ray.remote(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_retries=RETRIES,
            retry_exceptions=[RunLost],
        )(train_here)
        # `init` stays as it was given, because a run goes on with the same one only.
        init = Path(plan.config.init)
        relative = plan.config.init and init.exists() and not init.is_absolute()
        folder = Path.cwd() if relative else None
        return task.remote(arguments, share.cpus, log_of(path).absolute(), folder)

    def _told(self, path: Path, problem: str) -> dict[Path, str]:
        """Print how a run ended. Returns its workdir and `problem` if it failed, else {}."""
        self._ended += 1
        how = f"failed: {problem}" if problem else "done"
        print(f"[{self._ended}/{len(self._runs)}] {path}: {how}", flush=True)
        return {path: problem} if problem else {}


def log_of(path: Path) -> Path:
    """The file with what the run in `path` prints, beside its folder."""
    return path.with_name(f"{path.name}.log")


def _first_line(error: BaseException) -> str:
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])
