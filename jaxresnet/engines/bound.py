"""Run a command that does not outlive its parent: `python -m jaxresnet.engines.bound PARENT COMMAND ...`.

PARENT is the number of the process that must live. When it ends, in whatever way, the command gets SIGHUP, at which
jaxresnet.train saves and stops. It is not SIGTERM, because after a first SIGTERM, which the parent may have passed on
while it was still there, a second one would end the run unsaved. Only Linux can do that (PR_SET_PDEATHSIG, prctl(2));
elsewhere the command just runs. A module of its own, since between fork and exec a process with threads may not run
Python.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(argv: Sequence[str]) -> NoReturn:
    """Become the command in `argv`, which follows the number of the process that must live."""
    parent, *command = argv
    if sys.platform == "linux":
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, under which a sweep may run, had it ignored
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGHUP)
        if os.getppid() != int(parent):  # it ended before
            sys.exit(128 + signal.SIGHUP)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
