"""A cache of compiled programs, so that a later start of a command need not compile them again."""

import os
import sys
from pathlib import Path

import jax


def use_compilation_cache() -> None:
    """Keep compiled programs in $JAX_COMPILATION_CACHE_DIR, or in the user's cache folder if that is not set.

    For commands only, because it changes JAX's configuration. If the folder cannot be written, it prints one line on
    stderr.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return  # JAX reads it itself
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxresnet" / "compilation"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        writable = os.access(cache, os.W_OK)
    except OSError:
        writable = False
    if writable:
        jax.config.update("jax_compilation_cache_dir", str(cache))
    else:
        print(f"note: no compilation cache, because {cache} is not writable", file=sys.stderr)
