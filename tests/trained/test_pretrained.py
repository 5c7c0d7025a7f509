"""The weights that are shipped with the package predict what they predicted when they were made."""

from pathlib import Path

import numpy as np
import pytest
from helpers import mesh_of

from jaxresnet.config.schema import DataConfig
from jaxresnet.data.sources import open_source
from jaxresnet.data.splits import load_split
from jaxresnet.trained.load import TrainedNetwork, load_network
from jaxresnet.trained.shipped import shipped_weights

BATCH = 50

pytestmark = pytest.mark.parametrize("name", ["paper", "paper_best", "fast16", "best40"], scope="module")


@pytest.fixture(scope="module")
def network(name: str) -> TrainedNetwork:
    return load_network(name, mesh=mesh_of(2))


@pytest.fixture(scope="module")
def examples(name: str) -> dict[str, np.ndarray]:
    """What benchmarks/ship_weights.py stored."""
    return dict(np.load(shipped_weights()[name].with_suffix(".npz")))


def test_the_logits_of_drawn_images(network: TrainedNetwork, examples: dict[str, np.ndarray]):
    images, logits = examples["images"], examples["logits"]
    assert (images.shape, images.dtype, logits.shape) == ((8, 32, 32, 3), np.uint8, (8, 10))
    np.testing.assert_allclose(network.predict(images), logits, atol=1e-3 * np.abs(logits).max())


def test_the_classes_of_500_test_images(network: TrainedNetwork, examples: dict[str, np.ndarray]):
    source = open_source(DataConfig(name="cifar10"))
    if not source.at_hand:
        pytest.skip("CIFAR-10 is not prepared here")
    images = load_split(source, "test").images[examples["indices"]]
    found = np.concatenate([network.predict(batch) for batch in np.split(images, 500 // BATCH)]).argmax(1)
    # An image between two classes may fall to the other on another CPU.
    assert (found != examples["classes"]).sum() <= 1


def test_each_has_a_card(name: str):
    path: Path = shipped_weights()[name]
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert f'jaxresnet.load("{name}")' in card
    for word in ("## Accuracy", "| truck |", "## Training", "commit", "## Limits", "## Licence"):
        assert word in card
