"""Files are replaced completely or not at all, also by several processes."""

import os
from pathlib import Path

import pytest

from jaxresnet.runs.files import write_whole


def test_two_processes_may_write_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The other one begins and ends while this one has written, but not yet replaced the file."""
    path, replace = tmp_path / "results.json", Path.replace

    def come_between(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", replace)
        write_whole(path, "of the other")
        assert path.read_text() == "of the other"
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", come_between)
    write_whole(path, "of this one")
    assert path.read_text() == "of this one"
    assert [*tmp_path.iterdir()] == [path]


def test_what_killed_processes_have_left_is_removed_after_a_while(tmp_path: Path):
    new, old = tmp_path / "a.json.01234567.tmp", tmp_path / "a.json.89abcdef.tmp"
    others = [tmp_path / "a.json.tmp.txt", tmp_path / "b.a.json.01234567.tmp", tmp_path / "a.json.mine.tmp"]
    for path in (new, old, *others):
        path.touch()
    for path in (old, *others):
        os.utime(path, (0, 0))
    write_whole(tmp_path / "a.json", "{}")
    assert {*tmp_path.iterdir()} == {tmp_path / "a.json", new, *others}
