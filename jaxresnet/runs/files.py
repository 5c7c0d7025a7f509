"""Files that are written completely or not at all, JSON that is read as a typed record, and a lock for a folder."""

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from jaxresnet.errors import UserError

T = TypeVar("T")


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
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file atomically: at any moment it has the old content or the new. Text is written as UTF-8."""
    write_together({path: content})


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """Replace several files, each atomically. If one cannot be written, none is replaced.

    Raises OSError with the name of the file that cannot be written.
    """
    temporaries = {path: path.with_name(path.name + ".tmp") for path in contents}
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


def write_to_disk(path: Path, mode: Literal["w", "a"], content: str | bytes) -> None:
    """Write to a file (mode "w") or append to it ("a"), and wait until it is on disk.

    Raises OSError that always has the file's name. That of a full disk would have none.
    """
    try:
        with path.open(f"{mode}b") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def lock_folder(path: Path) -> Iterator[None]:
    """Hold the lock of the run in the folder `path`. The kernel releases it in whatever way the process ends.

    Raises UserError if another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no lock
        yield
        return
    with (path / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{path} is in use by {holder}: wait for it or name another --workdir") from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield
