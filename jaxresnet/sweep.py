"""Train several configurations with several seeds: `python -m jaxresnet.sweep --config A.toml B.toml --seeds 0 1 2`.

The runs follow each other. Each has its own process and its own workdir: DIR/NAME/seed0 and so on. If a run fails, the
failure is reported and the next run starts. If the sweep is started again, it continues where it stopped and skips
finished runs. After each run, the results of all runs so far are written to results.md and results.json in DIR. Other
flags are settings for all runs.
"""

if __name__ == "__main__":  # first, because the imports below take half a second
    from jaxresnet.errors import begin_command

    begin_command()

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from jaxresnet.config.files import find_config, load_config
from jaxresnet.config.flags import (
    ArgumentParser,
    add_device_argument,
    add_setting_arguments,
    setting_arguments,
    to_arguments,
)
from jaxresnet.config.schema import setting_values
from jaxresnet.data.sources import open_source
from jaxresnet.errors import Interrupted, UserError, printable, run_command
from jaxresnet.machine.signals import INSISTING, stop_signals
from jaxresnet.plan import Plan, resolve
from jaxresnet.reporting.tables import as_markdown, comparison_table
from jaxresnet.runs.files import write_json, write_whole
from jaxresnet.runs.groups import History, RunGroup, group_runs, read_histories
from jaxresnet.runs.workdir import Workdir

RESULTS_TEXT, RESULTS = "results.md", "results.json"


def main(argv: Sequence[str]) -> None:
    """Run the command with the arguments `argv`."""
    parser = ArgumentParser(prog="python -m jaxresnet.sweep", description=__doc__)
    parser.add_argument(
        "--config",
        type=find_config,
        metavar="FILE|NAME",
        nargs="+",
        required=True,
        help="configurations: TOML files, or names of shipped ones",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="INT",
        nargs="+",
        default=[0],
        help="seeds that each configuration is trained with (default: 0)",
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        default=Path("runs/sweep"),
        help="folder of the runs (default: runs/sweep)",
    )
    add_device_argument(parser)
    add_setting_arguments(parser)
    args = parser.parse(argv)
    settings = setting_arguments(args)
    if "seed" in settings:
        raise UserError("--seed: expected --seeds, which lists the seeds of a sweep", 2)
    failed = sweep(args.config, args.seeds, args.workdir, settings, args.device)
    if failed:
        raise UserError(
            f"{len(failed)} of the runs failed:\n" + "\n".join(f"{k}: {v}" for k, v in failed.items())
        )


def sweep(
    configs: Sequence[Path],
    seeds: Sequence[int],
    workdir: Path,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> dict[Path, str]:
    """Train each configuration file with each seed. `settings`, by dotted name, replace the file's.

    The files are read once, at the start. Returns the workdirs of the runs that failed, each with the last line of its
    error. Raises UserError (exit code 2) before the first run if any configuration is wrong or a folder holds a run of
    other settings, and Interrupted after a signal has stopped a run.
    """
    runs = planned_runs(configs, seeds, workdir, settings or {})
    refuse_other_runs(runs)
    failed: dict[Path, str] = {}
    for number, (path, plan) in enumerate(runs.items(), 1):
        failed |= train_one(path, plan, device, f"[{number}/{len(runs)}] {path}")
        write_results(workdir, runs, failed)
    print(write_results(workdir, runs, failed))
    return failed


def train_one(path: Path, plan: Plan, device: str, title: str) -> dict[Path, str]:
    """Train a run, unless it is finished. Returns its workdir and the last line of its error if it failed, else {}."""
    done, problem = None, ""
    try:
        done = checked(path, plan).finished(plan.config.epochs)
    except (UserError, OSError) as error:  # of this run alone: the others go on
        problem = printable(str(error))
    print(f"{title}: done" if done else title, flush=True)
    if not done and not problem:
        # All settings as flags: the file may have changed since it was read.
        settings = to_arguments(setting_values(plan.config))
        code, said = train(["--workdir", str(path), "--device", device, *settings])
        problem = (said.removeprefix("error: ") or f"exit code {code}") if code else ""
    if not problem:
        return {}
    print(f"failed: {problem}", flush=True)
    return {path: problem}


def planned_runs(
    configs: Sequence[Path], seeds: Sequence[int], workdir: Path, settings: Mapping[str, Any]
) -> dict[Path, Plan]:
    """The runs of a sweep in their order: workdir to plan.

    Raises UserError (exit code 2) if a configuration is wrong, two runs would have the same workdir, or a file's name
    cannot be that of a folder in `workdir`.
    """
    runs = {}
    # All configurations with the first seed come first, so that they can be compared even if the sweep ends early.
    for seed in seeds:
        for file in configs:
            if file.stem in (".", "..", RESULTS_TEXT, RESULTS):
                raise UserError(f"{file}: expected the name of a folder before .toml, found {file.stem!r}", 2)
            path = workdir / file.stem / f"seed{seed}"
            if path in runs:
                raise UserError(f"expected files and seeds that differ, found two runs for {path}", 2)
            config = load_config(file).replace({**settings, "seed": seed})
            runs[path] = resolve(config, open_source(config.data, f"{file}: ").info, f"{file}: ")
    return runs


def refuse_other_runs(runs: Mapping[Path, Plan]) -> None:
    """Raise UserError (exit code 2), a line for each, if folders hold runs of other settings than those asked for."""
    problems = []
    for path, plan in runs.items():
        try:
            Workdir(path).require_config()
        except (UserError, OSError):
            continue  # no run yet, or one whose damage is told when its turn comes
        try:
            checked(path, plan)
        except UserError as error:
            if error.exit_code == 2:
                problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems), 2)


