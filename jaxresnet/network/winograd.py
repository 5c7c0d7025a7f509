"""3x3 convolutions with fewer multiplications: Winograd's algorithm, in loops whose data fits a CPU's cache.

One dimension shows the idea. Two neighbouring outputs of a kernel (g0, g1, g2) over the inputs d0 to d3 are

    y0 = d0 g0 + d1 g1 + d2 g2        y1 = d1 g0 + d2 g1 + d3 g2.

These are six multiplications as written, but four products are enough:

    m1 = (d0 - d2) g0                     m4 = (d1 - d3) g2
    m2 = (d1 + d2) (g0 + g1 + g2) / 2     m3 = (d2 - d1) (g0 - g1 + g2) / 2
    y0 = m1 + m2 + m3                     y1 = m2 - m3 - m4.

So there are three stages. A few additions transform the inputs and the kernel (matrices B^T and G). The results are
multiplied entry by entry. More additions make the outputs of the products (A^T). In two dimensions this is done along
the rows and then along the columns. A tile of m x m outputs needs (m + 2)^2 products in place of 9 m^2: 16 in place of
36 for m = 2, and 36 in place of 144 for m = 4. The kernel is transformed once for all tiles. The products of all tiles
and channels together are (m + 2)^2 matrix products, one for each entry. They take most of the time, and matrix products
are what a CPU does best.

The cost is rounding, which grows with m. Outputs and gradients of inputs use m = 2. Gradients of kernels use m = 4,
because no other layer is computed from them. The algorithm and its matrices are those of Lavin and Gray, Fast
Algorithms for Convolutional Neural Networks (arXiv:1509.09308).
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_TILES = 128
"""Tiles in one matrix product. Two operands of 36 entries with 64 channels take 2.4 MB, about a core's cache."""


class _Transform(NamedTuple):
    """The matrices of F(m x m, 3 x 3): a tile of m x m outputs is A^T [(G g G^T) * (B^T d B)] A.

    g is the 3 x 3 kernel, d the (m + 2) x (m + 2) inputs of the tile, and * multiplies entry by entry.
    """

    inputs: np.ndarray  # B^T
    kernel: np.ndarray  # G
    outputs: np.ndarray  # A^T


_TWO = _Transform(
    inputs=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    kernel=np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
    outputs=np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
)
"""F(2x2, 3x3): 2.25 times fewer multiplications, and in float32 about twice the rounding error of the definition."""

