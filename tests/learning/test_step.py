"""The train and evaluation steps."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import initial_state, jitted_train_step, mesh_of, plan_of

from jaxresnet.config.schema import Config
from jaxresnet.data.batches import Batch
from jaxresnet.data.sources.cifar10 import INFO
from jaxresnet.data.splits import Split
from jaxresnet.learning.learner import Learner, make_hyperparameters, make_learner
from jaxresnet.learning.losses import mse
from jaxresnet.learning.metrics import Metrics
from jaxresnet.learning.state import TrainState, state_template
from jaxresnet.learning.step import (
    VIEW_WEIGHTS,
    Views,
    make_eval_step,
    make_predict,
    make_train_step,
    preprocess,
    views_of,
)
from jaxresnet.machine.devices import replicated, shard_batch


def batch_of(split: Split, size: int = 8) -> Batch:
    return Batch(split.images[:size], split.labels[:size], np.ones(size, bool))


def train(learner: Learner, split: Split, devices: int, steps: int) -> TrainState:
    mesh = mesh_of(devices)
    state = initial_state(learner, replicated(mesh))
    step = jitted_train_step(learner, replicated(mesh), donate=True)
    for k in range(steps):
        rows = np.arange(k, k + 8) % len(split.labels)
        batch = Batch(split.images[rows], split.labels[rows], np.ones(8, bool))
        state, _ = step(state, shard_batch(mesh, batch))
    return jax.device_get(state)


def test_preprocess_normalises_per_channel():
    images = np.zeros((1, 32, 32, 3), np.uint8)
    images[0, 0, 0] = [255, 51, 0]
    found = np.asarray(preprocess(INFO, images))[0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[1, 1], [-0.4914 / 0.2470, -0.4822 / 0.2435, -0.4465 / 0.2616], rtol=1e-5)
    np.testing.assert_allclose(found[0, 0, :2], [(1 - 0.4914) / 0.2470, (0.2 - 0.4822) / 0.2435], rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int8, bool])
def test_images_of_another_dtype_are_refused(tiny_learner: Learner, dtype: type):
    images = np.zeros((2, 32, 32, 3), dtype)
    with pytest.raises(TypeError, match=f"expected uint8 images, found {np.dtype(dtype)}"):
        preprocess(INFO, images)
    variables = state_template(tiny_learner).variables
    with pytest.raises(TypeError, match="expected uint8 images"):
        jax.eval_shape(make_predict(tiny_learner.model, INFO), variables, images)


@pytest.mark.parametrize(
    "shape", [(2, 28, 32, 3), (2, 32, 28, 3), (2, 32, 32, 1), (32, 32, 3), (2, 3, 32, 32)]
)
def test_images_of_another_size_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"expected images \[B, 32x32x3\] as of cifar10, found \[") as caught:
        preprocess(INFO, np.zeros(shape, np.uint8))
    assert str(list(shape)) in str(caught.value)


def test_images_of_a_schedules_sizes_are_taken_and_no_others():
    sizes = [(16, 16), (32, 32)]
    assert preprocess(INFO, np.zeros((1, 16, 16, 3), np.uint8), sizes).shape == (1, 16, 16, 3)
    with pytest.raises(ValueError, match=r"16x16x3 or 32x32x3\] as of cifar10, found \[1, 24, 24, 3"):
        preprocess(INFO, np.zeros((1, 24, 24, 3), np.uint8), sizes)


def test_another_data_sets_images_are_normalised_with_its_own_numbers():
    grey = dataclasses.replace(INFO, image_shape=(2, 1, 1), mean=(0.5,), std=(0.25,))
    found = preprocess(grey, np.array([[[[255]], [[0]]]], np.uint8))
    np.testing.assert_allclose(found, [[[[2.0]], [[-2.0]]]])


BAD_BATCHES: dict[str, dict[str, Any]] = {
    "one label for all": {"label": np.zeros(1, np.int32)},
    "labels in a column": {"label": np.zeros((8, 1), np.int32)},
    "targets for labels": {"label": np.zeros((8, 10), np.int32)},
    "labels of another dtype": {"label": np.zeros(8, np.float32)},
    "one mask for all": {"mask": np.ones(1, bool)},
    "a mask of numbers": {"mask": np.ones(8, np.float32)},
}


@pytest.mark.parametrize("problem", BAD_BATCHES)
def test_labels_and_masks_that_would_be_broadcast_are_refused_when_tracing(
    tiny_learner: Learner, digits: Split, problem: str
):
    state, batch = state_template(tiny_learner), batch_of(digits)
    train_step = partial(make_train_step(tiny_learner), make_hyperparameters(tiny_learner.plan))
    eval_step = make_eval_step(tiny_learner.model, tiny_learner.plan.info, tiny_learner.loss)
    jax.eval_shape(train_step, state, batch)
    jax.eval_shape(eval_step, state.variables, state.metrics, batch)
    wrong = batch._replace(**BAD_BATCHES[problem])
    with pytest.raises(AssertionError):
        jax.eval_shape(train_step, state, wrong)
    with pytest.raises(AssertionError):
        jax.eval_shape(eval_step, state.variables, state.metrics, wrong)


def test_four_devices_train_like_one(tiny_learner: Learner, digits: Split):
    """BatchNorm over the whole batch and dropout included. 3e-5 is what float32 sums in another order leave."""
    one, four = (train(tiny_learner, digits, devices, 5) for devices in (1, 4))
    for (path, expected), found in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(four), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=3e-5, err_msg=jax.tree_util.keystr(path))
    assert int(four.step) == 5
    assert four.metrics.count == 40


def test_batch_norm_uses_the_whole_batch_of_all_devices(tiny_learner: Learner, digits: Split):
    state = train(tiny_learner, digits, 4, 1)
    params = initial_state(tiny_learner).params
    images = preprocess(tiny_learner.plan.info, batch_of(digits).image)
    stem = tiny_learner.model.layers.conv(3, 4, 3, 1, "stem_conv")
    conv = stem.apply({"params": params["stem_conv"]}, images)
    expected = 0.1 * np.asarray(conv).mean((0, 1, 2))
    np.testing.assert_allclose(state.batch_stats["stem_norm"]["mean"], expected, rtol=1e-4, atol=1e-6)


def test_the_step_descends_its_own_gradient(tiny_config: Config, digits: Split):
    """One step without momentum or decay is theta - lr * gradient of the mean cross-entropy."""
    settings = {
        "optimizer.learning_rate": 0.1,
        "optimizer.momentum": 0.0,
        "optimizer.weight_decay": 0.0,
        "optimizer.schedule": "constant",
        "model.dropout_rate": 0.0,
    }
    learner = make_learner(plan_of(tiny_config, settings))
    init, batch = initial_state(learner), batch_of(digits)

    def loss(params: dict) -> jax.Array:
        logits, _ = learner.model.apply(
            {"params": params, "batch_stats": init.batch_stats},
            preprocess(learner.plan.info, batch.image),
            train=True,
            mutable=["batch_stats"],
        )
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(8), batch.label])

    value, gradient = jax.jit(jax.value_and_grad(loss))(init.params)
    state, metrics = jitted_train_step(learner)(init, batch)
    expected = jax.tree.map(lambda theta, g: theta - 0.1 * g, init.params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state.params, expected)
    assert metrics.loss == pytest.approx(float(value), rel=1e-5)
    assert metrics.count == 8


@pytest.mark.parametrize("precision", ["float32", "tensorfloat32", "bfloat16"])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_training_learns_the_batch_by_heart(tiny_config: Config, digits: Split, precision: str, loss: str):
    rate = 0.05 if loss == "cross_entropy" else 2.0
    # The cosine of the paper, which hardly falls in so few steps.
    settings = {"optimizer.learning_rate": rate, "optimizer.schedule_epochs": 200, "model.dropout_rate": 0.0}
    learner = make_learner(plan_of(tiny_config, settings | {"precision": precision, "loss": loss}))
    step, state = jitted_train_step(learner), initial_state(learner)
    losses = []
    for _ in range(60):
        state, metrics = step(state.replace(metrics=Metrics.empty(10)), batch_of(digits))
        losses.append(metrics.loss)
    assert losses[-1] < 0.7 * losses[0]
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.batch_stats))} == {
        jnp.dtype("float32")
    }


def test_dropout_depends_on_seed_and_step_alone(tiny_learner: Learner, digits: Split):
    step, batch = jitted_train_step(tiny_learner), batch_of(digits)
    state = initial_state(tiny_learner)
    again, other = step(state, batch)[1], step(state.replace(step=jnp.int32(1)), batch)[1]
    assert step(state, batch)[1].loss == again.loss
    assert step(state, batch)[1].loss != other.loss
    seeded = jitted_train_step(make_learner(plan_of(tiny_learner.plan.config, {"seed": 1})))
    assert seeded(state, batch)[1].loss != again.loss


def test_the_step_is_traced_once_and_counts(tiny_learner: Learner, digits: Split):
    traces, hyperparameters = 0, make_hyperparameters(tiny_learner.plan)
    train_step = make_train_step(tiny_learner)

    def counting(state: TrainState, batch: Batch):
        nonlocal traces
        traces += 1
        return train_step(hyperparameters, state, batch)

    step, state = jax.jit(counting, donate_argnums=0), initial_state(tiny_learner)
    for k in range(3):
        previous = state
        state, metrics = step(state, batch_of(digits))
        assert int(state.step) == k + 1
        assert jax.tree.leaves(previous.params)[0].is_deleted()
        assert metrics.count == 8 * (k + 1)  # readable, though the state they were part of is donated next
    assert traces == 1


def test_the_first_step_that_is_not_finite_is_noted(tiny_learner: Learner, digits: Split):
    step, state, batch = jitted_train_step(tiny_learner), initial_state(tiny_learner), batch_of(digits)
    state, metrics = step(state, batch)
    assert int(metrics.nonfinite_step) == 0
    poisoned = state.params["head"]["bias"].at[0].set(jnp.inf)
    state = state.replace(params=state.params | {"head": state.params["head"] | {"bias": poisoned}})
    for _ in range(3):
        state, metrics = step(state, batch)
    assert int(metrics.nonfinite_step) == 2


def test_the_step_learns_from_mixed_and_smooth_targets_and_averages_the_weights(
    tiny_config: Config, digits: Split
):
    """Its loss is that of the targets by hand; the accuracy counts the label of the larger share."""
    settings = {"label_smoothing": 0.1, "model.dropout_rate": 0.0, "optimizer.ema_decay": 0.9}
    learner, plain = make_learner(plan_of(tiny_config, settings)), batch_of(digits)
    share = np.linspace(0.2, 1, 8, dtype=np.float32)
    batch = plain._replace(other=np.roll(plain.label, 1), share=share)
    step, init = jitted_train_step(learner), initial_state(learner)
    jax.tree.map(np.testing.assert_array_equal, init.average, init.variables)
    state, metrics = step(init, batch)

    logits: Any = learner.model.apply(
        init.variables, preprocess(learner.plan.info, batch.image), train=True, mutable=["batch_stats"]
    )[0]
    targets = share[:, None] * np.eye(10)[plain.label] + (1 - share[:, None]) * np.eye(10)[batch.other]
    expected = -((0.9 * targets + 0.01) * np.asarray(jax.nn.log_softmax(logits))).sum(1)
    assert metrics.loss == pytest.approx(expected.mean(), rel=1e-5)
    larger = np.where(share < 0.5, batch.other, plain.label)
    assert (larger != plain.label).any()
    assert metrics.accuracy == (np.asarray(logits).argmax(1) == larger).mean()

    average = init.variables
    for k in (1, 2):
        average = jax.tree.map(
            lambda old, new, d=(1 + k) / (10 + k): d * old + (1 - d) * new, average, state.variables
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.average, average
        )
        state, _ = step(state, batch)


def test_views_are_mirrors_and_shifts():
    images = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    own, mirror = views_of(jnp.asarray(images), "flip")
    np.testing.assert_array_equal(own, images)
    np.testing.assert_array_equal(mirror, images[:, :, ::-1])
    six = views_of(jnp.asarray(images), "six")
    assert len(six) == 6
    np.testing.assert_array_equal(six[2][:, :-1, :-1], images[:, 1:, 1:])  # up and to the left
    np.testing.assert_array_equal(six[2][:, -1, :-1], images[:, -2, 1:])  # its border is reflected
    np.testing.assert_array_equal(six[4][:, 1:, 1:], images[:, :-1, :-1])
    np.testing.assert_array_equal(six[5], np.asarray(six[4])[:, :, ::-1])
    assert {kind: sum(weights) for kind, weights in VIEW_WEIGHTS.items()} == {"flip": 1, "six": 1}


@pytest.mark.parametrize("views", ["flip", "six"])
def test_logits_of_views_are_their_weighted_mean(tiny_learner: Learner, digits: Split, views: Views):
    model, info, images = tiny_learner.model, tiny_learner.plan.info, batch_of(digits).image
    variables = initial_state(tiny_learner).variables
    found = jax.jit(make_predict(model, info, views))(variables, images)
    each = [model.apply(variables, view, train=False) for view in views_of(preprocess(info, images), views)]
    expected = sum(w * np.asarray(logits) for w, logits in zip(VIEW_WEIGHTS[views], each, strict=True))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_evaluation_predicts_with_the_running_statistics(tiny_learner: Learner, digits: Split):
    model, info = tiny_learner.model, tiny_learner.plan.info
    state, batch, predict = train(tiny_learner, digits, 1, 2), batch_of(digits), make_predict(model, info)
    logits = predict(state.variables, batch.image)
    assert (logits.shape, logits.dtype) == ((8, 10), jnp.float32)
    alone = predict(state.variables, batch.image[:1])
    np.testing.assert_allclose(alone, logits[:1], rtol=1e-4, atol=1e-5)
    expected = model.apply(state.variables, preprocess(info, batch.image), train=False)
    np.testing.assert_array_equal(np.asarray(logits), np.asarray(expected))
    metrics = make_eval_step(model, info, tiny_learner.loss)(state.variables, Metrics.empty(10), batch)
    assert metrics.accuracy == (np.asarray(logits).argmax(1) == batch.label).mean()
    by_mse = make_eval_step(model, info, mse)(state.variables, Metrics.empty(10), batch)
    assert by_mse.loss == pytest.approx(float(mse(logits, jnp.eye(10)[batch.label]).mean()), rel=1e-5)
    np.testing.assert_array_equal(by_mse.confusion, metrics.confusion)
