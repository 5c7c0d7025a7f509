"""Write a report of one or more runs: `python -m jaxresnet.report runs/digits`.

It writes to the folder report/ of the run: index.html, which contains its pictures and needs no other file; the
pictures as PNGs; and report.md, the same text and tables in Markdown. Several runs are compared: those that differ only
in the seed are shown as mean and standard deviation.
"""

if __name__ == "__main__":  # first, because the imports below take half a second
    from jaxresnet.errors import begin_command

    begin_command()

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from jaxresnet.config.flags import ArgumentParser, add_data_argument, add_device_argument
from jaxresnet.errors import UserError, run_command
from jaxresnet.machine.memory import require_address_space
from jaxresnet.runs.groups import History, group_runs, read_histories


def main(argv: Sequence[str]) -> None:
    """Run the command with the arguments `argv`."""
    parser = ArgumentParser(prog="python -m jaxresnet.report", description=__doc__)
    parser.add_argument("runs", type=Path, metavar="DIR", nargs="*", help="folder of each run")
    parser.add_argument(
        "--workdir", type=Path, metavar="DIR", nargs="+", action="extend", default=[], help="the same"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of the report (default: report/ in the run's folder; for several, beside the runs' folders)",
    )
    add_data_argument(parser)
    add_device_argument(parser)
    args = parser.parse(argv)
    if not args.runs + args.workdir:
        raise UserError("expected the folder of a run, or of several, found none (see --help)", 2)
    print(f"written to {report_command(args)}")


def report_command(args: argparse.Namespace) -> Path:
    """Write the report that the parsed arguments ask for. Returns the path of its index.html."""
    histories = read_histories(args.runs + args.workdir)
    output = args.output or _default_output(histories)

    # Imported here, so that --help, a wrong flag and a folder without a run are answered at once.
    from jaxresnet.machine.workarounds import own_process

    require_address_space(2)
    own_process()
    from jaxresnet.reporting.page import write_page

    if len(histories) > 1:
        from jaxresnet.reporting.comparison_page import comparison_report

        return write_page(comparison_report(group_runs(histories)), output)

    from jaxresnet.machine.cache import use_compilation_cache
    from jaxresnet.machine.devices import available_cores, start_devices
    from jaxresnet.reporting.run_page import run_report

    [history] = histories
    mesh = start_devices(args.device, history.config.cpu_devices or available_cores())
    use_compilation_cache()
    return write_page(run_report(history, mesh, args.data_dir), output)


def _default_output(histories: Sequence[History]) -> Path:
    """The folder report/ of the only run, or beside several."""
    above = histories[0].workdir.path
    if len(histories) > 1:
        above = Path(os.path.commonpath([history.workdir.path.resolve().parent for history in histories]))
    return above / "report"


if __name__ == "__main__":
    run_command(main)
