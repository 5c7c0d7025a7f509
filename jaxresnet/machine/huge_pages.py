"""Huge pages for a process that trains on a CPU. This module loads no library, because it restarts the process."""

import contextlib
import os
import signal
import sys
from pathlib import Path

_TUNABLES = "GLIBC_TUNABLES"
_HUGE_PAGES = "glibc.malloc.hugetlb"
_KERNEL_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages() -> None:
    """Make malloc use huge pages if Linux leaves this choice to the program ("madvise"); else do nothing.

    XLA:CPU allocates hundreds of megabytes for each train step, and the kernel provides them page by page. With huge
    pages the paper's train step runs 1.13 times as fast (results/speed/README.md). glibc reads the setting only when a
    process starts, so this process restarts, with the same process number and arguments. The command `train` calls
    this first. If the user has set `glibc.malloc.hugetlb` in GLIBC_TUNABLES, nothing is done.
    """
    tunables = os.environ.get(_TUNABLES, "")
    if _HUGE_PAGES in tunables or not sys.executable:
        return
    with contextlib.suppress(OSError):
        if "[madvise]" in _KERNEL_SETTING.read_text():
            os.environ[_TUNABLES] = ":".join(filter(None, (tunables, f"{_HUGE_PAGES}=1")))
            # Until `begin_command`: a Ctrl-C while Python starts again would be a traceback.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
            finally:  # it failed
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
