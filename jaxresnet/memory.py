"""How this process gets its memory from the operating system."""

import contextlib
import os
import sys
from pathlib import Path

_TUNABLES = "GLIBC_TUNABLES"
_HUGE_PAGES = "glibc.malloc.hugetlb"
_KERNEL_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def free_bytes() -> int | None:
    """Bytes of memory that this process can still take on Linux; None elsewhere.

    The least of what the machine has free with its swap, of what is left to the process's control group, in
    version 2 and as a container sees it, and of what RLIMIT_AS (`ulimit -v`) leaves.
    """
    try:
        import resource

        machine = _fields(Path("/proc/meminfo"))
        free = [1024 * (machine["MemAvailable:"] + machine["SwapFree:"])]
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            free.append(limit - pages * resource.getpagesize())
    except (ImportError, OSError, KeyError, ValueError):
        return None
    with contextlib.suppress(OSError, KeyError, ValueError):  # no such group, or "max"
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text()) - _fields(group / "memory.stat")["inactive_file"]
        free.append(int((group / "memory.max").read_text()) - used)
    return max(0, min(free))


def _fields(path: Path) -> dict[str, int]:
    """The first two words of each line, a name and a number."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {name: int(number) for name, number, *_ in lines}


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
