"""What a start of a run is remembered by."""

import datetime
import json

import jax
from helpers import ROOT, mesh_of

from jaxresnet.machine.environment import Start, describe_environment, peak_device_bytes
from jaxresnet.runs.files import parse_record, to_json


def test_the_environment_is_described_in_json_values():
    start = describe_environment(mesh_of(4), "float32", ["python", "-m", "x", "a b"])
    assert parse_record(Start, json.dumps(to_json(start)), "here") == start
    assert start.command == "python -m x 'a b'"
    assert start.devices == ["cpu"] * 4
    assert (start.backend, start.precision) == ("cpu", "float32")
    assert start.versions["jax"] == jax.__version__
    assert start.driver is None
    assert datetime.datetime.fromisoformat(start.started).tzinfo == datetime.UTC
    assert (start.git is not None) == (ROOT / ".git").exists()
    assert (start.compile_seconds, start.seconds, start.peak_device_bytes) == (None, None, None)


def test_a_cpu_counts_no_memory():
    assert peak_device_bytes(mesh_of(2)) is None
