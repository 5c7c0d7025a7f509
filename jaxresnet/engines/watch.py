"""The finished epochs of runs that train elsewhere, as their folders tell."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxresnet.errors import UserError
from jaxresnet.runs.records import EpochRecord
from jaxresnet.runs.workdir import Workdir


class EpochWatch:
    """Finds the epochs that runs finish from now on."""

    def __init__(self, workdirs: Iterable[Path]):
        self._sizes: dict[Path, int] = {}
        self._seen: dict[Path, int] = dict.fromkeys(workdirs, 0)
        for path in self._seen:
            for record in self._records(path):
                self._seen[path] = record.epoch

    def new(self, workdirs: Iterable[Path]) -> Iterator[tuple[Path, EpochRecord]]:
        """The epochs of these runs that were not found before. One that is trained again after a retry is not new."""
        for path in workdirs:
            for record in self._records(path):
                if record.epoch > self._seen[path]:
                    self._seen[path] = record.epoch
                    yield path, record

    def _records(self, path: Path) -> list[EpochRecord]:
        """The run's records if their file has another size than last time; none if it cannot be read."""
        with contextlib.suppress(UserError, OSError):  # the run itself will tell
            size = (path / "metrics.jsonl").stat().st_size
            if size != self._sizes.get(path):
                self._sizes[path] = size
                return Workdir(path).epochs.read()
        return []
