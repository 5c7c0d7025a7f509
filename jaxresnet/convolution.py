"""Convolutions that are fast on a CPU, too.

XLA:CPU computes a convolution by its definition, and the kernel gradient as a convolution of transposed activations.
Into the transposition, which reads at a stride of whole images, it fuses the chain of BatchNorm, ReLU and residual
additions in front and computes it again for every element. The input gradient of a strided convolution it computes from
a gradient dilated with zeros. Here, on a CPU and for activations that no cache holds,

- 3x3 convolutions with stride 1, and their gradients, take fewer multiplications (Winograd's algorithm);
- other kernels' gradients take a loop that gathers each position's window and multiplies matrices;
- other input gradients take ordinary convolutions, one for each place in the stride.

Where that wins, and by how much: results/speed/README.md.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

_POSITIONS = 1024
"""Output positions that one matrix product takes: for 3x3 windows of 64 channels 2.4 MB, about a core's cache."""

_TILES = 128
"""Tiles that Winograd's products take at a time: 36 of 64 channels twice are 2.4 MB."""

_CACHED_INPUTS = 2**18
"""Activations of no more elements on each device, 1 MiB of them, are left to XLA, which transposes them in cache."""

Padding = tuple[tuple[int, int], tuple[int, int]]


class _Winograd(NamedTuple):
    """F(m x m, 3 x 3) of Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (arXiv:1509.09308).

    A tile of m x m outputs Y is A^T [(G g G^T) * (B^T d B)] A of the kernel g and the (m + 2) x (m + 2) inputs d, with
    (m + 2)^2 multiplications instead of 9 m^2.
    """

    inputs: np.ndarray  # B^T
    kernel: np.ndarray  # G
    outputs: np.ndarray  # A^T


_TWO = _Winograd(
    inputs=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    kernel=np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
    outputs=np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
)
"""2.25 times fewer multiplications; in float32 about twice the rounding of the definition."""

_FOUR = _Winograd(
    inputs=np.array(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ]
    ),
    kernel=np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
    outputs=np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]),
)
"""4 times fewer multiplications, and about ten times the rounding: for kernel gradients, which no layer passes on."""


def make_convolution(shards: int) -> Callable[..., jax.Array]:
    """A function that takes the place of `lax.conv_general_dilated` in `flax.linen.Conv`.

    `shards` is the number of devices that the batch is sharded over: loops keep the parts of each apart, so
    that they meet only once, at the end. Another number gives the same result to rounding. The function raises
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
    def by_xla(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        return _plain(inputs, kernel, strides, padding, precision)

    def by_winograd(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        return winograd_convolution(inputs, kernel, precision, shards)

    if _left_to_xla(inputs, kernel, shards) or not _has_winograd(inputs, kernel, strides, padding):
        return by_xla(inputs, kernel)
    return lax.platform_dependent(inputs, kernel, cpu=by_winograd, default=by_xla)


def _forward(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: Padding,
    precision: lax.PrecisionLike,
    shards: int,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(inputs, kernel, strides, padding, precision, shards), (inputs, kernel)


def _backward(
    strides: tuple[int, int],
    padding: Padding,
    precision: lax.PrecisionLike,
    shards: int,
    saved: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    def by_xla(inputs: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        convolve = functools.partial(_plain, strides=strides, padding=padding, precision=precision)
        return jax.vjp(convolve, inputs, kernel)[1](gradient)

    def by_products(inputs: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        if inputs.shape[1] % strides[0] or inputs.shape[2] % strides[1]:
            to_inputs, _ = by_xla(inputs, kernel, gradient)
        else:
            to_inputs = input_gradient(gradient, kernel, inputs.shape, strides, padding, precision)
        return to_inputs, kernel_gradient(inputs, gradient, kernel.shape, strides, padding, precision, shards)

    def by_winograd(inputs: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        rotated = kernel[::-1, ::-1].swapaxes(2, 3)
        to_inputs = winograd_convolution(gradient, rotated, precision, shards)
        return to_inputs, winograd_kernel_gradient(inputs, gradient, precision, shards)

    inputs, kernel = saved
    if _left_to_xla(inputs, kernel, shards):
        return by_xla(inputs, kernel, gradient)
    on_cpu = by_winograd if _has_winograd(inputs, kernel, strides, padding) else by_products
    return lax.platform_dependent(inputs, kernel, gradient, cpu=on_cpu, default=by_xla)


_convolve.defvjp(_forward, _backward)


def _left_to_xla(inputs: jax.Array, kernel: jax.Array, shards: int) -> bool:
    """Whether XLA's own way is as good: on few activations, or where the kernel is what takes the memory."""
    return inputs.size // shards <= max(_CACHED_INPUTS, kernel.size)


