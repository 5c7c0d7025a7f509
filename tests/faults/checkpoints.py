"""Damaged checkpoints: each kind of damage in each kind of file."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from helpers import run_command

from faults.reference import (
    Finding,
    Reference,
    checkpoint_steps,
    exit_code,
    newest_checkpoint,
    one_line,
)

Damage = Callable[[Path], object]

ITEMS = ("weights/d", "rest/d", "meta")
"""Folders in a checkpoint, of each of which the first file is damaged."""


def damages(other: Path, chance: random.Random) -> dict[str, Damage]:
    """The kinds of damage; `other` is another run of the same length."""

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)

    def truncate(path: Path) -> None:
        os.truncate(path, chance.randrange(path.stat().st_size))

    def exchange(path: Path) -> None:
        counterpart = other.joinpath(*path.parts[path.parts.index("checkpoints") :])
        source = counterpart if counterpart.is_file() else next(counterpart.parent.iterdir())
        shutil.copyfile(source, path)

    return {
        "a byte flipped in": flip,
        "truncated": truncate,
        "removed": Path.unlink,
        "exchanged with another run's": exchange,
    }


def damaged_checkpoint(reference: Reference, place: Path) -> Iterator[Finding]:
    """Evaluate refuses a damaged checkpoint, or is right; training goes back to the one before.

    Training refuses one whose meta says that it is another run's.
    """
    other = place / "another_run"
    reference.train(other, "--seed", "1")
    for name, damage in damages(other, random.Random(0)).items():
        for item in ITEMS:
            workdir = place / f"{name}_{item}".replace("/", "_").replace(" ", "_").replace("'", "")
            shutil.copytree(reference.workdir, workdir)
            (workdir / "evaluation.json").unlink()
            files = sorted((newest_checkpoint(workdir) / item).iterdir())
            damage(next(path for path in files if path.name != "commit_success.txt"))
            evaluated, problems = evaluate_damaged(reference, workdir)
            trained, more = train_damaged(reference, workdir)
            yield Finding(
                f"a checkpoint's file in {item}: {name}", f"{evaluated}; {trained}", problems + more
            )


def evaluate_damaged(reference: Reference, workdir: Path) -> tuple[str, list[str]]:
    """What evaluate did with a damaged checkpoint, and the problems."""
    name = f"checkpoint {newest_checkpoint(workdir).name}"
    code, _, err = run_command("evaluate", "--workdir", workdir)
    if code == 0:  # the weights are whole, or orbax does not read these bytes
        return "evaluate is right", reference.problems(workdir)
    return "evaluate refuses", one_line(err, name) + exit_code(code, 1)


def train_damaged(reference: Reference, workdir: Path) -> tuple[str, list[str]]:
    """What training did with a damaged checkpoint, and the problems."""
    (workdir / "evaluation.json").unlink(missing_ok=True)
    before = checkpoint_steps(workdir)
    code, _, err = reference.train(workdir)
    if "is of another run" in err:
        problems = one_line(err, "is of another run") + exit_code(code, 1)
        return "train refuses", problems + ["one is lost"] * (checkpoint_steps(workdir) != before)
    problems = reference.problems(workdir) + exit_code(code, 0)
    if err:
        problems += one_line(err, "going back to checkpoint")
        return "train names it, goes back and does the rest again", problems
    return "train is not affected", problems
