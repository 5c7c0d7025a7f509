"""The compilation cache: where it cannot be written, and an entry that was written in part."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from jaxresnet.machine import cache
from jaxresnet.machine.cache import use_compilation_cache


def cache_folder() -> str | None:
    return getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009 - JAX declares no type for it


@pytest.fixture
def before() -> Iterator[str | None]:
    """The folder that is set; it is set again afterwards."""
    folder = cache_folder()
    yield folder
    jax.config.update("jax_compilation_cache_dir", folder)


def test_a_command_may_keep_programs_that_compile_fast(before: str | None):
    def least() -> float:
        return getattr(jax.config, "jax_persistent_cache_min_compile_time_secs")  # noqa: B009 - as above

    found = least()
    try:
        use_compilation_cache(least_seconds=0.25)
        assert least() == 0.25
        use_compilation_cache()
        assert least() == 0.25
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", found)


@pytest.mark.parametrize("variable", ["JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"])
def test_an_unwritable_cache_folder_costs_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    before: str | None,
    variable: str,
):
    (tmp_path / "file").touch()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "file"))
    use_compilation_cache()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: no compilation cache, because {tmp_path / 'file'}")
    assert cache_folder() is None


def test_a_user_without_a_home_has_no_cache(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], before: str | None
):
    for variable in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(cache, "_users_cache", lambda: Path("~nobody knows").expanduser())
    use_compilation_cache()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: no compilation cache, because there is no home folder: ")
    assert cache_folder() is None


def test_the_users_own_folder_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    use_compilation_cache()
    assert cache_folder() == str(tmp_path / "own")
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/cache")
    use_compilation_cache()
    assert cache_folder() == str(tmp_path / "own")  # JAX reads the address itself


TORN_ENTRY = """
import pathlib, sys
from jaxresnet.machine.workarounds import own_process
own_process()
import jax
from jaxresnet.machine.cache import use_compilation_cache
use_compilation_cache()
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
def double(x): return x * 2
for start in range(4):
    jax.clear_caches()
    print('start', start, float(jax.jit(double)(2.0)), file=sys.stderr)
    (entry,) = folder.glob('jit_double-*')
    print(entry.stat().st_size > 500)
    if start == 1: entry.write_bytes(entry.read_bytes()[:200])
"""


def test_a_torn_cache_entry_costs_one_line_and_is_replaced(tmp_path: Path):
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    process = subprocess.run(
        [sys.executable, "-c", TORN_ENTRY],
        env=environment | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout == "True\n" * 4
    lines = process.stderr.splitlines()
    (note,) = [line for line in lines if not line.startswith("start")]
    assert note.startswith(f"note: an entry of the compilation cache {tmp_path}")
    assert lines.index(note) == 2  # before the third start's result; the fourth is silent
