"""What lies on a disk may come from a stranger: opening only what is a regular file, and not through a link.

A pipe or a device in a file's place would be waited for or be written to, and a link would lead out of a run's folder.
"""

import os
import stat
from pathlib import Path

from jaxresnet.errors import UserError

MIB = 2**20

CONFIG_LIMIT = 1 * MIB
"""A configuration has less than a hundred lines."""

RECORD_LIMIT = 64 * MIB
"""A record of a run: the line of an epoch has 300 bytes."""

_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def kind_of(path: Path, *, follow: bool = False) -> str | None:
    """What there is at `path`: "a file", "a folder", "a link", "a pipe", "a socket" or "a device"; None if nothing.

    With `follow`, a link counts as what it leads to.
    """
    try:
        return _kind(path.stat(follow_symlinks=follow))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _kind(status: os.stat_result) -> str:
    return _KINDS.get(stat.S_IFMT(status.st_mode), "a device")


def require(expected: str, path: Path, *, follow: bool = False) -> None:
    """Raise UserError if there is something else at `path` than the `expected` "a file" or "a folder", or nothing.

    With `follow`, a link counts as what it leads to.
    """
    found = kind_of(path, follow=follow)
    if found not in (None, expected):
        raise UserError(f"expected {expected}, found {found}: {path}")


def require_plain(folder: Path) -> None:
    """Raise UserError if a folder, or anything below it, is neither a regular file nor a folder. It need not exist."""
    require("a folder", folder)
    for place, folders, files in os.walk(folder):
        for name in folders:
            require("a folder", Path(place, name))
        for name in files:
            require("a file", Path(place, name))


def open_file(path: Path, flags: int, *, follow: bool = False) -> int:
    """The descriptor of a regular file, opened with `flags` of os.open. With `follow`, `path` may be a link to it.

    Raises UserError if there is something else at `path`, without opening it, and OSError if it cannot be opened.
    """
    require("a file", path, follow=follow)
    # Somebody may put a pipe or a link there just now. Windows has neither flag.
    safe = getattr(os, "O_NONBLOCK", 0) | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
    descriptor = os.open(path, flags | safe | getattr(os, "O_BINARY", 0), 0o666)
    found = _kind(os.fstat(descriptor))
    if found != "a file":
        os.close(descriptor)
        raise UserError(f"expected a file, found {found}: {path}")
    return descriptor


def read_file(path: Path, limit: int, *, follow: bool = False) -> bytes:
    """The content of a regular file of at most `limit` bytes. With `follow`, `path` may be a link to it.

    Raises UserError if it is larger or something else, and OSError if it cannot be read.
    """
    with os.fdopen(open_file(path, os.O_RDONLY, follow=follow), "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UserError(f"{path}: expected a file of at most {limit // MIB} MiB, found a larger one")
    return content
