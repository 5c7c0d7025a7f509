"""Convolution with a kernel gradient that is fast on a CPU, too.

XLA:CPU computes the kernel gradient as a convolution of transposed arrays. Into the transposition, which reads at
a stride of whole images, it fuses the chain of BatchNorm, ReLU and residual additions in front and computes it
again for every element. Here a loop over parts of the batch takes its place: gather each position's window, then
one matrix product. Where it wins, and by how much: results/speed/README.md.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

_POSITIONS = 1024
"""Output positions that one matrix product takes: for 3x3 windows of 64 channels 2.4 MB, about a core's cache."""

_CACHED_INPUTS = 2**19
"""Activations of no more elements on each device, 2 MiB of them, are left to XLA, which transposes them in cache."""


Padding = tuple[tuple[int, int], tuple[int, int]]


def make_convolution(shards: int) -> Callable[..., jax.Array]:
    """A function that takes the place of `lax.conv_general_dilated` in `flax.linen.Conv`.

    `shards` is the number of devices that the batch is sharded over: the loop keeps the parts of each apart, so
    that they meet only once, at its end. Another number gives the same gradient to rounding. The function raises
    NotImplementedError for dilated or grouped convolutions, and differentiates in reverse mode only.
    """

    def convolution(
        inputs: jax.Array,
        kernel: jax.Array,
        strides: Sequence[int],
        padding: Sequence[tuple[int, int]],
        *,
        lhs_dilation: Sequence[int] = (1, 1),
        rhs_dilation: Sequence[int] = (1, 1),
        dimension_numbers: Any = None,  # flax's are always _DIMENSIONS
        feature_group_count: int = 1,
        precision: lax.PrecisionLike = None,
    ) -> jax.Array:
        if {*lhs_dilation, *rhs_dilation, feature_group_count} != {1}:
            raise NotImplementedError("expected a convolution without dilation and groups")
        return _convolve(inputs, kernel, tuple(strides), tuple(padding), precision, shards)

    return convolution


def _plain(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: Padding,
    precision: lax.PrecisionLike,
) -> jax.Array:
    return lax.conv_general_dilated(
        inputs, kernel, strides, padding, dimension_numbers=_DIMENSIONS, precision=precision
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _convolve(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: Padding,
    precision: lax.PrecisionLike,
    shards: int,
) -> jax.Array:
    return _plain(inputs, kernel, strides, padding, precision)


def _forward(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: Padding,
    precision: lax.PrecisionLike,
    shards: int,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _plain(inputs, kernel, strides, padding, precision), (inputs, kernel)


def _backward(
    strides: tuple[int, int],
    padding: Padding,
    precision: lax.PrecisionLike,
    shards: int,
    saved: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    inputs, kernel = saved
    (to_inputs,) = jax.vjp(lambda x: _plain(x, kernel, strides, padding, precision), inputs)[1](gradient)

    def by_xla(inputs: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda k: _plain(inputs, k, strides, padding, precision), kernel)[1](gradient)[0]

    def by_products(inputs: jax.Array, gradient: jax.Array) -> jax.Array:
        return kernel_gradient(inputs, gradient, kernel.shape, strides, padding, precision, shards)

    if inputs.size // shards <= _CACHED_INPUTS:
        return to_inputs, by_xla(inputs, gradient)
    return to_inputs, lax.platform_dependent(inputs, gradient, cpu=by_products, default=by_xla)


_convolve.defvjp(_forward, _backward)


def kernel_gradient(
    inputs: jax.Array,
    gradient: jax.Array,
    kernel_shape: tuple[int, ...],
    strides: tuple[int, int],
    padding: Padding,
    precision: lax.PrecisionLike,
    shards: int,
) -> jax.Array:
    """Gradient [h, w, C, D] of a loss with respect to a convolution's kernel of that shape.

    `inputs` [B, H, W, C] are the convolution's, `gradient` [B, H', W', D] is the loss's with respect to its
    outputs. Sums are float32 at least; the result has the dtype of `gradient`.
    """
    height, width, channels, features = kernel_shape
    batch, rows, columns, _ = gradient.shape
    shards = math.gcd(shards, batch)
    most = max(1, _POSITIONS // (rows * columns))
    images = max(n for n in range(1, most + 1) if batch // shards % n == 0)  # in each shard, at a time
    inputs = inputs.reshape(shards, -1, images, *inputs.shape[1:])
    gradient = gradient.reshape(shards, -1, images, rows, columns, features)
    dtype = jnp.promote_types(gradient.dtype, jnp.float32)

    def add_part(total: jax.Array, part: jax.Array) -> tuple[jax.Array, None]:
        x = lax.dynamic_index_in_dim(inputs, part, 1, keepdims=False)
        dy = lax.dynamic_index_in_dim(gradient, part, 1, keepdims=False)
        x = jnp.pad(x, ((0, 0), (0, 0), *padding, (0, 0)))
        last_row, last_column = (rows - 1) * strides[0], (columns - 1) * strides[1]
        taps = [
            x[:, :, i : i + last_row + 1 : strides[0], j : j + last_column + 1 : strides[1]]
            for i in range(height)
            for j in range(width)
        ]
        windows = jnp.concatenate(taps, axis=-1).reshape(shards, -1, height * width * channels)
        dy = dy.reshape(shards, -1, features)
        # The features first: the other order, and one product for each tap, are slower.
        product = lax.dot_general(
            dy, windows, (((1,), (1,)), ((0,), (0,))), precision=precision, preferred_element_type=dtype
        )
        return total + product, None

    total = jnp.zeros((shards, features, height * width * channels), dtype)
    total, _ = lax.scan(add_part, total, jnp.arange(inputs.shape[1]))
    return total.sum(0).T.reshape(kernel_shape).astype(gradient.dtype)
