"""Train several configurations with several seeds: `python -m jaxresnet.sweep --config A.toml B.toml --seeds 0 1 2`.

The runs follow each other; with --engine ray, several train at a time. Each has its own process and its own workdir:
DIR/NAME/seed0 and so on. If a run fails, the failure is reported and the next run starts. If the sweep is started
again, it continues where it stopped and skips finished runs. After each run, the results of all runs so far are written
to results.md and results.json in DIR. Other flags are settings for all runs.
"""

if __name__ == "__main__":  # first, because the imports below take half a second
    from jaxresnet.errors import begin_command

    begin_command()

import argparse
import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from jaxresnet.config.files import find_config, load_config, naming
from jaxresnet.config.flags import (
    ArgumentParser,
    add_device_argument,
    add_setting_arguments,
    setting_arguments,
)
from jaxresnet.config.schema import Config, DataConfig
from jaxresnet.data.info import DatasetInfo
from jaxresnet.data.sources import open_source
from jaxresnet.engines.process import checked, problem_of, run_arguments, standing, train
from jaxresnet.engines.shares import Wish
from jaxresnet.errors import UserError, printable, run_command
from jaxresnet.machine.workarounds import own_process
from jaxresnet.plan import Plan, resolve
from jaxresnet.reporting.tables import as_markdown, comparison_table
from jaxresnet.runs.files import write_json, write_whole
from jaxresnet.runs.groups import History, RunGroup, group_runs, read_histories
from jaxresnet.runs.workdir import Workdir
from jaxresnet.trained.initial import with_initial_model

RESULTS_TEXT, RESULTS = "results.md", "results.json"

Engine: TypeAlias = Callable[[Mapping[Path, Plan]], Generator[dict[Path, str]]]
"""Trains the runs, by workdir, that are not finished. Yields after each: its workdir and why it failed if it did."""


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
    add_engine_arguments(parser)
    add_setting_arguments(parser)
    args = parser.parse(argv)
    settings = setting_arguments(args)
    if "seed" in settings:
        raise UserError("--seed: expected --seeds, which lists the seeds of a sweep", 2)
    own_process()
    failed = sweep(args.config, args.seeds, args.workdir, settings, args.device, chosen_engine(args))
    if failed:
        raise UserError(
            f"{len(failed)} of the runs failed:\n" + "\n".join(f"{k}: {v}" for k, v in failed.items())
        )


def add_engine_arguments(parser: ArgumentParser) -> None:
    """Add the flags that `chosen_engine` reads."""
    group = parser.add_argument_group("several runs at a time, with Ray: pip install 'jaxresnet[ray]'")
    group.add_argument(
        "--engine",
        choices=["sequential", "ray"],
        default="sequential",
        help="sequential trains one run after the other on this machine; ray trains several at a time, also on the "
        "machines of a cluster (default: sequential)",
    )
    group.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="the cluster's, or auto on one of its machines (default: none; Ray runs on this machine, for this sweep)",
    )
    group.add_argument(
        "--cpus-per-run",
        type=int,
        metavar="INT",
        help="cores of each run, on which the bits of a run on a CPU depend (default: 1, or a GPU's part of its node)",
    )
    group.add_argument(
        "--gpus-per-run", type=int, metavar="INT", help="GPUs of each run (default: 1 if there is any)"
    )


def chosen_engine(args: argparse.Namespace) -> Engine | None:
    """The engine that the flags choose; None for the sequential one.

    Raises UserError if they contradict, or if Ray is not installed.
    """
    given = {
        "--ray-address": args.ray_address,
        "--cpus-per-run": args.cpus_per_run,
        "--gpus-per-run": args.gpus_per_run,
    }
    if args.engine == "sequential":
        if alone := [flag for flag, value in given.items() if value is not None]:
            raise UserError(f"{alone[0]}: expected --engine ray beside it", 2)
        return None
    from jaxresnet.engines.cluster import load_ray, train_on_ray

    wish = Wish(args.device, args.ray_address, args.cpus_per_run, args.gpus_per_run)
    load_ray(wish.address)
    return lambda runs: train_on_ray(runs, wish)


