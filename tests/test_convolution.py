"""The convolution's own ways on a CPU against XLA's, in float64, and their rounding in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxresnet import convolution
from jaxresnet.convolution import (
    kernel_gradient,
    make_convolution,
    winograd_convolution,
    winograd_kernel_gradient,
)

HIGHEST = lax.Precision.HIGHEST
CASES = {
    "3x3": (4, 16, 3, 1, 1),
    "3x3 stride 2": (4, 16, 3, 2, 1),
    "7x7": (4, 16, 7, 1, 3),
    "1x1 stride 2": (4, 16, 1, 2, 0),
    "5x5 stride 3": (4, 12, 5, 3, 2),
    "2x2 stride 3, with inputs that no output sees": (4, 12, 2, 3, 0),
    "a map that the stride does not divide": (4, 9, 3, 2, 1),
    "several images in a product, and a batch that is no power of two": (12, 8, 3, 1, 1),
    "an odd batch": (3, 8, 3, 1, 1),
    "a small map": (4, 4, 3, 1, 1),
    "a map that tiles do not divide": (4, 10, 3, 1, 1),
    "3x3 without padding": (4, 16, 3, 1, 0),
}


def arrays(
    batch: int, size: int, kernel: int, stride: int, padding: int, dtype: type = np.float64
) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(0)
    outputs = (size + 2 * padding - kernel) // stride + 1
    shapes = (batch, size, size, 5), (kernel, kernel, 5, 6), (batch, outputs, outputs, 6)
    return tuple(random.normal(size=shape).astype(dtype) for shape in shapes)


def reference(stride: int, padding: int):
    def convolve(inputs, kernel):
        return lax.conv_general_dilated(
            inputs, kernel, (stride,) * 2, [(padding,) * 2] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return convolve


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shards", [1, 4])
def test_gradients_equal_those_of_xla(case: str, shards: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(convolution, "_left_to_xla", lambda *_: False)
    batch, size, kernel, stride, padding = CASES[case]
    strides, paddings = (stride,) * 2, ((padding,) * 2,) * 2
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


@pytest.mark.parametrize("option", [{"rhs_dilation": (2, 2)}, {"feature_group_count": 5}])
def test_what_it_cannot_do_is_refused(option: dict):
    inputs, weights, _ = arrays(2, 8, 3, 1, 1)
    with pytest.raises(NotImplementedError, match="without dilation and groups"):
        make_convolution(1)(inputs, weights, (1, 1), ((1, 1),) * 2, **option)


def test_sums_of_bfloat16_are_float32():
    inputs, weights, gradient = arrays(64, 16, 3, 1, 1, jnp.bfloat16)
    found = kernel_gradient(inputs, gradient, weights.shape, (1, 1), ((1, 1),) * 2, HIGHEST, 1)
    exact = jax.vjp(lambda w: reference(1, 1)(inputs.astype("f4"), w), weights.astype("f4"))[1](
        gradient.astype("f4")
    )
    assert found.dtype == jnp.bfloat16
    # half a unit in the last of bfloat16's eight places
    np.testing.assert_allclose(found.astype("f4"), exact[0], rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("size", [8, 16])
def test_fewer_multiplications_round_little_more(size: int):
    """Lavin and Gray's own measure: the relative error against float64, here of random arrays."""
    exact = arrays(16, size, 3, 1, 1)
    inputs, weights, gradient = (jnp.asarray(array, "f4") for array in exact)
    with jax.enable_x64():
        outputs, pull_back = jax.vjp(reference(1, 1), *map(jnp.asarray, exact[:2]))
        outputs, to_inputs, to_kernel = map(np.asarray, (outputs, *pull_back(jnp.asarray(exact[2]))))

    def error(found: jax.Array, wanted: np.ndarray) -> float:
        return float(np.linalg.norm(np.asarray(found, "f8") - wanted) / np.linalg.norm(wanted))

    assert error(winograd_convolution(inputs, weights, HIGHEST, 1), outputs) < 5e-7
    rotated = weights[::-1, ::-1].swapaxes(2, 3)
    assert error(winograd_convolution(gradient, rotated, HIGHEST, 1), to_inputs) < 5e-7
    assert error(winograd_kernel_gradient(inputs, gradient, HIGHEST, 1), to_kernel) < 3e-6


@pytest.mark.parametrize(
    ("dtype", "size", "winograd"), [("f4", 32, True), ("bf16", 32, False), ("f4", 34, False)]
)
def test_what_takes_fewer_multiplications(dtype: str, size: int, winograd: bool):
    dtype = {"f4": jnp.float32, "bf16": jnp.bfloat16}[dtype]
    inputs = jax.ShapeDtypeStruct((64, size, size, 16), dtype)
    weights = jax.ShapeDtypeStruct((3, 3, 16, 16), dtype)
    convolve = make_convolution(1)
    forward = jax.jit(lambda x, w: convolve(x, w, (1, 1), ((1, 1),) * 2)).trace(inputs, weights)
    assert ("stablehlo.while" in forward.lower(lowering_platforms=("cpu",)).as_text()) == winograd


def test_only_a_cpu_takes_the_loop_and_only_for_large_activations():
    def kernel_gradients(inputs, weights):
        convolve = make_convolution(1)
        return jax.grad(lambda w: convolve(inputs, w, (1, 1), ((1, 1),) * 2).sum())(weights)

    def has_loop(images: int, size: int, channels: int, platform: str) -> bool:
        inputs = jax.ShapeDtypeStruct((images, size, size, channels), "f4")
        weights = jax.ShapeDtypeStruct((3, 3, channels, channels), "f4")
        lowered = jax.jit(kernel_gradients).trace(inputs, weights).lower(lowering_platforms=(platform,))
        return "stablehlo.while" in lowered.as_text()

    assert has_loop(17, 32, 16, "cpu")
    assert not has_loop(16, 32, 16, "cpu")  # 1 MiB
    assert not has_loop(17, 32, 16, "cuda")
    assert not has_loop(64, 4, 512, "cpu")  # a kernel of 9 MiB for activations of 2 MiB


def test_gradients_of_strided_inputs_multiply_no_zeros():
    def hlo(platform: str) -> str:
        convolve = make_convolution(1)
        inputs, weights, gradient = (
            jax.ShapeDtypeStruct(shape, "f4")
            for shape in [(64, 32, 32, 16), (3, 3, 16, 24), (64, 16, 16, 24)]
        )
        pull_back = jax.jit(lambda x, w, g: jax.vjp(lambda x: convolve(x, w, (2, 2), ((1, 1),) * 2), x)[1](g))
        return pull_back.trace(inputs, weights, gradient).lower(lowering_platforms=(platform,)).as_text()

    assert "lhs_dilate = [2, 2]" in hlo("cuda")
    assert "lhs_dilate = [2, 2]" not in hlo("cpu")
