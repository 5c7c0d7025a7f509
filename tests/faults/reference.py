"""The run that was left alone, and how others are compared with it."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from helpers import TINY_SETTINGS, run_command, timeless_records

from jaxresnet.config.files import dump_config
from jaxresnet.config.schema import Config
from jaxresnet.learning.state import ITEMS
from jaxresnet.runs.workdir import Workdir

SETTINGS: dict[str, Any] = {
    **TINY_SETTINGS,
    "epochs": 4,
    "batch_size": 32,
    "cpu_devices": 2,
    "optimizer.schedule_epochs": 200,
    "checkpoint.every_minutes": 0.02,
}


class Finding(NamedTuple):
    """A staged fault, what was seen, and in what it differs from what was promised."""

    fault: str
    result: str
    problems: list[str]


@dataclass(frozen=True)
class Reference:
    """A run that was left alone."""

    config: Path
    workdir: Path
    seconds: float

    def problems(self, workdir: Path) -> list[str]:
        """In what the run in `workdir` differs from it."""
        found, expected = outcome(workdir), outcome(self.workdir)
        return [f"{key} differ" for key in expected if found[key] != expected[key]]

    def train(self, workdir: Path, *arguments: object, **options: Any) -> tuple[int, str, str]:
        """Train like it in another folder. Returns exit code, stdout and stderr."""
        return run_command("train", "--config", self.config, "--workdir", workdir, *arguments, **options)


def make_reference(place: Path) -> Reference:
    """Make the reference below the folder `place`."""
    config, seconds = place / "config.toml", 0.0
    config.write_text(dump_config(Config().replace(SETTINGS)))
    for name in ("warm", "reference"):  # the first one fills the compilation cache
        began = time.monotonic()
        code, _, err = run_command("train", "--config", config, "--workdir", place / name)
        if code:
            raise SystemExit(err)
        seconds = time.monotonic() - began
    return Reference(config, place / "reference", round(seconds, 1))


def checkpoint_steps(workdir: Path) -> list[int]:
    """Steps of a run's checkpoints, ascending."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def newest_checkpoint(workdir: Path) -> Path:
    """The folder of a run's newest checkpoint."""
    return workdir / "checkpoints" / str(checkpoint_steps(workdir)[-1])


def outcome(workdir: Path) -> dict[str, Any]:
    """What must not depend on faults: all that was computed, without the clock's values."""
    meta = json.loads((newest_checkpoint(workdir) / "meta" / "metadata").read_text())
    return {
        "metrics": timeless_records(workdir),
        "evaluation": Workdir(workdir).evaluation(),
        "state": {item: meta["checksums"][item] for item in ITEMS if item in meta["checksums"]},
    }


def one_line(err: str, part: str) -> list[str]:
    """Problems, if stderr is not one line that holds `part`."""
    if len(err.splitlines()) == 1 and part in err:
        return []
    return [f"expected one line with {part!r}, found {err[:300]!r}"]


def exit_code(found: int, expected: int) -> list[str]:
    """Problems, if a command's exit code is another than expected."""
    return [] if found == expected else [f"expected exit code {expected}, found {found}"]
