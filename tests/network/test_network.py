"""The network: its exact size, shapes, padding, initial values."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import ROOT, initial_state, plan_of

from jaxresnet.config.files import load_config
from jaxresnet.config.schema import Config
from jaxresnet.learning.learner import Learner, make_learner
from jaxresnet.network.blocks import LayerFactory, ResidualBlock
from jaxresnet.network.cpu_convolution import make_convolution
from jaxresnet.network.describe import describe, macs_of_phases
from jaxresnet.network.resnet import build_model
from jaxresnet.plan import Plan

LAYERS = LayerFactory(True, "pytorch", False, jnp.float32, jax.lax.Precision.HIGHEST)


def init(module: nn.Module, *inputs: jax.Array, **options: Any) -> Any:
    return module.init(jax.random.key(0), *inputs, **options)


def apply(module: nn.Module, variables: Any, *inputs: jax.Array, **options: Any) -> Any:
    return module.apply(variables, *inputs, **options)


def abstract_variables(plan: Plan) -> dict[str, Any]:
    model = build_model(plan)
    images = jax.ShapeDtypeStruct((2, *plan.info.image_shape), jnp.float32)
    return jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), images)


def parameters_of(plan: Plan) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_variables(plan)["params"]))


@pytest.mark.parametrize(
    ("config", "parameters"),
    [("paper.toml", 4_985_386), ("paper_coupled.toml", 4_985_386), ("resnet18.toml", 11_173_962)],
)
def test_parameter_count(config: str, parameters: int):
    assert parameters_of(plan_of(load_config(ROOT / "configs" / config))) == parameters


def test_without_convolution_biases_3872_parameters_fewer():
    assert parameters_of(plan_of(settings={"model.conv_bias": False})) == 4_981_514


def test_classes_and_channels_are_the_data_sets():
    plan = plan_of()
    info = dataclasses.replace(
        plan.info, image_shape=(24, 16, 1), class_names=("no", "yes"), mean=(0.5,), std=(0.2,)
    )
    variables = abstract_variables(Plan(plan.config, info))
    assert variables["params"]["stem_conv"]["kernel"].shape == (7, 7, 1, 64)
    assert variables["params"]["head"]["kernel"].shape == (512, 2)


def test_a_convolution_that_is_handed_in_changes_no_parameter(tiny_plan: Plan):
    own, handed_in = (
        initial_state(make_learner(tiny_plan, convolution)) for convolution in (None, make_convolution(4))
    )
    jax.tree.map(np.testing.assert_array_equal, own, handed_in)


@pytest.mark.parametrize(
    ("features", "stride", "output"),
    [(4, 1, (2, 8, 8, 4)), (6, 1, (2, 8, 8, 6)), (4, 2, (2, 4, 4, 4)), (6, 2, (2, 4, 4, 6))],
)
def test_block_shapes(features: int, stride: int, output: tuple[int, ...]):
    block = ResidualBlock(LAYERS, features, stride)
    inputs = jnp.zeros((2, 8, 8, 4))
    outputs, variables = block.init_with_output(jax.random.key(0), inputs, train=True)
    chex.assert_shape(outputs, output)
    chex.assert_shape(variables["params"]["conv1"]["kernel"], (3, 3, 4, features))
    chex.assert_shape(variables["params"]["conv2"]["kernel"], (3, 3, features, features))
    chex.assert_shape(variables["batch_stats"]["norm2"]["var"], (features,))
    has_shortcut = features != 4 or stride != 1
    assert ("shortcut_conv" in variables["params"]) == has_shortcut
    if has_shortcut:
        chex.assert_shape(variables["params"]["shortcut_conv"]["kernel"], (1, 1, 4, features))
        chex.assert_shape(variables["params"]["shortcut_conv"]["bias"], (features,))


def test_stage_shapes_of_the_paper():
    shapes = {layer.name: layer.output_shape for layer in describe(plan_of())}
    assert shapes["stem_norm"] == (32, 32, 64)
    assert shapes["stage0_block1/norm2"] == (32, 32, 64)
    assert shapes["stage1_block0/shortcut_norm"] == (16, 16, 96)
    assert shapes["stage1_block3/norm2"] == (16, 16, 96)
    assert shapes["stage2_block3/norm2"] == (8, 8, 128)
    assert shapes["stage3_block0/norm2"] == (4, 4, 512)
    assert shapes["head"] == (10,)
    assert "stage0_block2/norm2" not in shapes
    assert "stage3_block1/norm2" not in shapes


def test_the_work_of_smaller_images():
    """Of the convolutions it falls with the area; the head has 512 x 10 products at any size."""
    plan = plan_of(settings={"resolution.sizes": (16, 24), "resolution.shares": (0.2, 0.2)})
    small, middle, whole = macs_of_phases(plan)
    assert whole == sum(layer.macs for layer in describe(plan_of()))
    assert (4 * (small - 5120), middle - 5120) == (whole - 5120, (whole - 5120) * 9 // 16)
    shapes = {layer.name: layer.output_shape for layer in describe(plan, (24, 24))}
    assert (shapes["stem_norm"], shapes["stage3_block0/norm2"], shapes["head"]) == (
        (24, 24, 64),
        (3, 3, 512),
        (10,),
    )


def test_description_adds_up():
    layers = describe(plan_of())
    assert sum(layer.parameters for layer in layers) == 4_985_386
    by_name = {layer.name: layer for layer in layers}
    # The stem: 32 x 32 positions, 64 channels, 7 x 7 x 3 products each.
    assert by_name["stem_conv"].macs == 32 * 32 * 64 * 7 * 7 * 3
    assert by_name["stem_conv"].parameters == 7 * 7 * 3 * 64 + 64
    assert by_name["head"].macs == 5120
    assert round(sum(layer.macs for layer in layers) / 1e6) == 447


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (3, 1), (7, 1), (1, 2)])
def test_convolution_pads_like_pytorch(kernel: int, stride: int):
    """Against a sum written out: output (y, x) is centred on input (y * stride, x * stride)."""
    conv = LAYERS.conv(1, 1, kernel, stride, "conv")
    image = np.random.default_rng(0).normal(size=(6, 6))
    weights = np.random.default_rng(1).normal(size=(kernel, kernel))
    params = {"kernel": jnp.asarray(weights[:, :, None, None], jnp.float32), "bias": jnp.zeros(1)}
    found = apply(conv, {"params": params}, jnp.asarray(image[None, :, :, None], jnp.float32))[0, :, :, 0]
    padded = np.pad(image, kernel // 2)
    expected = [
        [(padded[y : y + kernel, x : x + kernel] * weights).sum() for x in range(0, 6, stride)]
        for y in range(0, 6, stride)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_block_computes_its_formula():
    """conv - BN - ReLU - conv - BN - (+ shortcut) - ReLU, from the block's own parameters."""
    block = ResidualBlock(LAYERS, 6, 2)
    inputs = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    variables = init(block, inputs, train=True)
    found, _ = apply(block, variables, inputs, train=True, mutable=["batch_stats"])

    def conv(name: str, x: jax.Array, stride: int, pad: int) -> jax.Array:
        kernel, bias = variables["params"][name]["kernel"], variables["params"][name]["bias"]
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return x + bias[None, None, None]

    def norm(x: jax.Array) -> jax.Array:
        mean, var = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
        return (x - mean) / jnp.sqrt(var + 1e-5)

    inner = norm(conv("conv2", jnp.maximum(norm(conv("conv1", inputs, 2, 1)), 0), 1, 1))
    expected = jnp.maximum(inner + norm(conv("shortcut_conv", inputs, 2, 0)), 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_batch_norm_statistics_move_by_a_tenth():
    norm = LAYERS.norm(True, "norm")
    inputs = jax.random.normal(jax.random.key(0), (8, 4, 4, 2)) * 3 + 1
    _, updated = apply(norm, init(norm, inputs), inputs, mutable=["batch_stats"])
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * inputs.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * inputs.var((0, 1, 2)), rtol=1e-5)


