"""The folder of one run: its files, who may write them, and how none is ever half-written."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxresnet.config import Config, differing_keys, dump_config, load_config
from jaxresnet.errors import UserError

FREE_SETTINGS = ("epochs", "cpu_devices", "data.dir", "checkpoint.")
"""Settings that may change when a run is resumed: its length, and where and on what it runs."""


class Workdir:
    """Paths and files below one run's folder. Nothing is created before `create`."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self._config = path / "config.toml"
        self._environment = path / "environment.json"
        self._metrics = path / "metrics.jsonl"

    def evaluation_path(self, checkpoint: str) -> Path:
        """Where the evaluation of "latest", "best" or a step goes."""
        suffix = "" if checkpoint == "latest" else f"_{checkpoint}"
        return self.path / f"evaluation{suffix}.json"

    def config(self) -> Config | None:
        """The run's configuration; None if no run is here yet.

        Raises UserError if the folder holds something else, or its configuration cannot be read.
        """
        if self._config.exists():
            return load_config(self._config)
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"expected a folder for the run, found a file: {self.path}", 2)
        # A start that was killed early leaves a lock, and perhaps half a configuration.
        own = {"lock", "config.toml.tmp"}
        if self.path.is_dir() and any(entry.name not in own for entry in self.path.iterdir()):
            raise UserError(
                f"{self.path} is neither empty nor a run (it has no config.toml): name another --workdir", 2
            )
        return None

    def require_config(self) -> Config:
        """The run's configuration. Raises UserError if there is no run."""
        config = self.config() if self.path.is_dir() else None
        if config is None:
            raise UserError(f"no run in {self.path}: expected the --workdir of a training run")
        return config

    def check(self, config: Config) -> None:
        """Raise UserError if the folder cannot hold a run of `config`: it is another run's, or no run's."""
        saved = self.config()
        if saved is None:
            return
        differing = {
            name: values
            for name, values in differing_keys(saved, config).items()
            if not name.startswith(FREE_SETTINGS)
        }
        if differing:
            listed = "; ".join(f"{name} was {old!r}, is {new!r}" for name, (old, new) in differing.items())
            raise UserError(
                f"{self.path} holds a run of another configuration ({listed}): "
                "use its own or name another --workdir",
                2,
            )

    @contextlib.contextmanager
    def open(self, config: Config) -> Iterator[None]:
        """Make the folder a run of `config` and hold it against every other process meanwhile."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self._lock():
                self.check(config)  # again: another process may have come first
                _write(self._config, dump_config(config))
                yield
        except OSError as error:
            place = error.filename or self.path
            raise UserError(
                f"cannot write {place}: {error.strerror or error}; what was saved before is intact: mend that, "
                "then run the same command again"
            ) from error

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the run's lock, which the kernel frees however the process ends."""
        try:
            import fcntl
        except ImportError:  # Windows: no lock
            yield
            return
        with (self.path / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise UserError(
                    f"{self.path} is in use by {holder}: wait for it or name another --workdir"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()}")
            file.flush()
            yield

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl; it is on disk when this returns."""
        _write_to_disk(self._metrics, "a", json.dumps(record, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one per finished epoch; a torn last line does not count."""
        records = []
        if self._metrics.exists():
            for line in self._metrics.read_text(errors="replace").splitlines(keepends=True):
                if line.endswith("\n"):
                    records.append(_parse_object(line, f"{self._metrics}, line {len(records) + 1}"))
        return records

    def cut_metrics(self, step: int) -> None:
        """Drop the lines of epochs that ended after `step`."""
        if self._metrics.exists():
            kept = [record for record in self.metrics() if record["step"] <= step]
            _write(self._metrics, "".join(json.dumps(record) + "\n" for record in kept))

    def add_environment(self, entry: dict[str, Any]) -> None:
        """Add one start of the run to environment.json."""
        write_json(self._environment, [*self.environment(), entry])

    def extend_environment(self, **values: Any) -> None:
        """Add what this start has measured to its entry, the last one, in environment.json."""
        *earlier, entry = self.environment()
        write_json(self._environment, [*earlier, entry | values])

    def environment(self) -> list[dict[str, Any]]:
        """The starts of the run; none before the first."""
        if not self._environment.exists():
            return []
        text = self._environment.read_text(errors="replace")
        return _parse_object(f'{{"starts": {text}}}', str(self._environment))["starts"]

    def evaluation(self) -> dict[str, Any] | None:
        """The evaluation of the latest checkpoint; None before the run's end."""
        path = self.evaluation_path("latest")
        return _parse_object(path.read_text(errors="replace"), str(path)) if path.exists() else None

    def finished(self, config: Config) -> dict[str, Any] | None:
        """The final evaluation, if the run has trained for the epochs of `config`."""
        evaluation, records = self.evaluation(), self.metrics()
        trained = bool(records) and records[-1]["epoch"] >= config.epochs
        return evaluation if trained and evaluation and evaluation["step"] == records[-1]["step"] else None


def _parse_object(text: str, place: str) -> dict[str, Any]:
    """The JSON object in `text`. Raises UserError naming `place` if there is none."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{place}: expected JSON, found something else ({error}): mend or remove it"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{place}: expected a JSON object, found {type(value).__name__}: mend or remove it")
    return value


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all. Raises ValueError on what is not finite."""
    _write(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _write(path: Path, text: str) -> None:
    """Replace a file at once: a reader, or a crash, finds the old content or the new."""
    temporary = path.with_name(path.name + ".tmp")
    _write_to_disk(temporary, "w", text)
    temporary.replace(path)


def _write_to_disk(path: Path, mode: str, text: str) -> None:
    """Write to a file and wait until it is on disk. Raises OSError with the file's name: a full disk's has none."""
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
