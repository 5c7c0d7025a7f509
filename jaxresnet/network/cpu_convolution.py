"""Convolutions for training and evaluating on a CPU, and the choice of how each of them is computed.

XLA:CPU computes a convolution by its definition. This is slow in two places:

- It computes the gradient of a kernel as a convolution of transposed activations. The transposition reads with a stride
  of whole images. XLA also fuses the BatchNorm, ReLU and residual additions before it into the transposition, and so
  computes them again for every element.
- It computes the gradient of the inputs of a strided convolution from a gradient that is dilated with zeros.

Here activations that are too large for the cache are treated in other ways:

- 3x3 convolutions with stride 1, and their gradients, take fewer multiplications (`jaxresnet.network.winograd`).
- The gradients of other kernels are computed in a loop: it gathers the window of each position and multiplies matrices.
- The other input gradients are ordinary convolutions, one for each offset within the stride.

XLA also has a slow way of its own for outputs smaller than the kernel, which images of half the size lead to. Such a
convolution can be computed as one product of matrices (`by_windows`).

results/speed/README.md tells how much this gains. It gains on a CPU only, so it is no default: whoever builds a network
for a CPU passes it in (`convolution_for`). All other networks use `lax.conv_general_dilated`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from jaxresnet.network import winograd
from jaxresnet.network.blocks import Convolution
from jaxresnet.network.winograd import in_parts, part_of

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

_POSITIONS = 1024
"""Output positions in one matrix product. For 3x3 windows of 64 channels they take 2.4 MB, about a core's cache."""

_CACHED_INPUTS = 2**18
"""Activations with at most this many elements on each device (1 MiB) are left to XLA: it transposes them in cache."""

Padding = tuple[tuple[int, int], tuple[int, int]]


def convolution_for(mesh: Mesh, *, small_maps: bool = False) -> Convolution | None:
    """The convolution for networks on `mesh`: from `make_convolution` on a CPU, None (XLA's own) elsewhere."""
    devices = mesh.devices
    return make_convolution(devices.size, small_maps) if devices.flat[0].platform == "cpu" else None


def make_convolution(shards: int, small_maps: bool = False) -> Convolution:
    """A function that replaces `lax.conv_general_dilated` in `flax.linen.Conv`.

    `small_maps` has it take `by_windows` for outputs smaller than the kernel. That rounds otherwise than XLA's way, by
    which networks with such maps at the data's own size were trained so far; so it is no default.

    `shards` is the number of devices that the batch is sharded over. The loops keep the images of each device apart, so
    that devices exchange data only once, at the end. Another number gives the same result up to rounding. The function
    raises NotImplementedError for dilated or grouped convolutions. It can be differentiated in reverse mode only.
    """

    def convolution(
        inputs: jax.Array,
        kernel: jax.Array,
        strides: Sequence[int],
        padding: Sequence[tuple[int, int]],
        *,
        lhs_dilation: Sequence[int] = (1, 1),
        rhs_dilation: Sequence[int] = (1, 1),
        dimension_numbers: Any = None,  # flax always passes _DIMENSIONS
        feature_group_count: int = 1,
        precision: lax.PrecisionLike = None,
    ) -> jax.Array:
        if {*lhs_dilation, *rhs_dilation, feature_group_count} != {1}:
            raise NotImplementedError("expected a convolution without dilation and groups")
        steps, borders = (strides[0], strides[1]), (padding[0], padding[1])
        if small_maps and _is_small(inputs, kernel, steps, borders):
            return by_windows(inputs, kernel, steps, borders, precision)
        return _convolve(inputs, kernel, steps, borders, precision, shards)

    return convolution


def _is_small(inputs: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding) -> bool:
    """Whether the outputs are smaller than the kernel. There XLA:CPU 0.10 computes at 1 GFLOP/s in place of 100."""
    height, width = _output_size(inputs, kernel, strides, padding)
    return height < kernel.shape[0] or width < kernel.shape[1]


def _output_size(
    inputs: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding
) -> tuple[int, int]:
    """Height and width of a convolution's outputs."""
    spans = [inputs.shape[1 + axis] + sum(padding[axis]) - kernel.shape[axis] for axis in (0, 1)]
    return spans[0] // strides[0] + 1, spans[1] // strides[1] + 1


def by_windows(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: Padding,
    precision: lax.PrecisionLike,
) -> jax.Array:
    """A convolution [B, H', W', D] as one matrix product: the window of each output position times the kernel.

    Its gradients are such products, too. The windows take the memory of the kernel's size times the outputs, which is
    little for small maps.
    """
    padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    windows = _windows(padded, kernel.shape[:2], _output_size(inputs, kernel, strides, padding), strides)
    matrix = kernel.reshape(-1, kernel.shape[3])
    return lax.dot_general(windows, matrix, (((3,), (0,)), ((), ())), precision=precision)


