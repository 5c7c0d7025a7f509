"""The folder of one run: where its files are, which run it belongs to, and the lock against a second process."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from jaxresnet.config.files import dump_config, load_config
from jaxresnet.config.schema import Config, differing_settings
from jaxresnet.data.info import DatasetInfo
from jaxresnet.data.sources import open_source
from jaxresnet.errors import UserError
from jaxresnet.plan import Plan, resolve
from jaxresnet.runs.files import lock_folder, parse_record, to_json, write_json, write_whole
from jaxresnet.runs.records import EpochLog, EvaluationRecord, StartLog, read_evaluation

FREE_SETTINGS = ("epochs", "cpu_devices", "data.dir", "checkpoint.")
"""Settings, or beginnings of their names, that may change when a run is resumed: its length, where it runs, when it
saves."""


class Workdir:
    """The folder of one run: its paths and files. Nothing is created before `open`."""

    def __init__(self, path: Path | str):
        self.path = path = Path(path)
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.epochs = EpochLog(path / "metrics.jsonl")
        self.starts = StartLog(path / "environment.json")
        self._config = path / "config.toml"
        self._dataset = path / "dataset.json"

    def evaluation_path(self, checkpoint: str) -> Path:
        """The file for the evaluation of a checkpoint: "latest", "best" or the number of a step."""
        suffix = "" if checkpoint == "latest" else f"_{checkpoint}"
        return self.path / f"evaluation{suffix}.json"

    def config(self) -> Config | None:
        """The run's configuration; None if there is no run yet.

        Raises UserError (exit code 2) if the folder holds something else, or its configuration cannot be read.
        """
        if self._config.exists():
            return load_config(self._config)
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"expected a folder for the run, found a file: {self.path}", 2)
        # A start that was killed early leaves a lock, and perhaps an incomplete configuration.
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

    def check(self, plan: Plan) -> None:
        """Raise UserError (exit code 2) if the folder holds another run than one of `plan`, or something else."""
        saved = self.config()
        if saved is None:
            return
        differing = {
            name: values
            for name, values in differing_settings(saved, plan.config).items()
            if not name.startswith(FREE_SETTINGS)
        }
        info = self._info(saved)
        if info != plan.info and not differing:
            raise UserError(
                f"{self.path} holds a run of another data set: expected {info}, found {plan.info}: "
                "use its own data set or name another --workdir",
                2,
            )
        if differing:
            listed = "; ".join(f"{name} was {old!r}, is {new!r}" for name, (old, new) in differing.items())
            raise UserError(
                f"{self.path} holds a run of another configuration ({listed}): "
                "use its own or name another --workdir",
                2,
            )

    def require_plan(self) -> Plan:
        """The plan of the run: its configuration and the facts of its data set. Raises UserError if there is no run."""
        config = self.require_config()
        return resolve(config, self._info(config), source=f"{self._config}: ")

    def _info(self, config: Config) -> DatasetInfo:
        """The facts of the run's data set, whose configuration is `config`."""
        if self._dataset.exists():
            return parse_record(DatasetInfo, self._dataset.read_bytes(), str(self._dataset))
        # A run of version 0.1, which did not write this file, or one that was killed at its start.
        return open_source(config.data, f"{self._config}: ").info

    @contextlib.contextmanager
    def open(self, plan: Plan) -> Iterator[None]:
        """Create the folder of a run of `plan`, or open it again, and lock it against other processes meanwhile.

        Raises UserError if another process holds it, it belongs to another run, or a file cannot be written. The last
        also holds for an OSError from inside the block.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with lock_folder(self.path):
                self.check(plan)  # again: another process may have come first
                write_whole(self._config, dump_config(plan.config))
                write_json(self._dataset, to_json(plan.info))
                yield
        except OSError as error:
            place = error.filename or self.path
            raise UserError(
                f"cannot write {place}: {error.strerror or error}; what was saved before is intact: mend that, "
                "then run the same command again"
            ) from error

    def evaluation(self) -> EvaluationRecord | None:
        """The evaluation in evaluation.json; None if there is none."""
        return read_evaluation(self.evaluation_path("latest"))

    def finished(self, epochs: int) -> EvaluationRecord | None:
        """The evaluation of the last step, if the run has trained for `epochs` epochs; None otherwise.

        Raises UserError (exit code 2) if the run has trained for more.
        """
        evaluation, records = self.evaluation(), self.epochs.read()
        if records and records[-1].epoch > epochs:
            raise UserError(
                f"epochs: the run in {self.path} has trained for {records[-1].epoch} epochs already, "
                f"expected at least as many, found {epochs}",
                2,
            )
        trained = bool(records) and records[-1].epoch == epochs
        return evaluation if trained and evaluation and evaluation.step == records[-1].step else None
