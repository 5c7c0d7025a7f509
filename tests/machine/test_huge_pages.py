"""Huge pages, for which the process starts again once, and only where that helps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxresnet.machine import huge_pages

PROGRAM = """
import os, signal, sys
print(os.getpid())
from jaxresnet.machine.huge_pages import use_huge_pages
use_huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:], *map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))
"""


def lines_of(tunables: str | None) -> list[str]:
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    if tunables is not None:
        environment["GLIBC_TUNABLES"] = tunables
    command = [sys.executable, "-u", "-X", "utf8", "-c", PROGRAM, "an argument", "--flag"]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()


@pytest.mark.skipif(
    not huge_pages._KERNEL_SETTING.is_file() or "[madvise]" not in huge_pages._KERNEL_SETTING.read_text(),
    reason="the kernel does not leave huge pages to the program",
)
def test_the_process_starts_again_once_with_its_arguments():
    first, second, result = lines_of(None)
    assert first == second
    assert result == "glibc.malloc.hugetlb=1 an argument --flag 2"  # SIGINT waits until the command has begun
    *_, result = lines_of("glibc.malloc.arena_max=4")
    assert result == "glibc.malloc.arena_max=4:glibc.malloc.hugetlb=1 an argument --flag 2"


def test_the_users_own_setting_stays():
    _, result = lines_of("glibc.malloc.hugetlb=0")
    assert result == "glibc.malloc.hugetlb=0 an argument --flag"


@pytest.mark.parametrize("setting", ["[always] madvise never", "always madvise [never]", None])
def test_elsewhere_nothing_happens(setting: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(huge_pages, "_KERNEL_SETTING", tmp_path / "enabled")
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started again"))
    if setting:
        (tmp_path / "enabled").write_text(setting + "\n")
    huge_pages.use_huge_pages()
    assert "GLIBC_TUNABLES" not in os.environ
