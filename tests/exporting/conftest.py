"""Networks to export: small, with every kind of block and random numbers in every array."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from helpers import TINY_SETTINGS, mesh_of

from jaxresnet.config.schema import Config
from jaxresnet.data.sources.digits import INFO
from jaxresnet.exporting.origin import Origin
from jaxresnet.exporting.request import Request
from jaxresnet.learning.learner import make_learner
from jaxresnet.learning.state import state_template
from jaxresnet.plan import resolve
from jaxresnet.trained.load import TrainedNetwork

MakeRequest = Callable[..., Request]


@pytest.fixture(scope="session")
def make_request() -> MakeRequest:
    def make(settings: dict[str, Any] | None = None, *, grey: bool = False, **options: Any) -> Request:
        """A request to export a network with these settings, for 8 x 8 images in colour or grey, of other data."""
        channels = 1 if grey else 3
        info = dataclasses.replace(
            INFO,
            name="others",
            image_shape=(8, 8, channels),
            class_names=tuple("abcdefghij"),
            mean=(0.5, 0.25, 0.125)[:channels],
            std=(0.25, 0.5, 0.125)[:channels],
        )
        fitting = {"augment.crop_padding": 0, "data.dir": "/data"}
        plan = resolve(Config().replace(TINY_SETTINGS | fitting | (settings or {})), info)
        random = np.random.default_rng(0)
        template = state_template(make_learner(plan)).variables
        variables = jax.tree.map(lambda leaf: random.normal(0, 0.5, leaf.shape).astype(np.float32), template)
        stats = jax.tree.map(lambda leaf: np.abs(leaf) + np.float32(0.1), variables["batch_stats"])
        variables = {"params": variables["params"], "batch_stats": stats}
        network = TrainedNetwork(plan, variables, mesh_of(1), "latest", 7, None)
        return Request(network, options.pop("origin", Origin()), **options)

    return make


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """Five images in colour."""
    return np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), np.uint8)