ONE_STAGE: dict[str, Any] = {
    "model.stage_blocks": (1,),
    "model.stage_channels": (64,),
    "model.stage_strides": (1,),
}


def test_pytorch_initialisation_is_uniform_within_the_bound():
    params = initial_state(make_learner(plan_of(settings=ONE_STAGE))).params
    for layer, fan_in in [("stem_conv", 7 * 7 * 3), ("head", 64)]:
        bound = fan_in**-0.5
        kernel, bias = np.asarray(params[layer]["kernel"]), np.asarray(params[layer]["bias"])
        assert 0.98 * bound < np.abs(kernel).max() <= bound * (1 + 1e-6)
        assert abs(kernel.std() / (bound / 3**0.5) - 1) < 0.05
        assert 0.5 * bound < np.abs(bias).max() <= bound
    assert params["stage0_block0"]["norm1"]["scale"].min() == 1


def test_he_normal_initialisation():
    plan = plan_of(settings=ONE_STAGE | {"model.initializer": "he_normal"})
    params = initial_state(make_learner(plan)).params
    kernel = np.asarray(params["stage0_block0"]["conv1"]["kernel"])
    assert abs(kernel.std() / (2 / (64 * 9)) ** 0.5 - 1) < 0.02
    assert not np.any(params["stem_conv"]["bias"])
    head = initial_state(make_learner(plan_of(settings=ONE_STAGE))).params["head"]
    jax.tree.map(np.testing.assert_array_equal, params["head"], head)


