"""The train and evaluation steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mesh_of

from jaxresnet.batch import Batch
from jaxresnet.config import Config
from jaxresnet.data import Split
from jaxresnet.metrics import Metrics
from jaxresnet.model import build_model
from jaxresnet.runtime import replicated, shard_batch
from jaxresnet.step import TrainState, make_eval_step, make_init, make_predict, make_train_step, preprocess


def batch_of(split: Split, size: int = 8) -> Batch:
    return Batch(split.images[:size], split.labels[:size], np.ones(size, bool))


def train(config: Config, split: Split, devices: int, steps: int) -> TrainState:
    mesh = mesh_of(devices)
    state = jax.jit(make_init(config), out_shardings=replicated(mesh))()
    step = jax.jit(make_train_step(config), donate_argnums=0, out_shardings=replicated(mesh))
    for k in range(steps):
        rows = np.arange(k, k + 8) % len(split.labels)
        batch = Batch(split.images[rows], split.labels[rows], np.ones(8, bool))
        state, _ = step(state, shard_batch(mesh, batch))
    return jax.device_get(state)


def test_preprocess_normalises_per_channel():
    config = Config()
    images = np.zeros((1, 32, 32, 3), np.uint8)
    images[0, 0, 0] = [255, 51, 0]
    found = np.asarray(preprocess(config, images))[0]
    np.testing.assert_allclose(found[1, 1], [-0.4914 / 0.2470, -0.4822 / 0.2435, -0.4465 / 0.2616], rtol=1e-5)
    np.testing.assert_allclose(found[0, 0, :2], [(1 - 0.4914) / 0.2470, (0.2 - 0.4822) / 0.2435], rtol=1e-5)


def test_four_devices_train_like_one(tiny_config: Config, digits: Split):
    """BatchNorm over the whole batch and dropout included. 3e-5 is what float32 sums in another order leave."""
    one, four = (train(tiny_config, digits, devices, 5) for devices in (1, 4))
    for (path, expected), found in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(four), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=3e-5, err_msg=jax.tree_util.keystr(path))
    assert int(four.step) == 5
    assert four.metrics.count == 40


def test_batch_norm_uses_the_whole_batch_of_all_devices(tiny_config: Config, digits: Split):
    state = train(tiny_config, digits, 4, 1)
    model, params = build_model(tiny_config), jax.jit(make_init(tiny_config))().params
    batch = batch_of(digits)
    stem = model.bind({"params": params})
    images = preprocess(tiny_config, batch.image)
    conv = stem.layers.conv(3, 4, 3, 1, "stem_conv").apply({"params": params["stem_conv"]}, images)
    expected = 0.1 * np.asarray(conv).mean((0, 1, 2))
    np.testing.assert_allclose(state.batch_stats["stem_norm"]["mean"], expected, rtol=1e-4, atol=1e-6)


def test_the_step_descends_its_own_gradient(tiny_config: Config, digits: Split):
    """One step without momentum or decay is theta - lr * gradient of the mean cross-entropy."""
    optimizer = {"learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    config = Config.model_validate(
        tiny_config.model_dump()
        | {"optimizer": optimizer, "model": tiny_config.model.model_dump() | {"dropout_rate": 0.0}}
    )
    init, batch, model = jax.jit(make_init(config))(), batch_of(digits), build_model(config)

    def loss(params: dict) -> jax.Array:
        logits, _ = model.apply(
            {"params": params, "batch_stats": init.batch_stats},
            preprocess(config, batch.image),
            train=True,
            mutable=["batch_stats"],
        )
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(8), batch.label])

    value, gradient = jax.jit(jax.value_and_grad(loss))(init.params)
    state, metrics = jax.jit(make_train_step(config))(init, batch)
    expected = jax.tree.map(lambda theta, g: theta - 0.1 * g, init.params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state.params, expected)
    assert metrics.loss == pytest.approx(float(value), rel=1e-5)
    assert metrics.count == 8


@pytest.mark.parametrize("precision", ["float32", "tensorfloat32", "bfloat16"])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_training_learns_the_batch_by_heart(tiny_config: Config, digits: Split, precision: str, loss: str):
    rate = 0.05 if loss == "cross_entropy" else 2.0
    config = Config.model_validate(
        tiny_config.model_dump()
        | {"precision": precision, "loss": loss, "optimizer": {"learning_rate": rate}}
        | {"model": tiny_config.model.model_dump() | {"dropout_rate": 0.0}}
    )
    step, state = jax.jit(make_train_step(config)), jax.jit(make_init(config))()
    losses = []
    for _ in range(60):
        state, metrics = step(state.replace(metrics=Metrics.empty(10)), batch_of(digits))
        losses.append(metrics.loss)
    assert losses[-1] < 0.7 * losses[0]
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.batch_stats))} == {
        jnp.dtype("float32")
    }


def test_dropout_depends_on_seed_and_step_alone(tiny_config: Config, digits: Split):
    step, batch = jax.jit(make_train_step(tiny_config)), batch_of(digits)
    state = jax.jit(make_init(tiny_config))()
    again, other = step(state, batch)[1], step(state.replace(step=jnp.int32(1)), batch)[1]
    assert step(state, batch)[1].loss == again.loss
    assert step(state, batch)[1].loss != other.loss


def test_the_step_is_traced_once_and_counts(tiny_config: Config, digits: Split):
    traces = 0
    train_step = make_train_step(tiny_config)

    def counting(state: TrainState, batch: Batch):
        nonlocal traces
        traces += 1
        return train_step(state, batch)

    step, state = jax.jit(counting, donate_argnums=0), jax.jit(make_init(tiny_config))()
    for k in range(3):
        previous = state
        state, metrics = step(state, batch_of(digits))
        assert int(state.step) == k + 1
        assert jax.tree.leaves(previous.params)[0].is_deleted()
        assert metrics.count == 8 * (k + 1)  # readable, though the state they were part of is donated next
    assert traces == 1


def test_the_first_step_that_is_not_finite_is_noted(tiny_config: Config, digits: Split):
    step, state, batch = (
        jax.jit(make_train_step(tiny_config)),
        jax.jit(make_init(tiny_config))(),
        batch_of(digits),
    )
    state, metrics = step(state, batch)
    assert int(metrics.nonfinite_step) == 0
    poisoned = state.params["head"]["bias"].at[0].set(jnp.inf)
    state = state.replace(params=state.params | {"head": state.params["head"] | {"bias": poisoned}})
    for _ in range(3):
        state, metrics = step(state, batch)
    assert int(metrics.nonfinite_step) == 2


def test_evaluation_predicts_with_the_running_statistics(tiny_config: Config, digits: Split):
    state = train(tiny_config, digits, 1, 2)
    batch = batch_of(digits)
    logits = make_predict(tiny_config)(state.variables, batch.image)
    alone = make_predict(tiny_config)(state.variables, batch.image[:1])
    np.testing.assert_allclose(alone, logits[:1], rtol=1e-4, atol=1e-5)
    expected = build_model(tiny_config).apply(
        state.variables, preprocess(tiny_config, batch.image), train=False
    )
    np.testing.assert_array_equal(logits, expected)
    metrics = make_eval_step(tiny_config)(state.variables, Metrics.empty(10), batch)
    assert metrics.accuracy == (np.asarray(logits).argmax(1) == batch.label).mean()
