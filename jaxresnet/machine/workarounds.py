"""Workarounds for the behaviour of other libraries, all in one place. Each says for which version, why, and until when.

What lasts changes only a process that runs a command of this package: the commands call `own_process` first. A program
that imports jaxresnet keeps its hooks, log levels, warnings and environment variables.
"""

import contextlib
import ctypes
import errno
import functools
import glob
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_process_is_owned = False
_importing = threading.Lock()


def own_process() -> None:
    """Apply the workarounds to this process, which runs a command of this package.

    A command must call this before it imports JAX or TensorFlow. Environment variables that the user has set are kept.
    """
    global _process_is_owned
    if _process_is_owned:
        return
    _process_is_owned = True

    # orbax-checkpoint 0.12 logs errors that it also raises. Can go when its logger can be set to errors alone.
    logging.getLogger("absl").setLevel(logging.CRITICAL)

    # orbax-checkpoint 0.12 with tensorstore 0.1: when a save or a read fails, orbax raises the first error and closes
    # the event loop. tensorstore's threads then cannot report the other errors to it, and print hundreds of tracebacks.
    # No upstream issue is known. Can go when orbax waits for the other writes after one of them has failed.
    sys.unraisablehook = functools.partial(_ignore_closed_loops, sys.unraisablehook)
    logging.getLogger("asyncio").addFilter(_not_of_checkpoints)

    # jax 0.10: an entry of the compilation cache is incomplete if the process was killed or the disk was full. JAX
    # warns of it at every start (since https://github.com/jax-ml/jax/issues/12582) and never writes it again. Can go
    # when JAX writes an entry under another name first, or removes one that it cannot read.
    warnings.showwarning = functools.partial(_mend_compilation_cache, warnings.showwarning)

    # TensorFlow 2.2x prints notices at its start, and comments on errors that it also raises. 1 is overridden too,
    # because JAX sets it when it is imported. oneDNN is off: it prints a notice, and its results depend on the CPU.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

    # TensorFlow 2.2x imports Keras, which takes a third of its import time and is not used here. With this variable it
    # looks for the old Keras, finds none and goes on. Can go when TensorFlow imports Keras lazily
    # (https://github.com/tensorflow/tensorflow/issues/37729).
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")


def silence_ray() -> None:
    """Have Ray, to which this process is connected, print nothing of its own, as it does on stdout in any case.

    ray 2.60 prints each loss of a worker among the lines of the command, several lines long and in colour, also with
    `log_to_driver=False`, which covers only what workers print. No upstream issue is known. Can go when that or another
    public setting covers it.
    """
    from ray._private import worker  # pyright: ignore[reportMissingImports]

    worker._worker_logs_enabled = False


def load_tensorflow() -> Any:
    """Import tensorflow, which takes several seconds the first time. Returns the module.

    In a command's process TensorFlow does not use the GPU, because it would take all of its memory from JAX, and it
    logs errors only.
    """
    with _importing:
        import tensorflow as tf

        if _process_is_owned:
            tf.config.set_visible_devices([], "GPU")
            tf.get_logger().setLevel("ERROR")
    return tf


_abort_handlers: list[Any] = []


def before_abort(function: Callable[[], None]) -> None:
    """Call `function`, in whatever thread, when a library ends this process by abort().

    jax 0.10 to 0.12: the client of its coordinator does so when another process of the run is lost, and prints a stack
    trace. A Python handler of the signal would not run any more, so this one is C's. Can go when
    `missed_heartbeat_callback` of the client can be a Python function (jaxlib 0.10 ends with std::bad_cast).
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: function())
    _abort_handlers.append(handler)  # it must outlive this call
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


def _ignore_closed_loops(hook: Any, unraisable: Any) -> None:
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        hook(unraisable)


@contextlib.contextmanager
def read_only_unremarked() -> Iterator[None]:
    """Inside the block, orbax-checkpoint 0.12 does not warn that a manager only reads, as it was asked to."""
    logger = logging.getLogger("absl")
    logger.addFilter(_not_of_reading)
    try:
        yield
    finally:
        logger.removeFilter(_not_of_reading)


def _not_of_reading(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Given directory is read only")


def _not_of_checkpoints(record: logging.LogRecord) -> bool:
    """False for the log records of a damaged checkpoint's reads that failed after the first, whose error was raised."""
    message = record.getMessage()
    return "was never retrieved" not in message or not ("orbax" in message or "OCDBT" in message)


_CACHE_PROBLEM = re.compile(r"Error (?:read|writ)ing persistent compilation cache entry for '(.+?)': (.*)")


def _mend_compilation_cache(showwarning: Any, message: Warning | str, *details: Any, **more: Any) -> None:
    """Remove a cache entry that JAX cannot read or write, and show all other warnings.

    The warning does not name the entry's file, so all entries of the same program are removed.
    """
    import jax

    problem = _CACHE_PROBLEM.match(str(message))
    folder = getattr(jax.config, "jax_compilation_cache_dir", None)
    if problem is None or folder is None:
        showwarning(message, *details, **more)
        return
    program, reason = problem.groups()
    for entry in Path(folder).glob(f"{glob.escape(program)}-*"):
        try:
            entry.unlink(missing_ok=True)
        except OSError:
            continue
    _tell_once(
        f"note: an entry of the compilation cache {folder} was of no use ({reason[:100]}) and is removed"
    )


@functools.cache
def _tell_once(line: str) -> None:
    print(line, file=sys.stderr)


_OF_CONTENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG}
"""Codes of the operating system with which reading fails if a file is missing, or names one that cannot be."""


def is_of_machine(error: BaseException | None) -> bool:
    """Whether an error in reading came from the machine, such as a lack of memory, and not from a file's content.

    orbax 0.12 and tensorstore have no type for it: they tell the operating system's code in the text.
    """
    while error:
        code = error.errno if isinstance(error, OSError) else None
        if told := re.search(r"os_error_code='(\d+)'", str(error)):
            code = int(told[1])
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            return True
        if code is not None and code not in _OF_CONTENT:
            return True
        error = error.__cause__ or error.__context__
    return False


def first_reason(error: BaseException) -> str:
    """The first cause of an error, in one line. orbax 0.12 and tensorstore wrap it in pages of context."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = " ".join(str(error).split()) or type(error).__name__
    reason = words.split(" [")[0]
    # In tensorstore's errors the operating system's message comes last.
    return reason.rpartition(": ")[2] if "[os_error_code=" in words else reason[:200]