def test_a_dirac_block_begins_as_its_first_convolution():
    """The second convolution passes everything through, so that it is as if it were not there."""
    plain, dirac = (
        initial_state(make_learner(plan_of(settings=ONE_STAGE | {"model.dirac": dirac}))).params
        for dirac in (False, True)
    )
    block = dirac["stage0_block0"]
    images = np.random.default_rng(0).normal(size=(2, 5, 5, 64)).astype(np.float32)
    conv = LAYERS.conv(64, 64, 3, 1, "conv2")
    np.testing.assert_array_equal(conv.apply({"params": block["conv2"]}, images), images)
    for module in ("stem_conv", "head"):
        jax.tree.map(np.testing.assert_array_equal, dirac[module], plain[module])
    np.testing.assert_array_equal(block["conv1"]["kernel"], plain["stage0_block0"]["conv1"]["kernel"])


@pytest.mark.parametrize("precision", ["float32", "tensorfloat32", "bfloat16"])
def test_parameters_and_logits_are_float32(tiny_config: Config, precision: str):
    plan = plan_of(tiny_config, {"precision": precision})
    model, variables = build_model(plan), abstract_variables(plan)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    captured = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=False, capture_intermediates=True, mutable=["intermediates"]),
        variables,
        jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32),
    )
    logits, intermediates = captured
    assert logits.dtype == jnp.float32
    inner = intermediates["intermediates"]["stage1_block0"]["conv1"]["__call__"][0]
    assert inner.dtype == (jnp.bfloat16 if precision == "bfloat16" else jnp.float32)


def test_dropout_drops_only_in_training(tiny_config: Config):
    model = build_model(plan_of(tiny_config, {"model.dropout_rate": 0.5}))
    images = jax.random.normal(jax.random.key(2), (2, 32, 32, 3))
    variables = model.init(jax.random.key(0), images, train=False)
    one, two = (model.apply(variables, images, train=False) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    dropped = [
        model.apply(
            variables, images, train=True, rngs={"dropout": jax.random.key(k)}, mutable=["batch_stats"]
        )[0]
        for k in (0, 0, 1)
    ]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert not np.allclose(dropped[0], dropped[2])


def test_head_is_linear_in_the_mean_over_the_whole_map(tiny_learner: Learner):
    model = tiny_learner.model
    images = jax.random.normal(jax.random.key(2), (3, 32, 32, 3))
    variables = model.init(jax.random.key(0), images, train=False)
    logits, captured = model.apply(
        variables, images, train=False, capture_intermediates=True, mutable=["intermediates"]
    )
    last = captured["intermediates"]["stage1_block0"]["__call__"][0]
    chex.assert_shape(last, (3, 16, 16, 6))
    chex.assert_shape(logits, (3, 10))
    head = variables["params"]["head"]
    expected = np.asarray(last).mean((1, 2)) @ head["kernel"] + np.asarray(head["bias"])[None]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
