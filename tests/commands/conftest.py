"""A tiny configuration for the commands, as a file."""

from pathlib import Path

import pytest
from helpers import TINY_SETTINGS

from jaxresnet.config.files import dump_config
from jaxresnet.config.schema import Config


@pytest.fixture(scope="session")
def tiny_toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs of 45 steps on four devices."""
    settings = {"epochs": 3, "batch_size": 32, "cpu_devices": 4, "optimizer.schedule_epochs": 200}
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(dump_config(Config().replace(TINY_SETTINGS | settings)))
    return path
