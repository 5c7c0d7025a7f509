"""How this process gets its memory from the operating system."""

import contextlib
import os
import sys
from pathlib import Path

_TUNABLES = "GLIBC_TUNABLES"
_HUGE_PAGES = "glibc.malloc.hugetlb"
_KERNEL_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages() -> None:
    """Have malloc ask for huge pages, where Linux leaves that to the program ("madvise"); else do nothing.

    XLA:CPU takes hundreds of megabytes of fresh memory for each train step, which the kernel hands out page by
    page: with 4 KiB pages that was a tenth of the step's CPU time (results/speed/README.md). glibc reads the
    setting only when a process starts, so this one starts again, under its number and with its arguments. To be
    called where a command begins, and nowhere that another program may have called; a user's own
    `glibc.malloc.hugetlb` in GLIBC_TUNABLES stays.
    """
    tunables = os.environ.get(_TUNABLES, "")
    if _HUGE_PAGES in tunables or not sys.executable:
        return
    with contextlib.suppress(OSError):
        if "[madvise]" in _KERNEL_SETTING.read_text():
            os.environ[_TUNABLES] = ":".join(filter(None, (tunables, f"{_HUGE_PAGES}=1")))
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
