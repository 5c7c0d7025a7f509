"""Train several configurations with several seeds: `python -m jaxresnet.sweep --config A.toml B.toml --seeds 0 1 2`.

One run after the other, each in a process and a workdir of its own, DIR/NAME/seed0 and so on. A run that fails
is reported and the next one starts. Started again, the sweep goes on where it stopped and skips what is done.
After each run results.md and results.json in DIR hold the table of all so far. Other flags are settings that hold
for all runs.
"""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from jaxresnet.comparison import (
    as_markdown,
    comparison_table,
    group_runs,
    read_runs,
)
from jaxresnet.config import (
    ArgumentParser,
    Config,
    add_device_argument,
    add_setting_arguments,
    differing_keys,
    load_config,
    override,
    setting_arguments,
    to_arguments,
)
from jaxresnet.errors import Interrupted, UserError, run_command
from jaxresnet.workdir import Workdir, write_json


def main(argv: Sequence[str]) -> None:
    """Run the command with the arguments `argv`."""
    parser = ArgumentParser(prog="python -m jaxresnet.sweep", description=__doc__)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        nargs="+",
        required=True,
        help="TOML files, one for each configuration",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="INT",
        nargs="+",
        default=[0],
        help="seeds of each configuration (default: 0)",
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
    """Train each configuration file, with `settings` (by dotted name) laid over it, with each seed.

    Returns the workdirs of the runs that failed, with what they said. Raises UserError (exit code 2) before the
    first run if any configuration is wrong, Interrupted after a SIGINT or SIGTERM has stopped the current run.
    """
    runs = plan(configs, seeds, workdir, settings or {})
    failed: dict[Path, str] = {}
    for number, (path, (file, config)) in enumerate(runs.items(), 1):
        title = f"[{number}/{len(runs)}] {path}"
        if Workdir(path).finished(config):
            print(f"{title}: done", flush=True)
            continue
        print(title, flush=True)
        changed = {name: new for name, (_, new) in differing_keys(load_config(file), config).items()}
        code, said = train(
            ["--config", str(file), "--workdir", str(path), "--device", device, *to_arguments(changed)]
        )
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise Interrupted(f"the sweep stopped in {path}: {said}", code - 128)
        if code:
            failed[path] = said.splitlines()[-1].removeprefix("error: ") if said else f"exit code {code}"
            print(f"failed: {failed[path]}", flush=True)
        write_results(workdir, list(runs), failed)
    print(write_results(workdir, list(runs), failed))
    return failed


def plan(
    configs: Sequence[Path], seeds: Sequence[int], workdir: Path, settings: Mapping[str, Any]
) -> dict[Path, tuple[Path, Config]]:
    """The runs of a sweep in their order: workdir to configuration file and configuration.

    Raises UserError (exit code 2) if a configuration is wrong or two runs would share a workdir.
    """
    runs = {}
    for seed in seeds:  # the first seed of all comes first: an early end leaves every configuration compared
        for file in configs:
            path = workdir / file.stem / f"seed{seed}"
            if path in runs:
                raise UserError(f"expected files and seeds that differ, found two runs for {path}", 2)
            runs[path] = file, override(load_config(file), {**settings, "seed": seed})
    return runs


def train(arguments: Sequence[str]) -> tuple[int, str]:
    """Run jaxresnet.train in a process of its own. Returns its exit code, as a shell's, and its stderr.

    SIGINT and SIGTERM are passed on to it, each once, so that it can save.
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
            process_group=0,  # out of the terminal's reach, whose Ctrl-C it would get a second time
        )
        for number in received:  # before there was a process to pass them on to
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
    groups = group_runs(read_runs(begun, above=workdir)) if begun else []
    text = as_markdown(comparison_table(groups))
    if failed:
        text += "\n\n" + "\n".join(f"- failed: {path}: {said}" for path, said in failed.items())
    record = [
        {
            "name": group.name,
            "runs": [
                {
                    "workdir": str(run.path),
                    "seed": run.config.seed,
                    "epochs": len(run.epochs),
                    "seconds": run.seconds,
                    **{
                        f"{which}_{key}": max(values) if which == "best" else values[-1]
                        for key in ("test_accuracy", "validation_accuracy")
                        if (values := run.values(key)[1])
                        for which in ("last", "best")
                    },
                    "failed": failed.get(run.path),
                }
                for run in group.runs
            ],
        }
        for group in groups
    ]
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "results.md").write_text(text + "\n", encoding="utf-8")
    write_json(workdir / "results.json", record)
    return text


if __name__ == "__main__":
    run_command(main)
