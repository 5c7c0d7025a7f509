"""What a worker of Ray does for a run of a sweep. This module loads no Ray."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from jaxresnet.engines.cores import cores_for_a_run
from jaxresnet.engines.process import Ended, supervise, wait_until_free

POLL_SECONDS = 0.2
"""Seconds until a run notices that the sweep stops."""


class RunLost(Exception):
    """A run was ended from outside, not by the sweep: it is to be started again."""


def train_here(
    arguments: Sequence[str], cores: int, log: Path, folder: Path | None = None
) -> tuple[int, str]:
    """Run jaxresnet.train on `cores` cores of this machine. Returns its exit code and its last line on stderr.

    What it prints is added to the file `log`, which must be there already. `folder` is the current folder that it is
    to have, by default this process's. Raises RunLost if it is to be started again.
    """
    workdir = Path(arguments[1])
    if not log.is_file():  # a machine that joined later than the sweep began
        return 1, f"{log} is not on {os.uname().nodename}: expected a --workdir that all machines share"
    if folder and not folder.is_dir():
        missing = f"{folder}, to which init is relative, is not on {os.uname().nodename}"
        return 1, f"{missing}: name an absolute path"
    with log.open("a", encoding="utf-8", buffering=1) as output:
        wait_until_free(workdir, tell=output.write)
        with cores_for_a_run(cores) as held:
            ended = supervise(
                arguments,
                stdout=output,
                pass_fds=held,
                poll=POLL_SECONDS,
                tell=output.write,
                folder=folder,
            )
    if lost(ended):
        raise RunLost(f"exit code {ended.code}")
    return ended.code, ended.said


def lost(ended: Ended) -> bool:
    """Whether a run was ended by a signal that the sweep did not send: to its process, or to the worker.

    Ray passes a request of the sweep on as SIGINT, and sends nothing else but when it ends the worker.
    """
    return ended.code > 128 and signal.SIGINT not in ended.received