def checked(path: Path, plan: Plan) -> Workdir:
    """The folder of a run of `plan`. Raises UserError if it holds another run, or something else."""
    folder = Workdir(path)
    folder.check(plan)
    return folder


def train(arguments: Sequence[str]) -> tuple[int, str]:
    """Run jaxresnet.train in its own process. Returns its exit code, as a shell gives it, and its last line on stderr.

    The `stop_signals` are passed on to it as SIGTERM, so that it can save before it stops. Raises Interrupted after
    one of them, or if it was stopped by one that was sent to it alone.
    """
    received: list[int] = []
    process: subprocess.Popen[str] | None = None

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if process and (number in INSISTING or not received):
            process.terminate()
        received.append(number)

    previous = {number: signal.signal(number, pass_on) for number in stop_signals()}
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxresnet.train", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,  # so that the terminal does not send it a second Ctrl-C
        )
        if received:  # before the process existed
            process.terminate()
        _, said = process.communicate()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    last = (said.strip().splitlines() or [""])[-1]
    if stopped := received or [number for number in previous if code == 128 + number]:
        place = arguments[arguments.index("--workdir") + 1]
        last = last or (f"exit code {code}" if code else "this run is finished")
        raise Interrupted(f"the sweep stopped in {place}: {last}", stopped[0])
    return code, last


def write_results(workdir: Path, runs: Mapping[Path, Plan], failed: Mapping[Path, str]) -> str:
    """Write results.md and results.json for the runs that have begun. Returns the table in Markdown.

    It holds only what was computed with the settings that were asked for, and names the runs that are missing in it.
    """
    histories: list[History] = []
    missing = dict(failed)
    for path, plan in runs.items():
        if not (path / "config.toml").exists():
            continue
        try:
            checked(path, plan).finished(plan.config.epochs)
            histories += read_histories([path], above=workdir)
        except (UserError, OSError) as error:
            missing.setdefault(path, printable(str(error)))
    groups = group_runs(histories)
    text = as_markdown(comparison_table(groups))
    if missing:
        text += "\n\n" + "\n".join(f"- failed: {path}: {said}" for path, said in missing.items())
    record = [{"name": group.name, "runs": results_of(group, failed)} for group in groups]
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(workdir / RESULTS_TEXT, f"{text}\n".encode(errors="backslashreplace"))
    write_json(workdir / RESULTS, record)
    return text


def results_of(group: RunGroup, failed: Mapping[Path, str]) -> list[dict[str, Any]]:
    """The entries of a group's runs in results.json. Accuracies are fractions."""
    entries = []
    for history in group.histories:
        entry = {
            "workdir": str(history.workdir.path),
            "seed": history.config.seed,
            "epochs": len(history.epochs),
            "seconds": history.seconds,
        }
        alone = RunGroup(history.name, [history])
        for split in ("test", "validation"):
            for which, values in (
                ("last", alone.last_accuracies(split)),
                ("best", alone.best_accuracies(split)),
            ):
                if values:
                    entry[f"{which}_{split}_accuracy"] = values[0]
        entries.append(entry | {"failed": failed.get(history.workdir.path)})
    return entries


if __name__ == "__main__":
    run_command(main)
