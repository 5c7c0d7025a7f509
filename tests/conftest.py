"""Suite-wide switches, and the fixtures that several test modules share."""

import contextlib
import os
import resource
from collections.abc import Iterator

# Before JAX and TensorFlow are imported: four virtual devices in every test.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import hypothesis
import jax
import pytest
from jax.sharding import AxisType, Mesh

from jaxresnet.config import Config, DataConfig
from jaxresnet.data import Split, load_split
from jaxresnet.runtime import quiet_libraries, use_compilation_cache

quiet_libraries()
use_compilation_cache()
jax.config.update("jax_numpy_rank_promotion", "raise")
# The same examples each time, however long they take, so that a failure can be repeated.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, max_examples=30, database=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """A network with one block of each kind, on the digits."""
    return Config.model_validate(
        {
            "epochs": 2,
            "batch_size": 8,
            "model": {
                "stem_kernel": 3,
                "stem_channels": 4,
                "stage_blocks": (1, 1),
                "stage_channels": (4, 6),
                "stage_strides": (1, 2),
                "dropout_rate": 0.1,
            },
            "data": {"name": "digits"},
            "augment": {"horizontal_flip": False},
            "optimizer": {"schedule_epochs": 0},
        }
    )


@pytest.fixture(scope="session")
def digits() -> Split:
    """The first twenty training digits, two of each class."""
    split = load_split(DataConfig(name="digits"), "train")
    return Split(split.images[:20], split.labels[:20])


def mesh_of(devices: int) -> Mesh:
    """A mesh of the first `devices` virtual devices."""
    return jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond `size` bytes meanwhile, as a full disk would."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores the signal, the write fails
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
