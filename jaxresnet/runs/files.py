"""Files that are written completely or not at all, JSON that is read as a typed record, and a lock for a folder."""

import contextlib
import functools
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from jaxresnet.disk import RECORD_LIMIT, kind_of, open_file, read_file, require
from jaxresnet.errors import UserError

T = TypeVar("T")

STALE_SECONDS = 3600
"""Age from which an incomplete file is taken for what a process has left that was killed: writing takes less."""


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def parse_record(kind: type[T], text: str | bytes, place: str) -> T:
    """The JSON in `text` as a `kind`, which is a dataclass or another annotation. Unknown keys are ignored.

    Raises UserError if `text` is not JSON, or not such a record. The message begins with `place`.
    """
    try:
        return _adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        problem = f"{where}: {first['msg']}" if where else first["msg"]
    raise UserError(f"{place}: expected {_name(kind)}, found something else ({problem}): mend or remove it")


def read_record(kind: type[T], path: Path) -> T | None:
    """The record in a file of a run's folder; None if there is no such file.

    Raises what `parse_record` and `read_if_there` raise.
    """
    content = read_if_there(path)
    return None if content is None else parse_record(kind, content, str(path))


def read_if_there(path: Path) -> bytes | None:
    """The content of a file in a run's folder; None if there is none.

    Raises UserError if it is a link or no file at all, or has more than RECORD_LIMIT bytes.
    """
    try:
        return read_file(path, RECORD_LIMIT)
    except FileNotFoundError:
        return None


def _name(kind: Any) -> str:
    words = getattr(kind, "__doc__", None) if isinstance(kind, type) else None
    return words.split(",")[0].split(".")[0].lower() if words else "a record"


def to_json(record: Any) -> Any:
    """A record as a value that can be written as JSON."""
    return _adapter(type(record)).dump_python(record, mode="json")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file completely or not at all.

    Raises ValueError if a number is not finite, and OSError with the file's name if it cannot be written.
    """
    write_whole(path, json_text(content))


def json_text(content: Any) -> str:
    """The text of a JSON file. Raises ValueError if a number is not finite."""
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file atomically: at any moment it has the old content or the new. Text is written as UTF-8."""
    write_together({path: content})


def write_named(path: Path, content: str | bytes) -> None:
    """Write to what a user named. A file is replaced as by `write_whole`, and a link leads to the file to replace.

    A device or a pipe, such as /dev/stdout, stays what it is: the content is written to it.
    """
    if kind_of(path, follow=True) in ("a device", "a pipe"):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    else:
        write_whole(Path(os.path.realpath(path)), content)


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """Replace several files, each atomically. If one cannot be written, none is replaced.

    Raises OSError with the name of the file that cannot be written, and UserError if it is a link or no file at all.
    """
    for path in contents:
        require("a file", path)
    for path in contents:
        _remove_stale(path)
    # Of their own names, because another process may write the same file.
    temporaries = {path: path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp") for path in contents}
    try:
        for path, temporary in temporaries.items():
            write_to_disk(temporary, "w", contents[path])
    except OSError:
        for temporary in temporaries.values():
            with contextlib.suppress(OSError):  # the first error counts
                temporary.unlink(missing_ok=True)
        raise
    for path, temporary in temporaries.items():
        temporary.replace(path)


def is_temporary(name: str, of: str) -> bool:
    """Whether a file's name is that of an incomplete file `of`, also as earlier versions named it."""
    return re.fullmatch(rf"{re.escape(of)}(\.[0-9a-f]{{8}})?\.tmp", name) is not None


def _remove_stale(path: Path) -> None:
    """Remove the incomplete files that processes have left which were killed while they wrote `path`."""
    with contextlib.suppress(OSError):
        for entry in path.parent.iterdir():
            if is_temporary(entry.name, path.name) and time.time() - entry.lstat().st_mtime > STALE_SECONDS:
                entry.unlink(missing_ok=True)


def write_to_disk(path: Path, mode: Literal["w", "a"], content: str | bytes) -> None:
    """Write a new file in place of another (mode "w") or append to one ("a"), and wait until it is on disk.

    Raises OSError that always has the file's name. That of a full disk would have none. Raises UserError if the file to
    append to is a link or no file at all.
    """
    try:
        if mode == "w":
            path.unlink(missing_ok=True)  # what a process that was killed has left, or a link
        flags = os.O_WRONLY | os.O_CREAT | (os.O_EXCL if mode == "w" else os.O_APPEND)
        with os.fdopen(open_file(path, flags), f"{mode}b") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


class FolderInUseError(UserError):
    """Another process, `holder`, holds the lock of a run's folder."""

    def __init__(self, path: Path, holder: str):
        super().__init__(f"{path} is in use by {holder}: wait for it or name another --workdir")
        self.holder = holder


@contextlib.contextmanager
def lock_folder(path: Path) -> Iterator[None]:
    """Hold the lock of the run in the folder `path`. The kernel releases it in whatever way the process ends.

    Raises FolderInUseError if another process holds it, and UserError if the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no lock
        yield
        return
    with contextlib.ExitStack() as opened:

        def take(descriptor: int) -> None:
            opened.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FolderInUseError(path, _holder(path)) from None

        # The folder itself, because somebody may remove a file in it meanwhile. NFS cannot lock a folder.
        with contextlib.suppress(OSError):
            take(os.open(path, os.O_RDONLY))
        file = open_file(path / "lock", os.O_RDWR | os.O_CREAT)
        try:
            take(file)
        except OSError as error:
            raise UserError(
                f"cannot lock {path}: {error.strerror}; expected a file system with locks (flock): name a --workdir "
                "on another one"
            ) from None
        os.truncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def _holder(path: Path) -> str:
    """Who holds the lock of a folder, as its lock file says."""
    try:
        found = read_file(path / "lock", RECORD_LIMIT).decode(errors="replace")
    except (OSError, UserError):
        found = ""
    return found if re.fullmatch(r"process \d{1,20}( on [\w.-]{1,255})?", found) else "another process"
