"""A cache of compiled programs, so that a later start of a command need not compile them again."""

import contextlib
import os
from pathlib import Path

import jax

from jaxresnet.errors import tell


def use_compilation_cache(least_seconds: float | None = None) -> None:
    """Keep compiled programs in $JAX_COMPILATION_CACHE_DIR, or in the user's cache folder if that is not set.

    Those are kept that took at least `least_seconds` to compile, by default what JAX is set to, which is 1 by itself.
    For commands only, because it changes JAX's configuration. If there is no such folder, or it cannot be written, it
    prints one line on stderr, and nothing is kept.
    """
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if "://" in chosen:
        return  # not a folder of this machine: JAX writes it by itself
    cache, problem = None, "there is no home folder"
    with contextlib.suppress(RuntimeError):
        cache = Path(chosen) if chosen else _users_cache()
    if cache and not _writable(cache):
        cache, problem = None, f"{cache} is not writable"
    if cache is None:
        tell(
            f"note: no compilation cache, because {problem}: JAX_COMPILATION_CACHE_DIR may name a folder for it"
        )
    jax.config.update("jax_compilation_cache_dir", cache and str(cache))
    if least_seconds is not None:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)


def _users_cache() -> Path:
    """The package's folder in the user's cache. Raises RuntimeError if the user has no home folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxresnet" / "compilation"


def _writable(folder: Path) -> bool:
    """Whether the folder can be written. It is created if it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
