"""Signals, devices, what a start is remembered by."""

import os
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest
from conftest import mesh_of

from jaxresnet import runtime
from jaxresnet.errors import Interrupted, UserError
from jaxresnet.runtime import (
    Background,
    StopSignal,
    check_batch_size,
    check_memory,
    describe_environment,
    start_devices,
    telling_of_memory,
)


def test_the_first_signal_is_noted_and_the_second_ends_the_process():
    code = (
        "import os, signal\n"
        "from jaxresnet.runtime import StopSignal\n"
        "with StopSignal() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('noted', stop.number, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('not reached', flush=True)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.stdout == "noted 2\n"
    assert process.returncode == -signal.SIGTERM


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert signal.getsignal(signal.SIGTERM) != before
        assert stop.number is None
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_is_heard_while_a_library_is_busy():
    release = threading.Event()
    with StopSignal() as stop:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        began = time.monotonic()
        with pytest.raises(Interrupted, match="interrupted while compiling: nothing new to save") as caught:
            stop.run(lambda: release.wait(30), "compiling")
        assert time.monotonic() - began < 5
    release.set()
    assert caught.value.exit_code == 143


def test_results_and_errors_come_through_the_thread():
    with StopSignal() as stop:
        assert stop.run(lambda: 7, "counting") == 7
        with pytest.raises(UserError, match="told"):
            stop.run(lambda: (_ for _ in ()).throw(UserError("told")), "failing")


def test_a_background_task_is_awaited_and_a_signal_leaves_it():
    release = threading.Event()
    task = Background(lambda: release.wait(30))
    assert not task.done(0.01)
    with StopSignal() as stop:
        stop.number = signal.SIGINT
        with pytest.raises(Interrupted, match="interrupted while waiting"):
            stop.wait(task, "waiting")
    release.set()
    assert task.result() is True
    assert task.done(0)


def test_the_mesh_holds_all_devices():
    mesh = start_devices("cpu", 2)  # the backend has started with four
    assert mesh.axis_names == ("data",)
    assert mesh.devices.tolist() == jax.devices()


@pytest.mark.parametrize(
    ("batch_size", "devices", "nearest"), [(30, 4, "28 and 32"), (3, 4, "4"), (125, 2, "124 and 126")]
)
def test_a_batch_that_does_not_divide(batch_size: int, devices: int, nearest: str):
    with pytest.raises(UserError, match=f"found {batch_size}; the nearest is {nearest} ") as caught:
        check_batch_size(batch_size, devices)
    assert caught.value.exit_code == 2
    check_batch_size(devices * 3, devices)


def test_an_unwritable_cache_folder_costs_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    before = jax.config.jax_compilation_cache_dir
    runtime.use_compilation_cache()
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert jax.config.jax_compilation_cache_dir == before


def test_a_torn_cache_entry_costs_one_line_and_is_replaced(tmp_path):
    code = (
        "import pathlib, sys, jax\n"
        "from jaxresnet.runtime import use_compilation_cache\n"
        "use_compilation_cache()\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "folder = pathlib.Path(jax.config.jax_compilation_cache_dir)\n"
        "def double(x): return x * 2\n"
        "for start in range(4):\n"
        "    jax.clear_caches()\n"
        "    print('start', start, float(jax.jit(double)(2.0)), file=sys.stderr)\n"
        "    (entry,) = folder.glob('jit_double-*')\n"
        "    print(entry.stat().st_size > 500)\n"
        "    if start == 1: entry.write_bytes(entry.read_bytes()[:200])\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    process = subprocess.run(
        [sys.executable, "-c", code],
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


def test_other_warnings_are_shown(monkeypatch):
    shown = []
    monkeypatch.setattr(runtime, "_showwarning", lambda message, *details: shown.append(str(message)))
    runtime._mend_compilation_cache(UserWarning("else"), UserWarning, "file", 1)
    assert shown == ["else"]


def test_running_out_of_memory_is_told():
    step = jax.jit(lambda x: jax.numpy.sort(jax.numpy.outer(x, x)).sum())
    huge = jax.ShapeDtypeStruct((2_000_000,), jax.numpy.float32)  # 16 TB
    compiled = step.lower(huge).compile()
    with pytest.raises(
        UserError, match=r"needs \d{5,}\.\d GiB on 4 cpu devices, .*: lower batch_size to about"
    ) as caught:
        check_memory(10**9, mesh_of(4), compiled)
    assert caught.value.exit_code == 1
    check_memory(4, mesh_of(4), step.lower(jax.ShapeDtypeStruct((20,), jax.numpy.float32)).compile())
    with (
        pytest.raises(
            UserError, match=r"batch_size 8 on 4 cpu devices \(.*[Oo]ut of memory.*\): lower batch_size"
        ),
        telling_of_memory(8, mesh_of(4)),
    ):
        jax.block_until_ready(compiled(jax.numpy.ones(2_000_000)))
    with pytest.raises(UserError, match="out of memory"), telling_of_memory(8, mesh_of(1)):
        raise MemoryError
    with pytest.raises(jax.errors.JaxRuntimeError), telling_of_memory(8, mesh_of(1)):
        raise jax.errors.JaxRuntimeError("INTERNAL: else")


def test_the_environment_is_described_in_json_values():
    import json

    entry = describe_environment(mesh_of(4), "float32", ["python", "-m", "x", "a b"])
    assert json.loads(json.dumps(entry)) == entry
    assert entry["command"] == "python -m x 'a b'"
    assert entry["devices"] == ["cpu"] * 4
    assert entry["versions"]["jax"] == jax.__version__
    assert entry["driver"] is None


def test_reading_a_configuration_loads_no_heavy_library():
    code = (
        "import sys, jaxresnet.config, jaxresnet.train, jaxresnet.evaluate, jaxresnet.summary\n"
        "print({'jax', 'tensorflow', 'flax', 'orbax', 'sklearn', 'numpy'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "set()\n"
