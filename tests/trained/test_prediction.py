"""Many pictures are predicted in order, with one program and little memory, whatever some of them are."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from helpers import initial_state, mesh_of

from jaxresnet.errors import UserError
from jaxresnet.learning.learner import Learner
from jaxresnet.machine.devices import replicated
from jaxresnet.trained.load import TrainedNetwork
from jaxresnet.trained.prediction import AHEAD, predict_files

BATCH = 4


@pytest.fixture(scope="module")
def network(tiny_learner: Learner) -> TrainedNetwork:
    mesh = mesh_of(2)
    variables = initial_state(tiny_learner, replicated(mesh)).variables
    return TrainedNetwork(tiny_learner.plan, variables, mesh, "latest", 0, None)


def image_of(network: TrainedNetwork, name: str) -> np.ndarray:
    """An image of its own for each name."""
    return np.random.default_rng(int(name)).integers(0, 256, network.info.image_shape, np.uint8)


def names_of(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def test_each_is_as_if_it_were_alone_and_there_is_one_program(network: TrainedNetwork):
    def read(name: str) -> np.ndarray:
        time.sleep(0.01 if name in ("0", "5") else 0)  # the next are read before these
        return image_of(network, name)

    found = list(predict_files(network, names_of(11), read, BATCH, threads=3))
    assert [name for name, _ in found] == names_of(11)
    assert network._jitted._cache_size() == 1
    for name, probabilities in found:
        alone = network.probabilities(image_of(network, name)[None])[0]
        np.testing.assert_allclose(np.asarray(probabilities), alone, rtol=1e-5)


def test_a_bad_one_is_told_in_its_place(network: TrainedNetwork):
    def read(name: str) -> np.ndarray:
        if int(name) in (1, 4, 5, 6, 7):  # one of the first batch, the whole second one
            raise UserError(f"{name}: bad")
        return image_of(network, name)

    found = dict(predict_files(network, names_of(9), read, BATCH, threads=2))
    assert list(found) == names_of(9)
    assert [name for name, result in found.items() if isinstance(result, UserError)] == list("14567")
    assert str(found["4"]) == "4: bad"
    expected = network.probabilities(np.stack([image_of(network, name) for name in "0238"]))
    np.testing.assert_allclose(np.stack([np.asarray(found[name]) for name in "0238"]), expected, rtol=1e-5)


def test_only_a_few_batches_are_read_ahead_of_endlessly_many(network: TrainedNetwork):
    asked = 0

    def names() -> Iterator[str]:
        nonlocal asked
        while True:
            asked += 1
            yield "0"

    predictions = predict_files(network, names(), lambda name: image_of(network, name), BATCH, threads=2)
    for _ in range(5):
        next(predictions)
    assert asked <= (2 + AHEAD) * BATCH
    predictions.close()  # pyright: ignore[reportAttributeAccessIssue]
    time.sleep(0.05)
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_probabilities_that_are_not_finite_are_an_error(
    network: TrainedNetwork, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        TrainedNetwork, "probabilities", lambda _, images: np.full((len(images), 10), np.nan, np.float32)
    )
    [(_, result)] = predict_files(network, ["0"], lambda name: image_of(network, name), BATCH, threads=1)
    assert str(result).startswith("0: expected finite probabilities")
