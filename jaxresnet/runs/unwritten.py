"""A run's folder as the processes of a run see it that leave its files to process 0: nothing is read or written."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxresnet.config.schema import Config
from jaxresnet.data.splits import Split
from jaxresnet.learning.state import TrainState
from jaxresnet.machine.environment import Start
from jaxresnet.machine.hosts.peers import Peers
from jaxresnet.plan import Plan
from jaxresnet.runs.checkpoint import Checkpoints
from jaxresnet.runs.integrity import checksum
from jaxresnet.runs.records import EpochLog, EpochRecord, InitialWeights, StartLog
from jaxresnet.runs.workdir import Workdir


class _UnwrittenEpochs(EpochLog):
    def append(self, record: EpochRecord) -> None:
        pass

    def read(self) -> list[EpochRecord]:
        return []

    def require(self, epochs: int) -> None:
        pass

    def cut(self, step: int) -> None:
        pass


class _UnwrittenStarts(StartLog):
    def read(self) -> list[Start]:
        return []  # so there is none to extend

    def add(self, start: Start) -> None:
        pass


class UnwrittenWorkdir(Workdir):
    """The folder of a run, for a process that may only know its name."""

    def __init__(self, path: Path | str):
        super().__init__(path)
        self.epochs = _UnwrittenEpochs(self.path / "metrics.jsonl")
        self.starts = _UnwrittenStarts(self.path / "environment.json")

    @contextlib.contextmanager
    def open(self, plan: Plan, initial: InitialWeights | None = None) -> Iterator[None]:
        """Neither create nor lock the folder."""
        yield

    def go_on(self, config: Config, step: int) -> None:
        """Change nothing."""


class UnwrittenCheckpoints(Checkpoints):
    """Checkpoints that are never saved and of which there are none."""

    def __init__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def saved_steps(self) -> list[int]:
        """None."""
        return []

    def newest_step(self) -> int:
        """0, for none."""
        return 0

    def save(self, state: TrainState, accuracy: float | None = None) -> None:
        """Save nothing."""

    def wait(self) -> None:
        """Wait for nothing."""

    def restore_latest(self, template: TrainState, report: Callable[[str], None]) -> TrainState | None:
        """None: process 0 restores the state for all."""
        return None


def check_same_place(peers: Peers, splits: dict[str, Split], folder: Path) -> None:
    """Raise UserError if another process has other data, or another folder of that name."""
    if peers.count > 1:
        peers.require_same({f"the {name} split's SHA-256": checksum(each) for name, each in splits.items()})
        peers.require_shared(folder)
