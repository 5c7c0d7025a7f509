"""The convolution's own ways on a CPU against XLA's, in float64, and their rounding in float32."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mesh_of
from jax import lax

from jaxresnet.network import cpu_convolution, winograd
from jaxresnet.network.blocks import Convolution
from jaxresnet.network.cpu_convolution import (
    convolution_for,
    input_gradient,
    kernel_gradient,
    make_convolution,
)

HIGHEST = lax.Precision.HIGHEST
CASES = {
    "3x3": (4, 16, 3, 1, 1),
    "3x3 stride 2": (4, 16, 3, 2, 1),
    "7x7": (4, 16, 7, 1, 3),
    "1x1 stride 2": (4, 16, 1, 2, 0),
    "5x5 stride 3": (4, 12, 5, 3, 2),
    "3x3 stride 4, where inputs at the border are seen by fewer outputs": (4, 16, 3, 4, 1),
    "3x3 stride 4, and one output": (4, 4, 3, 4, 1),
    "2x2 stride 3, with inputs that no output sees": (4, 12, 2, 3, 0),
    "a map that the stride does not divide": (4, 9, 3, 2, 1),
    "several images in a product, and a batch that is no power of two": (12, 8, 3, 1, 1),
    "an odd batch": (3, 8, 3, 1, 1),
    "a small map": (4, 4, 3, 1, 1),
    "a map that tiles do not divide": (4, 10, 3, 1, 1),
    "3x3 without padding": (4, 16, 3, 1, 0),
    "an oblong map": (4, (8, 16), 3, 1, 1),
    "an oblong map and stride 2": (4, (12, 6), 3, 2, 1),
    "another kernel, stride and padding for rows than for columns": (4, (9, 14), (3, 5), (2, 1), (0, 2)),
}

Sides = int | tuple[int, int]
"""A number for the rows and one for the columns, or one for both."""


def both(sides: Sides) -> tuple[int, int]:
    return (sides, sides) if isinstance(sides, int) else sides


def arrays(
    batch: int, size: Sides, kernel: Sides, stride: Sides, padding: Sides, dtype: Any = np.float64
) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(0)
    sides = zip(both(size), both(kernel), both(stride), both(padding), strict=True)
    outputs = [(side + 2 * pad - width) // step + 1 for side, width, step, pad in sides]
    shapes = (batch, *both(size), 5), (*both(kernel), 5, 6), (batch, *outputs, 6)
    return tuple(random.normal(size=shape).astype(dtype) for shape in shapes)


def reference(stride: Sides, padding: Sides) -> Callable[[Any, Any], jax.Array]:
    def convolve(inputs: Any, kernel: Any) -> jax.Array:
        return lax.conv_general_dilated(
            inputs,
            kernel,
            both(stride),
            [(pad, pad) for pad in both(padding)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    return convolve


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shards", [1, 4])
def test_gradients_equal_those_of_xla(case: str, shards: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu_convolution, "_left_to_xla", lambda *_: False)
    batch, size, kernel, stride, padding = CASES[case]
    strides, paddings = both(stride), tuple((pad, pad) for pad in both(padding))
    with jax.enable_x64():
        inputs, weights, gradient = map(jnp.asarray, arrays(batch, size, kernel, stride, padding))
        ours = make_convolution(shards)
        outputs, pull_back = jax.vjp(
            lambda x, w: ours(x, w, strides, paddings, precision=HIGHEST), inputs, weights
        )
        expected, expected_pull_back = jax.vjp(reference(stride, padding), inputs, weights)
        np.testing.assert_allclose(outputs, expected, rtol=1e-10, atol=1e-11)
        for found, wanted in zip(pull_back(gradient), expected_pull_back(gradient), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-11)


SMALL = {
    "a 2x2 map": (4, 2, 3, 1, 1),
    "a 4x4 map and stride 2": (4, 4, 3, 2, 1),
    "a 1x1 map": (3, 1, 3, 1, 1),
    "a kernel much larger than the map": (2, 5, 7, 1, 3),
}


@pytest.mark.parametrize("case", SMALL)
def test_outputs_smaller_than_the_kernel_are_one_product(case: str):
    batch, size, kernel, stride, padding = SMALL[case]
    strides, paddings = (stride,) * 2, ((padding,) * 2,) * 2
    ours = make_convolution(1, small_maps=True)

    def convolve(inputs: jax.Array, weights: jax.Array) -> jax.Array:
        return ours(inputs, weights, strides, paddings, precision=HIGHEST)

    with jax.enable_x64():
        inputs, weights, gradient = map(jnp.asarray, arrays(batch, size, kernel, stride, padding))
        assert "convolution" not in hlo(convolve, inputs.shape, weights.shape)
        outputs, pull_back = jax.vjp(convolve, inputs, weights)
        expected, expected_pull_back = jax.vjp(reference(stride, padding), inputs, weights)
        np.testing.assert_allclose(outputs, expected, rtol=1e-10, atol=1e-11)
        for found, wanted in zip(pull_back(gradient), expected_pull_back(gradient), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("small_maps", "found"), [(True, 0), (False, 1)])
def test_small_maps_stay_as_they_were_unless_asked_for(small_maps: bool, found: int):
    ours = make_convolution(1, small_maps)

    def convolutions(size: int) -> int:
        shapes = (4, size, size, 5), (3, 3, 5, 6)
        lowered = hlo(lambda x, w: ours(x, w, (1, 1), ((1, 1),) * 2), *shapes)
        return lowered.count("stablehlo.convolution")

    assert (convolutions(2), convolutions(3)) == (found, 1)


@pytest.mark.parametrize("option", [{"rhs_dilation": (2, 2)}, {"feature_group_count": 5}])
def test_what_it_cannot_do_is_refused(option: dict):
    inputs, weights, _ = arrays(2, 8, 3, 1, 1)
    with pytest.raises(NotImplementedError, match="without dilation and groups"):
        make_convolution(1)(inputs, weights, (1, 1), ((1, 1),) * 2, **option)


def test_sums_of_bfloat16_are_float32():
    inputs, weights, gradient = map(jnp.asarray, arrays(64, 16, 3, 1, 1, jnp.bfloat16))
    found = kernel_gradient(inputs, gradient, weights.shape, (1, 1), ((1, 1), (1, 1)), HIGHEST, 1)
    exact = jax.vjp(lambda w: reference(1, 1)(inputs.astype("f4"), w), weights.astype("f4"))[1](
        gradient.astype("f4")
    )
    assert found.dtype == jnp.bfloat16
    # half a unit in the last of bfloat16's eight places
    np.testing.assert_allclose(found.astype("f4"), exact[0], rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("stride", [3, 4, 5])
def test_large_strides_read_no_memory_outside(stride: int):
    """XLA:CPU does so in float32, for at most 16 channels, if a convolution's padding is negative."""
    random = np.random.default_rng(0)
    size, images = 4 * stride, 48
    inputs, weights, gradient = (
        random.normal(size=shape).astype(np.float32)
        for shape in ((images, size, size, 16), (3, 3, 16, 8), (images, 4, 4, 8))
    )
    convolve = reference(stride, 1)
    [expected] = jax.vjp(lambda x: convolve(x, weights), inputs)[1](gradient)
    ours = jax.jit(input_gradient, static_argnums=(2, 3, 4, 5))
    found = ours(gradient, weights, inputs.shape, (stride, stride), ((1, 1), (1, 1)), HIGHEST)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [8, 12, 16])
