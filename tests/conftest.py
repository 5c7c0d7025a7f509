"""Suite-wide switches, and the fixtures that several test modules share."""

# ruff: noqa: E402 - the environment is set before JAX and TensorFlow are imported

import os
import signal
from pathlib import Path

if hasattr(signal, "SIGHUP"):  # nohup, under which the suite may run, would have every command ignore it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Before JAX and TensorFlow are imported: four virtual devices in every test.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

from jaxresnet.machine.workarounds import own_process

own_process()

import hypothesis
import jax
import pytest

from jaxresnet.config.schema import Config, DataConfig
from jaxresnet.data.sources import open_source
from jaxresnet.data.splits import Split, load_split
from jaxresnet.fit import fit
from jaxresnet.learning.learner import Learner, make_learner
from jaxresnet.machine.cache import use_compilation_cache
from jaxresnet.plan import Plan

from helpers import TINY_SETTINGS, plan_of  # isort: skip

use_compilation_cache()
# Many tests compile the same small programs anew.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_numpy_rank_promotion", "raise")
# The same examples each time, however long they take, so that a failure can be repeated.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, max_examples=30, database=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """A network with one block of each kind, on the digits."""
    return Config().replace(TINY_SETTINGS)


@pytest.fixture(scope="session")
def tiny_plan(tiny_config: Config) -> Plan:
    return plan_of(tiny_config)


@pytest.fixture(scope="session")
def tiny_learner(tiny_plan: Plan) -> Learner:
    return make_learner(tiny_plan)


@pytest.fixture(scope="session")
def digits() -> Split:
    """The first twenty training digits, two of each class."""
    split = load_split(open_source(DataConfig(name="digits")), "train")
    return Split(split.images[:20], split.labels[:20])


@pytest.fixture(scope="session")
def short_config(tiny_config: Config) -> Config:
    """Two epochs of 12 steps."""
    return tiny_config.replace({"batch_size": 120})


@pytest.fixture(scope="session")
def finished(short_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of an uninterrupted run of `short_config`; only to be read."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    fit(short_config, workdir)
    return workdir
