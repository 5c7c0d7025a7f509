"""The parts of the network: layers with PyTorch's constants, and the residual block.

Layouts are NHWC for images and HWIO for kernels. Parameters and BatchNorm statistics are always float32, also if the
compute dtype is another. Module names are part of the checkpoint format.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Initializer = Callable[..., jax.Array]

EPSILON = 1e-5
"""What BatchNorm adds to the variance, as in PyTorch."""

Convolution = Callable[..., jax.Array]
"""A function with the signature of `jax.lax.conv_general_dilated`."""

COMPUTE = {
    # On Ampere and newer GPUs a float32 convolution runs in TF32 unless the highest precision is requested.
    "float32": (jnp.float32, jax.lax.Precision.HIGHEST),
    "tensorfloat32": (jnp.float32, jax.lax.Precision.HIGH),
    "bfloat16": (jnp.bfloat16, jax.lax.Precision.DEFAULT),
}
"""Compute dtype and matrix-product precision of each `precision` setting."""


def _initializers(name: str, fan_in: int) -> tuple[Initializer, Initializer]:
    """The initialisers of the kernel and bias of a layer; `fan_in` is the number of inputs to each output unit."""
    if name == "pytorch":
        # torch.nn.Conv2d and Linear draw both kernels and biases from U(-b, b) with b = 1/sqrt(fan_in), which has a
        # variance of 1/(3 fan_in). Flax does not tell a bias initialiser the fan_in, so `bound` is computed here.
        kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        bound = 1 / math.sqrt(fan_in)

        def bias(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return kernel, bias
    # He et al. 2015, arXiv:1502.01852, in the fan_out form that torchvision's ResNets use for their convolutions.
    return nn.initializers.variance_scaling(2.0, "fan_out", "normal"), nn.initializers.zeros_init()


def _dirac_kernel(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """The kernel [H, W, C, C] that leaves its input as it is: 1 at the centre from each channel to itself, else 0."""
    height, width, inputs, outputs = shape
    return jnp.zeros(shape, dtype).at[height // 2, width // 2].set(jnp.eye(inputs, outputs, dtype=dtype))


@dataclass(frozen=True)
class LayerFactory:
    """Makes the layers of one network. Its fields are the settings that all of them share."""

    conv_bias: bool
    initializer: str
    dirac: bool
    dtype: Any
    precision: jax.lax.Precision
    convolution: Convolution | None = None
    """A replacement for `lax.conv_general_dilated`, or None."""

    def conv(
        self, in_channels: int, features: int, kernel: int, stride: int, name: str, *, identity: bool = False
    ) -> nn.Conv:
        """A square convolution, padded by (kernel - 1) / 2 on every side as in PyTorch.

        Flax's "SAME" would pad (0, 1) at a stride of 2, and so sample other pixels. With `identity` and the setting
        `dirac`, it begins as the identity.
        """
        if identity and self.dirac:
            kernel_init, bias_init = _dirac_kernel, nn.initializers.zeros_init()
        else:
            kernel_init, bias_init = _initializers(self.initializer, in_channels * kernel**2)
        side = (kernel - 1) // 2
        return nn.Conv(
            features,
            (kernel, kernel),
            strides=(stride, stride),
            padding=((side, side), (side, side)),
            use_bias=self.conv_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=self.dtype,
            precision=self.precision,
            conv_general_dilated=self.convolution,
            name=name,
        )

    def norm(self, train: bool, name: str) -> nn.BatchNorm:
        """BatchNorm with PyTorch's constants: eps 1e-5, and momentum 0.9, which PyTorch writes as 0.1.

        The running variance is the biased one. PyTorch keeps the unbiased one.
        """
        return nn.BatchNorm(
            use_running_average=not train, momentum=0.9, epsilon=EPSILON, dtype=self.dtype, name=name
        )

    def dense(self, in_features: int, features: int, name: str) -> nn.Dense:
        """A linear layer, initialised as in PyTorch. It always has a bias, also without `conv_bias`.

        He's variance of 2/fan_out would give the few outputs of a head a standard deviation of several units.
        """
        kernel_init, bias_init = _initializers("pytorch", in_features)
        return nn.Dense(
            features,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=self.dtype,
            precision=self.precision,
            name=name,
        )


class ResidualBlock(nn.Module):
    """conv3x3(stride) - BN - ReLU - conv3x3 - BN - (+ shortcut) - ReLU.

    The shortcut is the identity, or conv1x1(stride) - BN if the stride is not 1 or the number of channels changes.
    """

    layers: LayerFactory
    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Map [B, H, W, C] to [B, H / stride, W / stride, features]."""
        channels = inputs.shape[-1]
        outputs = self.layers.conv(channels, self.features, 3, self.stride, "conv1")(inputs)
        outputs = nn.relu(self.layers.norm(train, "norm1")(outputs))
        outputs = self.layers.conv(self.features, self.features, 3, 1, "conv2", identity=True)(outputs)
        outputs = self.layers.norm(train, "norm2")(outputs)
        if self.stride != 1 or channels != self.features:
            inputs = self.layers.conv(channels, self.features, 1, self.stride, "shortcut_conv")(inputs)
            inputs = self.layers.norm(train, "shortcut_norm")(inputs)
        return nn.relu(outputs + inputs)