def _windows(
    padded: jax.Array, kernel: tuple[int, ...], outputs: tuple[int, int], strides: tuple[int, int]
) -> jax.Array:
    """What each output position sees of padded inputs [..., H, W, C]: [..., H', W', h * w * C].

    `kernel` (h, w) and `outputs` (H', W') are sizes.
    """
    last_row, last_column = (outputs[0] - 1) * strides[0], (outputs[1] - 1) * strides[1]
    taps = [
        padded[..., i : i + last_row + 1 : strides[0], j : j + last_column + 1 : strides[1], :]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    return jnp.concatenate(taps, axis=-1)


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
    if _left_to_xla(inputs, kernel, shards) or not _has_winograd(inputs, kernel, strides, padding):
        return _plain(inputs, kernel, strides, padding, precision)
    return winograd.convolution(inputs, kernel, precision, shards)


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
    inputs, kernel = saved

    def by_xla() -> tuple[jax.Array, jax.Array]:
        convolve = functools.partial(_plain, strides=strides, padding=padding, precision=precision)
        return jax.vjp(convolve, inputs, kernel)[1](gradient)

    if _left_to_xla(inputs, kernel, shards):
        return by_xla()
    if _has_winograd(inputs, kernel, strides, padding):
        rotated = kernel[::-1, ::-1].swapaxes(2, 3)
        to_inputs = winograd.convolution(gradient, rotated, precision, shards)
        return to_inputs, winograd.kernel_gradient(inputs, gradient, precision, shards)
    if inputs.shape[1] % strides[0] or inputs.shape[2] % strides[1]:
        to_inputs, _ = by_xla()
    else:
        to_inputs = input_gradient(gradient, kernel, inputs.shape, strides, padding, precision)
    return to_inputs, kernel_gradient(inputs, gradient, kernel.shape, strides, padding, precision, shards)


_convolve.defvjp(_forward, _backward)


def _left_to_xla(inputs: jax.Array, kernel: jax.Array, shards: int) -> bool:
    """Whether XLA's own way is as good: for few activations, or if the kernel is larger than they are."""
    return inputs.size // shards <= max(_CACHED_INPUTS, kernel.size)


def _has_winograd(inputs: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding) -> bool:
    """Whether `jaxresnet.network.winograd` can compute this convolution, and the dtype is precise enough for it."""
    whole_tiles = inputs.shape[1] % 4 == inputs.shape[2] % 4 == 0
    usual = (*kernel.shape[:2], *strides, *padding) == (3, 3, 1, 1, (1, 1), (1, 1))
    return usual and whole_tiles and inputs.dtype.itemsize >= 4


def input_gradient(
    gradient: jax.Array,
    kernel: jax.Array,
    shape: tuple[int, ...],
    strides: tuple[int, int],
    padding: Padding,
    precision: lax.PrecisionLike,
) -> jax.Array:
    """Gradient of a loss with respect to a convolution's inputs, of the given `shape` [B, H, W, C].

    `gradient` [B, H', W', D] is that with respect to its outputs, `kernel` [h, w, C, D] its kernel. The strides must
    divide H and W. Inputs that are a stride apart meet the same taps of the kernel: every second one at a stride of 2.
    So each set of such inputs gets its own convolution with these taps.
    """

    def seen(axis: int, offset: int) -> tuple[slice, tuple[int, int]]:
        """The taps that the inputs `offset`, `offset + stride`, ... meet, and the padding of `gradient` for them."""
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
        # With negative padding, XLA:CPU 0.10 reads outside of the array.
        within = gradient[:, _cut(above_below, gradient.shape[1]), _cut(left_right, gradient.shape[2])]
        padding = _at_least_0(above_below), _at_least_0(left_right)
        return _plain(within, taps, (1, 1), padding, precision)

    rows = [jnp.stack([convolve(i, j) for j in range(strides[1])], 3) for i in range(strides[0])]
    return jnp.stack(rows, 2).reshape(shape)


def _cut(padding: tuple[int, int], size: int) -> slice:
    """What negative `padding` leaves of an axis of `size`."""
    return slice(max(0, -padding[0]), size - max(0, -padding[1]))


def _at_least_0(padding: tuple[int, int]) -> tuple[int, int]:
    return max(0, padding[0]), max(0, padding[1])


def kernel_gradient(
    inputs: jax.Array,
    gradient: jax.Array,
    kernel_shape: tuple[int, ...],
    strides: tuple[int, int],
    padding: Padding,
    precision: lax.PrecisionLike,
    shards: int,
) -> jax.Array:
    """Gradient of a loss with respect to a convolution's kernel, of the given `kernel_shape` [h, w, C, D].

    `inputs` [B, H, W, C] are the inputs of the convolution, and `gradient` [B, H', W', D] is the gradient with respect
    to its outputs. Sums are at least float32. The result has the dtype of `gradient`.
    """
    height, width, channels, features = kernel_shape
    _, rows, columns, _ = gradient.shape
    images, size = in_parts(inputs, shards, _POSITIONS // (rows * columns))
    gradients, _ = in_parts(gradient, shards, _POSITIONS // (rows * columns))
    shards = len(images)
    dtype = jnp.promote_types(gradient.dtype, jnp.float32)

    def add_part(total: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        x = jnp.pad(part_of(images, index, size), ((0, 0), (0, 0), *padding, (0, 0)))
        windows = _windows(x, kernel_shape[:2], (rows, columns), strides)
        windows = windows.reshape(shards, -1, height * width * channels)
        dy = part_of(gradients, index, size).reshape(shards, -1, features)
        # The features come first: the other order is slower, and so is one product for each tap.
        product = lax.dot_general(
            dy, windows, (((1,), (1,)), ((0,), (0,))), precision=precision, preferred_element_type=dtype
        )
        return total + product, None

    total = jnp.zeros((shards, features, height * width * channels), dtype)
    total, _ = lax.scan(add_part, total, jnp.arange(images.shape[1] // size))
    return total.sum(0).T.reshape(kernel_shape).astype(gradient.dtype)
