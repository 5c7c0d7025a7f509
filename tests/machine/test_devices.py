"""The devices that a network is computed on."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from helpers import mesh_of

from jaxresnet.errors import UserError
from jaxresnet.machine import devices, environment
from jaxresnet.machine.devices import (
    automatic_cpu_devices,
    available_cores,
    check_batch_size,
    on_cpu,
    replicated,
    shard_batch,
    start_devices,
)


def test_the_mesh_holds_all_devices():
    mesh = start_devices("cpu", 2)  # the backend has started with four
    assert mesh.axis_names == ("data",)
    assert mesh.devices.tolist() == jax.devices()
    assert on_cpu(mesh)


def test_each_device_gets_an_equal_part_of_the_examples():
    mesh = mesh_of(4)
    numbers = np.arange(8, dtype=np.int32)
    batch: tuple[Any, Any] = (numbers, numbers[:, None])
    sharded, _ = shard_batch(mesh, batch)
    assert [np.asarray(shard.data).tolist() for shard in sharded.addressable_shards] == [
        [0, 1], [2, 3], [4, 5], [6, 7]
    ]  # fmt: skip
    np.testing.assert_array_equal(sharded, numbers)
    whole = jax.device_put(numbers, replicated(mesh))
    assert all(shard.data.shape == (8,) for shard in whole.addressable_shards)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_disable_jit", True),
        ("jax_default_prng_impl", "rbg"),
        ("jax_threefry_partitionable", False),
        ("jax_random_seed_offset", 1),
    ],
)
def test_another_arithmetic_is_refused(name: str, value: object):
    before = jax.config.values[name]
    jax.config.update(name, value)
    try:
        with pytest.raises(UserError) as caught:
            start_devices("cpu", 2)
    finally:
        jax.config.update(name, before)
    assert str(caught.value) == (
        f"{name.upper()}: expected {before}, found {value}; the results would be others: unset it"
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("batch_size", "count", "nearest"), [(30, 4, "28 and 32"), (3, 4, "4"), (125, 2, "124 and 126")]
)
def test_a_batch_that_does_not_divide(batch_size: int, count: int, nearest: str):
    with pytest.raises(UserError, match=f"found {batch_size}; the nearest is {nearest} ") as caught:
        check_batch_size(batch_size, count)
    assert caught.value.exit_code == 2
    check_batch_size(count * 3, count)


@pytest.mark.parametrize(
    ("cores", "batch_size", "expected"),
    [
        (4, 128, 4),
        (4, 6, 3),
        (4, 7, 1),
        (8, 2, 2),
        (1, 64, 1),
        (5, 64, 4),
        (3, 64, 2),
        (16, 1, 1),
        (6, 35, 5),
        (384, 768, 256),  # as many as the setting takes
    ],
)
def test_a_cpu_is_divided_by_its_cores_as_far_as_the_batch_is(
    monkeypatch: pytest.MonkeyPatch, cores: int, batch_size: int, expected: int
):
    monkeypatch.setattr(devices, "available_cores", lambda: cores)
    assert automatic_cpu_devices(batch_size) == expected
    check_batch_size(batch_size, expected)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000\n", 8), ("150000 100000\n", 2), ("50000 100000\n", 1), ("1600000 100000\n", 8), (None, 8)],
)
def test_cores_end_at_the_control_groups_share(
    monkeypatch: pytest.MonkeyPatch, quota: str | None, expected: int
):
    def read_text() -> str:
        if quota is None:
            raise FileNotFoundError
        return quota

    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(environment, "Path", lambda _: SimpleNamespace(read_text=read_text))
    assert available_cores() == expected
