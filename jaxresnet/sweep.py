"""Train several configurations with several seeds: `python -m jaxresnet.sweep --config A.toml B.toml --seeds 0 1 2`.

The runs follow each other. Each has its own process and its own workdir: DIR/NAME/seed0 and so on. If a run fails, the
failure is reported and the next run starts. If the sweep is started again, it continues where it stopped and skips
finished runs. After each run, the results of all runs so far are written to results.md and results.json in DIR. Other
flags are settings for all runs.
"""

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
from jaxresnet.config.schema import Config, differing_settings
from jaxresnet.data.sources import open_source
from jaxresnet.errors import Interrupted, UserError, run_command
from jaxresnet.plan import resolve
from jaxresnet.reporting.tables import as_markdown, comparison_table
from jaxresnet.runs.files import write_json
from jaxresnet.runs.groups import RunGroup, group_runs, read_histories
from jaxresnet.runs.workdir import Workdir


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

    Returns the workdirs of the runs that failed, each with the last line of its error. Raises UserError (exit code 2)
    before the first run if any configuration is wrong, and Interrupted after SIGINT or SIGTERM has stopped a run.
    """
    runs = planned_runs(configs, seeds, workdir, settings or {})
    failed: dict[Path, str] = {}
    for number, (path, (file, config)) in enumerate(runs.items(), 1):
        title = f"[{number}/{len(runs)}] {path}"
        try:
            done = Workdir(path).finished(config.epochs)
        except UserError as error:  # of this run alone: the others go on
            failed[path] = str(error)
            print(f"{title}\nfailed: {failed[path]}", flush=True)
            continue
        if done:
            print(f"{title}: done", flush=True)
            continue
        print(title, flush=True)
        changed = {name: new for name, (_, new) in differing_settings(load_config(file), config).items()}
        code, said = train(
            ["--config", str(file), "--workdir", str(path), "--device", device, *to_arguments(changed)]
        )
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise Interrupted(
                f"the sweep stopped in {path}: {said.splitlines()[-1] if said else code}", code - 128
            )
        if code:
            failed[path] = said.splitlines()[-1].removeprefix("error: ") if said else f"exit code {code}"
            print(f"failed: {failed[path]}", flush=True)
        write_results(workdir, list(runs), failed)
    print(write_results(workdir, list(runs), failed))
    return failed


def planned_runs(
    configs: Sequence[Path], seeds: Sequence[int], workdir: Path, settings: Mapping[str, Any]
) -> dict[Path, tuple[Path, Config]]:
    """The runs of a sweep in their order: workdir to (configuration file, configuration).

    Raises UserError (exit code 2) if a configuration is wrong or two runs would have the same workdir.
    """
    runs = {}
    # All configurations with the first seed come first, so that they can be compared even if the sweep ends early.
    for seed in seeds:
        for file in configs:
            path = workdir / file.stem / f"seed{seed}"
            if path in runs:
                raise UserError(f"expected files and seeds that differ, found two runs for {path}", 2)
            config = load_config(file).replace({**settings, "seed": seed})
            resolve(config, open_source(config.data, f"{file}: ").info, f"{file}: ")
            runs[path] = file, config
    return runs


def train(arguments: Sequence[str]) -> tuple[int, str]:
    """Run jaxresnet.train in its own process. Returns its exit code, as a shell gives it, and its stderr.

    SIGINT and SIGTERM are passed on to it, each once, so that it can save before it stops.
    """
    received: list[int] = []
    process: subprocess.Popen[str] | None = None

    def pass_on(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if process:
            process.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxresnet.train", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,  # so that the terminal does not send it a second Ctrl-C
        )
        for number in received:  # received before the process existed
            process.send_signal(number)
        _, said = process.communicate()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    code = process.returncode
    return (code if code >= 0 else 128 - code), said.strip()


def write_results(workdir: Path, paths: Sequence[Path], failed: Mapping[Path, str]) -> str:
    """Write results.md and results.json for the runs that have begun. Returns the table in Markdown."""
    begun = [path for path in paths if (path / "config.toml").is_file()]
    groups = group_runs(read_histories(begun, above=workdir)) if begun else []
    text = as_markdown(comparison_table(groups))
    if failed:
        text += "\n\n" + "\n".join(f"- failed: {path}: {said}" for path, said in failed.items())
    record = [{"name": group.name, "runs": results_of(group, failed)} for group in groups]
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "results.md").write_text(text + "\n", encoding="utf-8")
    write_json(workdir / "results.json", record)
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