def test_fewer_multiplications_round_little_more(size: int):
    """Lavin and Gray's own measure: the relative error against float64, here of random arrays."""
    exact = arrays(16, size, 3, 1, 1)
    inputs, weights, gradient = (jnp.asarray(array, "f4") for array in exact)
    with jax.enable_x64():
        outputs, pull_back = jax.vjp(reference(1, 1), *map(jnp.asarray, exact[:2]))
        outputs, to_inputs, to_kernel = map(np.asarray, (outputs, *pull_back(jnp.asarray(exact[2]))))

    def error(found: jax.Array, wanted: np.ndarray) -> float:
        return float(np.linalg.norm(np.asarray(found, "f8") - wanted) / np.linalg.norm(wanted))

    assert error(winograd.convolution(inputs, weights, HIGHEST, 1), outputs) < 5e-7
    rotated = weights[::-1, ::-1].swapaxes(2, 3)
    assert error(winograd.convolution(gradient, rotated, HIGHEST, 1), to_inputs) < 5e-7
    assert error(winograd.kernel_gradient(inputs, gradient, HIGHEST, 1), to_kernel) < 3e-6


def hlo(function: Callable[..., Any], *shapes: tuple[int, ...], dtype: Any = jnp.float32) -> str:
    """What a function of arrays of these shapes is lowered to."""
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)).as_text()


@pytest.mark.parametrize(
    ("dtype", "size", "fewer"), [(jnp.float32, 32, True), (jnp.bfloat16, 32, False), (jnp.float32, 34, False)]
)
def test_what_takes_fewer_multiplications(dtype: Any, size: int, fewer: bool):
    convolve = make_convolution(1)
    forward = hlo(
        lambda x, w: convolve(x, w, (1, 1), ((1, 1),) * 2), (64, size, size, 16), (3, 3, 16, 16), dtype=dtype
    )
    assert ("stablehlo.while" in forward) == fewer
    assert ("stablehlo.convolution" in forward) != fewer


def has_loop(convolve: Convolution, images: int, size: int, channels: int) -> bool:
    """Whether the gradient of a 3x3 kernel is computed by a loop."""

    def to_kernel(inputs: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.grad(lambda w: convolve(inputs, w, (1, 1), ((1, 1),) * 2).sum())(weights)

    return "stablehlo.while" in hlo(to_kernel, (images, size, size, channels), (3, 3, channels, channels))


def test_only_large_activations_take_the_loop():
    convolve = make_convolution(1)
    assert has_loop(convolve, 17, 32, 16)
    assert not has_loop(convolve, 16, 32, 16)  # 1 MiB
    assert not has_loop(convolve, 64, 4, 512)  # a kernel of 9 MiB for activations of 2 MiB


def test_a_mesh_of_cpu_devices_gets_the_loops_for_its_shards_and_no_other_does():
    one, four = convolution_for(mesh_of(1)), convolution_for(mesh_of(4))
    assert one is not None
    assert four is not None
    assert has_loop(one, 17, 32, 16)
    assert not has_loop(four, 64, 32, 16)  # 1 MiB on each device
    assert has_loop(four, 68, 32, 16)
    gpu: Any = SimpleNamespace(devices=np.array([SimpleNamespace(platform="gpu")]))
    assert convolution_for(gpu) is None


def test_gradients_of_strided_inputs_multiply_no_zeros():
    def to_inputs(convolve: Callable[[Any, Any], jax.Array]) -> str:
        return hlo(
            lambda x, w, g: jax.vjp(lambda x: convolve(x, w), x)[1](g),
            (64, 32, 32, 16), (3, 3, 16, 24), (64, 16, 16, 24),
        )  # fmt: skip

    ours = make_convolution(1)
    assert "lhs_dilate = [2, 2]" in to_inputs(reference(2, 1))
    assert "lhs_dilate = [2, 2]" not in to_inputs(lambda x, w: ours(x, w, (2, 2), ((1, 1),) * 2))
