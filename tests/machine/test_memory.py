"""Memory: what is free, and running out of it told in one line."""

import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from helpers import mesh_of

from jaxresnet.errors import UserError
from jaxresnet.machine import memory
from jaxresnet.machine.memory import check_memory, out_of_memory_told, require_address_space


def compiled(size: int) -> jax.stages.Compiled:
    """A step that holds size x size floats."""
    step = jax.jit(lambda x: jnp.sort(jnp.outer(x, x)).sum())
    return step.lower(jax.ShapeDtypeStruct((size,), jnp.float32)).compile()


def test_running_out_of_memory_is_told():
    huge = compiled(2_000_000)  # 16 TB
    with pytest.raises(
        UserError, match=r"needs \d{5,}\.\d GiB on 4 cpu devices, .*: lower batch_size to about"
    ) as caught:
        check_memory(10**9, mesh_of(4), huge)
    assert caught.value.exit_code == 1
    check_memory(4, mesh_of(4), compiled(20))
    with (
        pytest.raises(
            UserError, match=r"batch_size 8 on 4 cpu devices \(.*[Oo]ut of memory.*\): lower batch_size"
        ),
        out_of_memory_told(8, mesh_of(4)),
    ):
        jax.block_until_ready(huge(jnp.ones(2_000_000)))
    with pytest.raises(UserError, match="out of memory"), out_of_memory_told(8, mesh_of(1)):
        raise MemoryError


def test_other_errors_of_jax_are_left_alone():
    with pytest.raises(jax.errors.JaxRuntimeError), out_of_memory_told(8, mesh_of(1)):
        raise jax.errors.JaxRuntimeError("INTERNAL: else")


def test_where_it_is_not_known_what_is_free_nothing_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    check_memory(10**9, mesh_of(4), compiled(2_000_000))


def test_too_little_address_space_is_told_before_a_library_is_loaded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (3 * 2**30, resource.RLIM_INFINITY))
    require_address_space(3)
    with pytest.raises(UserError, match=r"at least 3.5 GiB of address space .* found 3.0 GiB \(ulimit -v\)"):
        require_address_space(3.5)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    require_address_space(3)


def test_free_memory_ends_where_the_process_is_limited():
    code = (
        "import resource\n"
        "from jaxresnet.machine.memory import free_bytes\n"
        "machine = free_bytes()\n"
        "pages = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages + 2**28, pages + 2**28))\n"
        "print(machine, free_bytes())\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    machine, limited = map(int, process.stdout.split())
    assert machine > limited
    assert 2**27 < limited <= 2**28  # less what Python itself has taken meanwhile
