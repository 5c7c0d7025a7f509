"""Three steps of PyTorch's, stored: the network and SGD with coupled decay follow them, without PyTorch installed."""

from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import initial_state, jitted_train_step, plan_of
from numpy.lib.npyio import NpzFile

from jaxresnet.data.batches import Batch
from jaxresnet.learning.learner import make_learner
from jaxresnet.learning.metrics import Metrics
from jaxresnet.learning.state import TrainState
from jaxresnet.learning.step import make_predict
from jaxresnet.trained.weights import from_state_dict, to_state_dict

PLAN = plan_of(
    settings={
        "batch_size": 8,
        "model.stem_channels": 4,
        "model.stage_blocks": (1, 1),
        "model.stage_channels": (4, 6),
        "model.stage_strides": (1, 2),
        "model.dropout_rate": 0.0,
        "data.name": "digits",
        "optimizer.weight_decay": 0.02,
        "optimizer.decoupled": False,
        "optimizer.schedule": "constant",
    }
)


@pytest.fixture(scope="module")
def golden() -> NpzFile:
    return np.load(Path(__file__).parent / "golden_vectors.npz")


def state_dict(golden: NpzFile, prefix: str) -> dict[str, np.ndarray]:
    return {name.split("/")[1]: golden[name] for name in golden.files if name.startswith(f"{prefix}/")}


@pytest.fixture(scope="module")
def trained(golden: NpzFile) -> list[tuple[TrainState, float]]:
    """State and mean loss after each step."""
    learner = make_learner(PLAN)
    state = initial_state(learner).replace(**from_state_dict(PLAN, state_dict(golden, "initial")))
    step, path = jitted_train_step(learner), []
    for images, labels in zip(golden["images"], golden["labels"], strict=True):
        batch = Batch(images, labels, np.ones(8, bool))
        state, metrics = step(state.replace(metrics=Metrics.empty(10)), batch)
        path.append((state, metrics.loss))
    return path


def test_logits(golden: NpzFile):
    variables = from_state_dict(PLAN, state_dict(golden, "initial"))
    logits = jax.jit(make_predict(make_learner(PLAN).model, PLAN.info))(variables, golden["images"][0])
    np.testing.assert_allclose(logits, golden["eval_logits"], rtol=1e-5, atol=1e-5)


def test_losses_and_weights(golden: NpzFile, trained: list[tuple[TrainState, float]]):
    """Float32 here ends 2e-7 from the stored float64; a wrong epsilon, momentum or order is 1e-3 away."""
    np.testing.assert_allclose([loss for _, loss in trained], golden["losses"], rtol=1e-5)
    for k in (1, 3):
        found = to_state_dict(trained[k - 1][0].variables)
        for name, expected in state_dict(golden, f"step{k}").items():
            if not name.endswith("running_var"):
                np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_running_variance_is_the_biased_one(golden: NpzFile, trained: list[tuple[TrainState, float]]):
    """PyTorch's is n / (n - 1) times as large, for the n values of a channel in the batch."""
    before, after = state_dict(golden, "initial"), state_dict(golden, "step1")
    found = to_state_dict(trained[0][0].variables)
    for name in (name for name in before if name.endswith("running_var")):
        n = 8 * (16 * 16 if name.startswith("layer2") else 32 * 32)
        unbiased = (after[name] - 0.9 * before[name]) / 0.1
        expected = 0.9 * before[name] + 0.1 * unbiased * (n - 1) / n
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, err_msg=name)