def sweep(
    configs: Sequence[Path],
    seeds: Sequence[int],
    workdir: Path,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    engine: Engine | None = None,
) -> dict[Path, str]:
    """Train each configuration file with each seed. `settings`, by dotted name, replace the file's.

    The files are read once, at the start. `engine` trains the runs, by default in turn on `device`. Returns the
    workdirs of the runs that failed, each with the last line of its error. Raises UserError (exit code 2) before the
    first run if any configuration is wrong or a folder holds a run of other settings, and Interrupted after a signal
    has stopped a run.
    """
    runs = planned_runs(configs, seeds, workdir, settings or {})
    refuse_other_runs(runs)
    failed: dict[Path, str] = {}
    with contextlib.closing(engine(runs) if engine else in_turn(runs, device)) as outcomes:
        for outcome in outcomes:
            failed |= outcome
            write_results(workdir, runs, failed)
    # Another sweep may have finished a run meanwhile that it was training before.
    failed = {path: said for path, said in failed.items() if not standing(path, runs[path])[0]}
    print(write_results(workdir, runs, failed))
    return failed


def in_turn(runs: Mapping[Path, Plan], device: str) -> Generator[dict[Path, str]]:
    """Train the runs one after the other. Yields after each what `train_one` returns."""
    for number, (path, plan) in enumerate(runs.items(), 1):
        yield train_one(path, plan, device, f"[{number}/{len(runs)}] {path}")


def train_one(path: Path, plan: Plan, device: str, title: str) -> dict[Path, str]:
    """Train a run, unless it is finished. Returns its workdir and the last line of its error if it failed, else {}."""
    done, problem = standing(path, plan)
    print(f"{title}: done" if done else title, flush=True)
    if not done and not problem:
        problem = problem_of(*train(run_arguments(path, plan, device)))
    if not problem:
        return {}
    print(f"failed: {problem}", flush=True)
    return {path: problem}


def planned_runs(
    configs: Sequence[Path], seeds: Sequence[int], workdir: Path, settings: Mapping[str, Any]
) -> dict[Path, Plan]:
    """The runs of a sweep in their order: workdir to plan, with the facts of the data as far as they are known.

    Raises UserError (exit code 2) if a configuration is wrong, two runs would have the same workdir, or a file's name
    cannot be that of a folder in `workdir`.
    """
    runs: dict[Path, Plan] = {}
    facts: dict[DataConfig, DatasetInfo] = {}
    # All configurations with the first seed come first, so that they can be compared even if the sweep ends early.
    for seed in seeds:
        for file in configs:
            if file.stem in (".", "..", RESULTS_TEXT, RESULTS):
                raise UserError(f"{file}: expected the name of a folder before .toml, found {file.stem!r}", 2)
            path = workdir / file.stem / f"seed{seed}"
            if path in runs:
                raise UserError(f"expected files and seeds that differ, found two runs for {path}", 2)
            config = load_config(file).replace({**settings, "seed": seed})
            config = with_initial_model(config, Workdir(path))
            recorded = recorded_facts(path, config)
            with naming(file, settings):
                if recorded is None and config.data not in facts:
                    facts[config.data] = open_source(config.data).outline
                runs[path] = resolve(config, recorded or facts[config.data])
    return runs


def recorded_facts(path: Path, config: Config) -> DatasetInfo | None:
    """The facts of the data of the run of `config` that is in `path`, so that a finished run does not need its data.

    None if there is no such run. What is wrong with the folder is told later.
    """
    with contextlib.suppress(UserError, OSError):
        return Workdir(path).facts(config)
    return None


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
    """The entries of a group's runs in results.json. Accuracies are fractions.

    "test_accuracy" is that of the evaluation after the last step, "test_average_accuracy" that of the average of the
    weights; the others are of epochs.
    """
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
        for name, average in (("test_accuracy", False), ("test_average_accuracy", True)):
            if record := history.evaluation(average=average):
                entry[name] = record.accuracy
        entries.append(entry | {"failed": failed.get(history.workdir.path)})
    return entries


if __name__ == "__main__":
    run_command(main)