_FOUR = _Transform(
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
"""F(4x4, 3x3): 4 times fewer multiplications, and about ten times the rounding error. For gradients of kernels only."""


def _combine(matrix: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    """The product of a small constant matrix and a vector of arrays, computed as sums of scaled arrays."""
    combinations = []
    for row in matrix:
        terms = [part if c == 1 else float(c) * part for c, part in zip(row, parts, strict=True) if c]
        combinations.append(functools.reduce(jnp.add, terms))
    return combinations


def _transform(matrix: np.ndarray, images: jax.Array, step: int) -> jax.Array:
    """M t M^T for every square tile t of images [S, N, H, W, C], where M is `matrix` of shape [n, side of t].

    A tile starts at every `step` rows and columns. Returns [S, n * n, N * tiles, C].
    """
    size = matrix.shape[1]
    height, width = (side - size + 1 for side in images.shape[2:4])
    rows = jnp.stack(_combine(matrix, [images[:, :, i : i + height : step] for i in range(size)]), 1)
    planes = jnp.stack(_combine(matrix, [rows[:, :, :, :, j : j + width : step] for j in range(size)]), 2)
    return planes.reshape(len(images), len(matrix) ** 2, -1, images.shape[-1])


def in_parts(images: jax.Array, shards: int, most: int) -> tuple[jax.Array, int]:
    """Divide images [B, ...] into shards.

    Returns them as [shards, B / shards, ...], and how many images of each shard to take at a time: the largest divisor
    of B / shards that is at most `most`, and at least 1. If `shards` does not divide B, their common divisor is used.
    """
    shards = math.gcd(shards, images.shape[0])
    each = images.shape[0] // shards
    size = max(n for n in range(1, max(1, most) + 1) if each % n == 0)
    return images.reshape(shards, each, *images.shape[1:]), size


def part_of(images: jax.Array, index: jax.Array, size: int) -> jax.Array:
    """Part number `index` of images [shards, B / shards, ...]: `size` images of each shard."""
    return lax.dynamic_slice_in_dim(images, index * size, size, 1)


def convolution(inputs: jax.Array, kernel: jax.Array, precision: lax.PrecisionLike, shards: int) -> jax.Array:
    """The convolution [B, H, W, D] of inputs [B, H, W, C] with a kernel [3, 3, C, D], by F(2x2, 3x3).

    The stride and the padding are 1. H and W must be even. `shards` is the number of devices that the batch is sharded
    over.
    """
    batch, height, width, channels = inputs.shape
    features, tiles = kernel.shape[3], height * width // 4
    images, size = in_parts(inputs, shards, _TILES // tiles)
    shards = len(images)
    # Transformed by additions, like images: products with matrices of 3 columns took a twelfth of the train step.
    kernels = _transform(_TWO.kernel, kernel.reshape(1, 1, 3, 3, -1), 3).reshape(16, channels, features)
    kernels = jnp.broadcast_to(kernels, (shards, 16, channels, features))

    def convolve(_: None, index: jax.Array) -> tuple[None, jax.Array]:
        x = jnp.pad(part_of(images, index, size), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
        products = lax.dot_general(
            _transform(_TWO.inputs, x, 2), kernels, (((3,), (2,)), ((0, 1), (0, 1))), precision=precision
        )
        products = products.reshape(shards, 4, 4, size, height // 2, width // 2, features)
        rows = jnp.stack(_combine(_TWO.outputs, [products[:, i] for i in range(4)]), 4)
        outputs = jnp.stack(_combine(_TWO.outputs, [rows[:, j] for j in range(4)]), 5)
        return None, outputs.reshape(shards, size, height, width, features)

    _, outputs = lax.scan(convolve, None, jnp.arange(images.shape[1] // size))
    return outputs.swapaxes(0, 1).reshape(batch, height, width, features)


def kernel_gradient(
    inputs: jax.Array, gradient: jax.Array, precision: lax.PrecisionLike, shards: int
) -> jax.Array:
    """Gradient [3, 3, C, D] of a loss with respect to the kernel of `convolution`, by F(4x4, 3x3).

    `inputs` [B, H, W, C] are the inputs of the convolution, and `gradient` [B, H, W, D] is the gradient with respect to
    its outputs. H and W must be multiples of 4.
    """
    _, height, width, channels = inputs.shape
    features, tiles = gradient.shape[3], height * width // 16
    images, size = in_parts(inputs, shards, _TILES // tiles)
    gradients, _ = in_parts(gradient, shards, _TILES // tiles)
    shards = len(images)

    def add_part(total: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        x = jnp.pad(part_of(images, index, size), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
        product = lax.dot_general(
            _transform(_FOUR.outputs.T, part_of(gradients, index, size), 4),
            _transform(_FOUR.inputs, x, 4),
            (((2,), (2,)), ((0, 1), (0, 1))),
            precision=precision,
        )
        return total + product, None

    total = jnp.zeros((shards, 36, features, channels), gradient.dtype)
    total, _ = lax.scan(add_part, total, jnp.arange(images.shape[1] // size))
    # Transformed before the sum over the shards, so that devices exchange a quarter of the numbers.
    total = _transform(_FOUR.kernel.T, total.reshape(shards, 1, 6, 6, -1), 6).sum(0)
    return total.reshape(3, 3, features, channels).swapaxes(2, 3)
