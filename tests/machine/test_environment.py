"""What a start of a run is remembered by."""

import datetime
import json
import os
from pathlib import Path

import jax
import pytest
from helpers import ROOT, mesh_of

from jaxresnet.machine import environment
from jaxresnet.machine.environment import Start, describe_environment, peak_device_bytes
from jaxresnet.runs.files import parse_record, to_json


def test_the_environment_is_described_in_json_values(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAX_DEBUG_NANS", "1")
    start = describe_environment(mesh_of(4), "float32", ["python", "-m", "x", "a b"])
    assert parse_record(Start, json.dumps(to_json(start)), "here") == start
    assert start.command == "python -m x 'a b'"
    assert start.devices == ["cpu"] * 4
    assert (start.backend, start.precision) == ("cpu", "float32")
    assert start.jax_variables == {key: value for key, value in os.environ.items() if key[:4] == "JAX_"}
    assert start.jax_variables["JAX_DEBUG_NANS"] == "1"
    assert start.versions["jax"] == jax.__version__
    assert start.driver is None
    assert datetime.datetime.fromisoformat(start.started).tzinfo == datetime.UTC
    assert (start.git is not None) == (ROOT / ".git").exists()
    assert (start.compile_seconds, start.seconds, start.peak_device_bytes) == (None, None, None)


def test_variables_that_are_not_utf8_can_be_read_back(monkeypatch: pytest.MonkeyPatch):
    strange = os.fsdecode(b"caf\xe9")
    monkeypatch.setenv("JAX_NOTE", strange)
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to={strange}")
    start = describe_environment(mesh_of(1), "float32", ["python", strange])
    assert parse_record(Start, json.dumps(to_json(start)), "here") == start
    assert start.jax_variables["JAX_NOTE"] == r"caf\udce9"
    assert start.xla_flags == r"--xla_dump_to=caf\udce9"


def test_a_checkout_of_which_git_says_nothing_is_not_called_clean(monkeypatch: pytest.MonkeyPatch):
    answers: dict[str, str | None] = {"rev-parse": "0123", "status": None}
    monkeypatch.setattr(environment, "_output", lambda *command: answers.get(command[3]))
    for status, dirty in ((None, None), ("", False), (" M a.py", True)):
        answers["status"] = status
        assert environment._git() == {"commit": "0123", "dirty": dirty}


def test_a_cpu_counts_no_memory():
    assert peak_device_bytes(mesh_of(2)) is None


def test_what_tells_machines_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    text = """processor : 0
vendor_id : GenuineIntel
cpu family : 6
model : 207
model name : Some CPU
stepping : 2
physical id : 0
core id : {}
flags : fpu avx avx2 fma avx512f amx_tile"""
    (tmp_path / "cpuinfo").write_text("\n\n".join(text.format(core) for core in (0, 0, 1, 1)) + "\n")
    monkeypatch.setattr(environment, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(environment, "available_cores", lambda: 3)
    start = describe_environment(mesh_of(1), "float32", [])
    assert start.available_cores == 3
    assert (start.cpu, start.cpu_identity) == ("Some CPU", "GenuineIntel 6 207 2")
    assert start.cpu_flags == ["avx2", "fma", "avx512f", "amx_tile"]
    assert start.physical_cores == 2
    assert start.memory_bytes is not None
    assert start.memory_bytes > 2**28
    (tmp_path / "cpuinfo").unlink()
    elsewhere = describe_environment(mesh_of(1), "float32", [])
    assert (elsewhere.cpu_identity, elsewhere.cpu_flags, elsewhere.physical_cores) == (None, [], None)