def _has_winograd(inputs: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding) -> bool:
    """Whether the functions below compute this convolution, in a dtype that can bear their rounding."""
    whole_tiles = inputs.shape[1] % 4 == inputs.shape[2] % 4 == 0
    usual = (*kernel.shape[:2], *strides, *padding) == (3, 3, 1, 1, (1, 1), (1, 1))
    return usual and whole_tiles and inputs.dtype.itemsize >= 4


def _combine(matrix: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    """The product of a small constant matrix and a vector of arrays, by additions."""
    combinations = []
    for row in matrix:
        terms = [part if c == 1 else float(c) * part for c, part in zip(row, parts, strict=True) if c]
        combinations.append(functools.reduce(jnp.add, terms))
    return combinations


def _transform(matrix: np.ndarray, images: jax.Array, step: int) -> jax.Array:
    """M t M^T of every square tile t of images [S, N, H, W, C], for a matrix M of shape [n, size of t].

    Tiles start every `step` rows and columns. Returns [S, n n, N tiles, C].
    """
    size = matrix.shape[1]
    height, width = (side - size + 1 for side in images.shape[2:4])
    rows = jnp.stack(_combine(matrix, [images[:, :, i : i + height : step] for i in range(size)]), 1)
    planes = jnp.stack(_combine(matrix, [rows[:, :, :, :, j : j + width : step] for j in range(size)]), 2)
    return planes.reshape(len(images), len(matrix) ** 2, -1, images.shape[-1])


def _in_parts(images: jax.Array, shards: int, most: int) -> tuple[jax.Array, int]:
    """[B, ...] as [shards, B / shards, ...], and how many of each shard's images to take at a time: `most`, or one."""
    shards = math.gcd(shards, images.shape[0])
    each = images.shape[0] // shards
    size = max(n for n in range(1, max(1, most) + 1) if each % n == 0)
    return images.reshape(shards, each, *images.shape[1:]), size


def _part(images: jax.Array, index: jax.Array, size: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(images, index * size, size, 1)


def winograd_convolution(
    inputs: jax.Array, kernel: jax.Array, precision: lax.PrecisionLike, shards: int
) -> jax.Array:
    """The 3x3 convolution of inputs [B, H, W, C] with stride 1 and padding 1, by F(2x2, 3x3). H and W are even."""
    batch, height, width, channels = inputs.shape
    features, tiles = kernel.shape[3], height * width // 4
    images, size = _in_parts(inputs, shards, _TILES // tiles)
    shards = len(images)
    # By additions, as of images: products with matrices of 3 columns took a twelfth of the train step.
    kernels = _transform(_TWO.kernel, kernel.reshape(1, 1, 3, 3, -1), 3).reshape(16, channels, features)
    kernels = jnp.broadcast_to(kernels, (shards, 16, channels, features))

    def convolve(_: None, index: jax.Array) -> tuple[None, jax.Array]:
        x = jnp.pad(_part(images, index, size), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
        products = lax.dot_general(
            _transform(_TWO.inputs, x, 2), kernels, (((3,), (2,)), ((0, 1), (0, 1))), precision=precision
        )
        products = products.reshape(shards, 4, 4, size, height // 2, width // 2, features)
        rows = jnp.stack(_combine(_TWO.outputs, [products[:, i] for i in range(4)]), 4)
        outputs = jnp.stack(_combine(_TWO.outputs, [rows[:, j] for j in range(4)]), 5)
        return None, outputs.reshape(shards, size, height, width, features)

    _, outputs = lax.scan(convolve, None, jnp.arange(images.shape[1] // size))
    return outputs.swapaxes(0, 1).reshape(batch, height, width, features)


def winograd_kernel_gradient(
    inputs: jax.Array, gradient: jax.Array, precision: lax.PrecisionLike, shards: int
) -> jax.Array:
    """What `kernel_gradient` gives for a 3x3 kernel, stride 1 and padding 1, by F(4x4, 3x3). H and W divide by 4."""
    _, height, width, channels = inputs.shape
    features, tiles = gradient.shape[3], height * width // 16
    images, size = _in_parts(inputs, shards, _TILES // tiles)
    gradients, _ = _in_parts(gradient, shards, _TILES // tiles)
    shards = len(images)

    def add_part(total: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        x = jnp.pad(_part(images, index, size), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
        product = lax.dot_general(
            _transform(_FOUR.outputs.T, _part(gradients, index, size), 4),
            _transform(_FOUR.inputs, x, 4),
            (((2,), (2,)), ((0, 1), (0, 1))),
            precision=precision,
        )
        return total + product, None

    total = jnp.zeros((shards, 36, features, channels), gradient.dtype)
    total, _ = lax.scan(add_part, total, jnp.arange(images.shape[1] // size))
    # Before the shards meet: a quarter of the numbers to sum over the devices.
    total = _transform(_FOUR.kernel.T, total.reshape(shards, 1, 6, 6, -1), 6).sum(0)
    return total.reshape(3, 3, features, channels).swapaxes(2, 3)


def input_gradient(
    gradient: jax.Array,
    kernel: jax.Array,
    shape: tuple[int, ...],
    strides: tuple[int, int],
    padding: Padding,
    precision: lax.PrecisionLike,
) -> jax.Array:
    """Gradient of a loss with respect to a convolution's inputs of that shape [B, H, W, C]; the strides divide H and W.

    `gradient` [B, H', W', D] is the loss's with respect to the outputs, `kernel` [h, w, C, D] the convolution's. Inputs
    that are a stride apart see the same taps of the kernel, every other one where the stride is 2: each such set gets
    a convolution of its own with those.
    """

    def seen(axis: int, offset: int) -> tuple[slice, tuple[int, int]]:
        """The taps that inputs `offset`, `offset + stride`, ... see, and how `gradient` is padded for them."""
        stride, low = strides[axis], padding[axis][0]
        behind, first = divmod(offset + low, stride)
        taps = len(range(first, kernel.shape[axis], stride))
        more = shape[1 + axis] // stride - gradient.shape[1 + axis]
        return slice(first, None, stride), (taps - 1 - behind, more + behind)

    def convolve(row: int, column: int) -> jax.Array:
        (rows, above_below), (columns, left_right) = seen(0, row), seen(1, column)
        taps = kernel[rows, columns][::-1, ::-1].swapaxes(2, 3)
        if not taps.size:
            sizes = (shape[0], shape[1] // strides[0], shape[2] // strides[1], shape[3])
            return jnp.zeros(sizes, gradient.dtype)
        return _plain(gradient, taps, (1, 1), (above_below, left_right), precision)

    rows = [jnp.stack([convolve(i, j) for j in range(strides[1])], 3) for i in range(strides[0])]
    return jnp.stack(rows, 2).reshape(shape)


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
    _, rows, columns, _ = gradient.shape
    images, size = _in_parts(inputs, shards, _POSITIONS // (rows * columns))
    gradients, _ = _in_parts(gradient, shards, _POSITIONS // (rows * columns))
    shards = len(images)
    dtype = jnp.promote_types(gradient.dtype, jnp.float32)

    def add_part(total: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        x = jnp.pad(_part(images, index, size), ((0, 0), (0, 0), *padding, (0, 0)))
        last_row, last_column = (rows - 1) * strides[0], (columns - 1) * strides[1]
        taps = [
            x[:, :, i : i + last_row + 1 : strides[0], j : j + last_column + 1 : strides[1]]
            for i in range(height)
            for j in range(width)
        ]
        windows = jnp.concatenate(taps, axis=-1).reshape(shards, -1, height * width * channels)
        dy = _part(gradients, index, size).reshape(shards, -1, features)
        # The features first: the other order, and one product for each tap, are slower.
        product = lax.dot_general(
            dy, windows, (((1,), (1,)), ((0,), (0,))), precision=precision, preferred_element_type=dtype
        )
        return total + product, None

    total = jnp.zeros((shards, features, height * width * channels), dtype)
    total, _ = lax.scan(add_part, total, jnp.arange(images.shape[1] // size))
    return total.sum(0).T.reshape(kernel_shape).astype(gradient.dtype)
