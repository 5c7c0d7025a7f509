"""The folder of one run: where its files are, which run it belongs to, and the lock against a second process."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxresnet.config.files import dump_config, load_config, naming
from jaxresnet.config.schema import Config, differing_settings, setting_values
from jaxresnet.data.info import DatasetInfo, changes
from jaxresnet.data.sources import known_facts
from jaxresnet.disk import kind_of, require
from jaxresnet.errors import UserError
from jaxresnet.plan import Plan, resolve
from jaxresnet.runs.files import is_temporary, lock_folder, read_record, to_json, write_json, write_whole
from jaxresnet.runs.records import (
    EpochLog,
    EvaluationRecord,
    Identity,
    InitialWeights,
    RunRecord,
    StartLog,
    read_evaluation,
    read_run,
    write_run,
)

FREE_SETTINGS = ("epochs", "cpu_devices", "data.dir", "checkpoint.")
"""Settings, or beginnings of their names, that may change when a run is resumed: its length, where it runs, when it
saves."""


def _lasting(settings: dict[str, Any]) -> dict[str, Any]:
    """Those settings that must not change when a run is resumed."""
    return {name: value for name, value in settings.items() if not name.startswith(FREE_SETTINGS)}


def _refuse_another_configuration(path: Path, saved: Config, config: Config) -> None:
    """Raise UserError (exit code 2) if the run in `path` has settings, `saved`, that must not become `config`."""
    differing = _lasting(differing_settings(saved, config))
    if differing:
        listed = "; ".join(f"{name} was {old!r}, is {new!r}" for name, (old, new) in differing.items())
        raise UserError(
            f"{path} holds a run of another configuration ({listed}): use its own or name another --workdir",
            2,
        )


def _refuse_another_data_set(path: Path, saved: DatasetInfo, info: DatasetInfo) -> None:
    """Raise UserError (exit code 2) if the run in `path` has another data set, `saved`, than that of `info`."""
    if saved != info:
        raise UserError(
            f"{path} holds a run of another data set ({changes(saved, info)}): use its own data set or name another "
            "--workdir",
            2,
        )


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
        self._run = path / "run.json"
        self._opened: os.stat_result | None = None

    def evaluation_path(self, checkpoint: str, *, average: bool = False) -> Path:
        """The file for the evaluation of a checkpoint: "latest", "best" or the number of a step.

        With `average`, it is that of the average of the weights.
        """
        suffix = "" if checkpoint == "latest" else f"_{checkpoint}"
        return self.path / f"evaluation{suffix}{'_average' if average else ''}.json"

    def config(self) -> Config | None:
        """The run's configuration; None if there is no run yet.

        Raises UserError (exit code 2) if the folder holds something else, or its configuration cannot be read.
        """
        _check_folders(self.path)
        if os.path.lexists(self._config):
            return load_config(self._config, follow=False)
        _require_room(self.path)
        return None

    def require_config(self) -> Config:
        """The run's configuration. Raises UserError if there is no run."""
        config = self.config() if self.path.is_dir() else None
        if config is None:
            raise UserError(f"no run in {self.path}: expected the --workdir of a training run")
        return config

    def check(self, plan: Plan) -> None:
        """Raise UserError (exit code 2) if the folder holds another run than one of `plan`, or something else."""
        if (saved := self.facts(plan.config)) is not None:
            _refuse_another_data_set(self.path, saved, plan.info)

    def facts(self, config: Config) -> DatasetInfo | None:
        """The facts of the data set of the run that is there; None if there is no run yet.

        Raises UserError (exit code 2) if that run cannot go on with `config`, or there is something else.
        """
        saved = self.config()
        if saved is None:
            return None
        _refuse_another_configuration(self.path, saved, config)
        return self._info(saved)

    def identity(self, config: Config) -> Identity:
        """What binds the checkpoints of the run to it; `config` is its configuration.

        Raises UserError if run.json holds something else.
        """
        record, settings = read_run(self._run), _lasting(setting_values(config))
        return Identity(record.id if record else None, json.loads(json.dumps(settings)))

    def initial_weights(self) -> InitialWeights | None:
        """Where the run's first weights come from; None if they were random, or there is no run yet.

        Raises UserError if run.json holds something else.
        """
        record = read_run(self._run)
        return record.initial if record else None

    def require_plan(self) -> Plan:
        """The plan of the run: its configuration and the facts of its data set. Raises UserError if there is no run."""
        config = self.require_config()
        info = self._info(config)
        with naming(self._config):
            return resolve(config, info)

    def _info(self, config: Config) -> DatasetInfo:
        """The facts of the run's data set, whose configuration is `config`."""
        if (info := read_record(DatasetInfo, self._dataset)) is not None:
            return info
        # A run of version 0.1, which did not write this file.
        with naming(self._config):
            return known_facts(config.data)

    def require_in_place(self) -> None:
        """Raise UserError if the folder was moved or removed since `open`: a save would make a new one there."""
        if self._opened:
            _require_same_folder(self.path, self._opened)

    @contextlib.contextmanager
    def open(self, plan: Plan, initial: InitialWeights | None = None) -> Iterator[None]:
        """Create the folder of a run of `plan`, or open it again, and lock it against other processes meanwhile.

        `initial` is where the weights of a new run come from, None if they are random. The configuration of a run that
        is there already is not changed before `go_on`.

        Raises UserError if another process holds it, it belongs to another run, or a file cannot be written. The last
        also holds for an OSError from inside the block.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with lock_folder(self.path):
                self._opened = self.path.stat()
                self.check(plan)  # again: another process may have come first
                write_json(self._dataset, to_json(plan.info))
                if self.config() is None:
                    write_run(self._run, RunRecord(secrets.token_hex(8), initial))
                    # Last, because it makes the folder that of a run.
                    write_whole(self._config, dump_config(plan.config))
                yield
        except BrokenPipeError:  # not of a file: nobody reads the output any more
            raise
        except OSError as error:
            place = error.filename or self.path
            raise UserError(
                f"cannot write {place}: {error.strerror or error}; what was saved before is intact: mend that, "
                "then run the same command again"
            ) from error

    def go_on(self, config: Config, step: int) -> None:
        """Have the run go on from `step` with `config`: drop the lines of epochs that ended later."""
        self.epochs.cut(step)
        write_whole(self._config, dump_config(config))  # last: it tells how far the lines may be ahead

    def newest_saved_step(self) -> int:
        """The step of the newest checkpoint by its name alone, intact or not; 0 if there is none."""
        names = [entry.name for entry in self.checkpoints.glob("*") if entry.name.isdecimal()]
        return max(map(int, names), default=0)

    def evaluation(self) -> EvaluationRecord | None:
        """The evaluation in evaluation.json; None if there is none."""
        return read_evaluation(self.evaluation_path("latest"))

    def finished(self, epochs: int) -> EvaluationRecord | None:
        """The evaluation of the last step, if the run has trained for `epochs` epochs; None otherwise.

        None also if the run keeps an average of its weights that was not evaluated.

        Raises UserError (exit code 2) if the run has trained for more, and UserError if it lacks an epoch's record.
        """
        evaluation, records = self.evaluation(), self.epochs.read()
        if records and records[-1].epoch > epochs:
            raise UserError(
                f"epochs: the run in {self.path} has trained for {records[-1].epoch} epochs already, "
                f"expected at least as many, found {epochs}",
                2,
            )
        trained = bool(records) and records[-1].epoch == epochs
        if not (trained and evaluation and evaluation.step == records[-1].step):
            return None
        if self.require_config().optimizer.ema_decay:
            average = read_evaluation(self.evaluation_path("latest", average=True))
            if not (average and average.step == records[-1].step):
                return None
        self.epochs.require(epochs)
        return evaluation


def _check_folders(workdir: Path) -> None:
    """Raise UserError if a run cannot be in the folder `workdir`, or if one of its own folders is a link or no folder.

    The exit code is 2 in the first case and 1 in the second.
    """
    found = kind_of(workdir, follow=True)
    if found not in (None, "a folder"):
        raise UserError(f"expected a folder for the run, found {found}: {workdir}", 2)
    try:
        str(workdir.absolute()).encode()
    except UnicodeEncodeError:  # orbax could not save there
        raise UserError(
            f"expected a folder whose name is UTF-8, found {str(workdir.absolute())!a}", 2
        ) from None
    for name in ("checkpoints", "tensorboard", "report"):
        require("a folder", workdir / name)


def _require_room(workdir: Path) -> None:
    """Raise UserError (exit code 2) if a folder without a configuration holds something that no run has left there."""
    # A start that was killed early leaves a lock, and perhaps an incomplete configuration.
    records = ("dataset.json", "run.json", "config.toml")

    def is_own(name: str) -> bool:
        return name in ("lock", *records[:2]) or any(is_temporary(name, record) for record in records)

    if workdir.is_dir() and not all(is_own(entry.name) for entry in workdir.iterdir()):
        raise UserError(
            f"{workdir} is neither empty nor a run (it has no config.toml): name another --workdir", 2
        )


def _require_same_folder(workdir: Path, opened: os.stat_result) -> None:
    """Raise UserError unless the folder `workdir` is still the one that had the status `opened`."""
    found = workdir.stat() if workdir.is_dir() else None
    if found is None or not os.path.samestat(found, opened):
        raise UserError(
            f"{workdir} was moved or removed during the run: expected the folder that the run began in, found "
            f"{'another' if found else 'none'}; put it back, then run the same command again"
        )
