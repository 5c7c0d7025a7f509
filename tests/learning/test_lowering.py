"""What the steps are compiled from: nothing of a CPU's way reaches a GPU, and predicting exports for any batch size.

No GPU is needed for that: JAX lowers for a platform that is not there.
"""

from typing import Any

import jax
import numpy as np
import pytest
from helpers import initial_state, plan_of
from jax import export

from jaxresnet.config.schema import Config
from jaxresnet.data.batches import Batch
from jaxresnet.data.splits import Split
from jaxresnet.learning.learner import Learner, make_hyperparameters, make_learner
from jaxresnet.learning.state import state_template
from jaxresnet.learning.step import make_predict, make_train_step
from jaxresnet.machine.devices import local_mesh, replicated
from jaxresnet.network.blocks import Convolution
from jaxresnet.network.cpu_convolution import make_convolution
from jaxresnet.plan import Plan

CONVOLUTIONS = 26 + 26 + 25
"""Of the paper's network: 26 in its layers, a gradient of each kernel, and one of all inputs but the images."""


def train_step_for(platform: str, plan: Plan, convolution: Convolution | None = None) -> str:
    """The StableHLO of a whole train step; no array is made."""
    learner, size = make_learner(plan, convolution), plan.config.batch_size
    shapes = state_template(learner, replicated(local_mesh(jax.devices()[:1])))
    batch = Batch(
        image=jax.ShapeDtypeStruct((size, *plan.info.image_shape), "uint8"),
        label=jax.ShapeDtypeStruct((size,), "int32"),
        mask=jax.ShapeDtypeStruct((size,), "bool"),
    )
    traced = jax.jit(make_train_step(learner)).trace(make_hyperparameters(plan), shapes, batch)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_runs_of_other_seeds_rates_and_lengths_share_one_program(tiny_config: Config):
    """What follows from these settings are inputs. So the compilation cache serves the other runs of a sweep."""
    others: list[dict[str, Any]] = [
        {"seed": 7},
        {"optimizer.learning_rate": 0.2},
        {"optimizer.momentum": 0.5},
        {"optimizer.weight_decay": 0.0},
        {"epochs": 9},
        {"optimizer.schedule_epochs": 200},
        {"optimizer.schedule": "constant"},
        {"init": "runs/other"},
    ]
    program = train_step_for("cpu", plan_of(tiny_config))
    for settings in others:
        assert train_step_for("cpu", plan_of(tiny_config, settings)) == program, settings
    assert train_step_for("cpu", plan_of(tiny_config, {"optimizer.decoupled": False})) != program


def counts(text: str) -> tuple[int, int]:
    """Convolutions and loops."""
    return text.count("stablehlo.convolution"), text.count("stablehlo.while")


def test_the_papers_train_step_lowers_for_cuda_with_every_convolution():
    assert counts(train_step_for("cuda", plan_of()))[0] == CONVOLUTIONS


@pytest.mark.parametrize(
    ("frozen", "convolutions"),
    [
        (0, 6 + 6 + 5),  # the layers, a gradient of each kernel, one of all inputs but the images
        (1, 6 + 3 + 1),  # two of the three that are trained are at the border
        (2, 6),
    ],
)
def test_no_gradient_is_computed_of_what_is_frozen(tiny_config: Config, frozen: int, convolutions: int):
    plan = plan_of(tiny_config, {"init": "a", "freeze_stages": frozen})
    assert counts(train_step_for("cuda", plan))[0] == convolutions


def test_only_a_learner_for_a_cpu_has_loops():
    """Without dropout, whose random numbers some platforms draw in a loop."""
    plan = plan_of(settings={"model.dropout_rate": 0.0})
    assert counts(train_step_for("cuda", plan)) == (CONVOLUTIONS, 0)
    convolutions, loops = counts(train_step_for("cpu", plan, make_convolution(1)))
    assert 0 < convolutions < CONVOLUTIONS
    assert loops > CONVOLUTIONS // 2


@pytest.fixture(scope="module")
def exported(tiny_learner: Learner) -> export.Exported:
    """The prediction for a CPU and a GPU, with the batch size left open; through bytes, as one would store it."""
    info = tiny_learner.plan.info
    (size,) = export.symbolic_shape("size")
    variables = state_template(tiny_learner).variables
    images = jax.ShapeDtypeStruct((size, *info.image_shape), "uint8")
    predict = jax.jit(make_predict(tiny_learner.model, info))
    stored = export.export(predict, platforms=["cpu", "cuda"])(variables, images).serialize()
    return export.deserialize(stored)


def test_the_exported_prediction_takes_any_batch_size(
    exported: export.Exported, tiny_learner: Learner, digits: Split
):
    assert exported.platforms == ("cpu", "cuda")
    variables = initial_state(tiny_learner).variables
    expected = jax.jit(make_predict(tiny_learner.model, tiny_learner.plan.info))(variables, digits.images[:7])
    for size in (7, 3):
        logits = jax.jit(exported.call)(variables, digits.images[:size])
        assert logits.shape == (size, 10)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected[:size], rtol=1e-5, atol=1e-6)
