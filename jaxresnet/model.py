"""The network: linen residual blocks with BatchNorm state, built from a ModelConfig.

Layouts are NHWC for images and HWIO for kernels. Parameters and BatchNorm statistics are float32
whatever the compute dtype. Module names are part of the checkpoint format.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from jaxresnet.config import Config
from jaxresnet.convolution import make_convolution

Initializer = Callable[..., jax.Array]

COMPUTE = {
    # On Ampere and newer GPUs a float32 convolution runs as TF32 unless the highest precision is asked for.
    "float32": (jnp.float32, jax.lax.Precision.HIGHEST),
    "tensorfloat32": (jnp.float32, jax.lax.Precision.HIGH),
    "bfloat16": (jnp.bfloat16, jax.lax.Precision.DEFAULT),
}
"""Compute dtype and matrix-product precision of each `precision` setting."""


def _initializers(name: str, fan_in: int) -> tuple[Initializer, Initializer]:
    """Kernel and bias initialisers of a layer whose output unit sees `fan_in` inputs."""
    if name == "pytorch":
        # torch.nn.Conv2d and Linear draw kernels and biases alike from U(-b, b), b = 1/sqrt(fan_in);
        # a variance of 1/(3 fan_in) gives that bound. A flax bias initialiser never sees the fan_in.
        kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        bound = 1 / math.sqrt(fan_in)

        def bias(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return kernel, bias
    # He et al. 2015, arXiv:1502.01852, in its fan_out form, as torchvision's ResNets use it.
    return nn.initializers.variance_scaling(2.0, "fan_out", "normal"), nn.initializers.zeros_init()


@dataclass(frozen=True)
class LayerFactory:
    """What all layers of one network share, so that each call below says only what is its own."""

    conv_bias: bool
    initializer: str
    dtype: Any
    precision: jax.lax.Precision
    shards: int = 1

    def conv(self, in_channels: int, features: int, kernel: int, stride: int, name: str) -> nn.Conv:
        """A convolution padded like PyTorch's, (kernel - 1) / 2 on every side.

        Flax's "SAME" would pad (0, 1) where the stride is 2, and so sample other pixels.
        """
        kernel_init, bias_init = _initializers(self.initializer, in_channels * kernel**2)
        return nn.Conv(
            features,
            (kernel, kernel),
            strides=(stride, stride),
            padding=[((kernel - 1) // 2,) * 2] * 2,
            use_bias=self.conv_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=self.dtype,
            precision=self.precision,
            conv_general_dilated=make_convolution(self.shards),
            name=name,
        )

    def norm(self, train: bool, name: str) -> nn.BatchNorm:
        """BatchNorm with PyTorch's constants: eps 1e-5; its momentum 0.1 is flax's 0.9.

        The running variance is the biased one; PyTorch's is the unbiased one.
        """
        return nn.BatchNorm(
            use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype, name=name
        )

    def dense(self, in_features: int, features: int, name: str) -> nn.Dense:
        """A linear layer, which always has a bias."""
        kernel_init, bias_init = _initializers(self.initializer, in_features)
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

    The shortcut is the identity, or conv1x1(stride) - BN where the stride or the channels change.
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
        outputs = self.layers.conv(self.features, self.features, 3, 1, "conv2")(outputs)
        outputs = self.layers.norm(train, "norm2")(outputs)
        if self.stride != 1 or channels != self.features:
            inputs = self.layers.conv(channels, self.features, 1, self.stride, "shortcut_conv")(inputs)
            inputs = self.layers.norm(train, "shortcut_norm")(inputs)
        return nn.relu(outputs + inputs)


class ResNet(nn.Module):
    """Stem, stages of residual blocks, dropout, average pool over the whole map, linear head."""

    layers: LayerFactory
    stem_kernel: int
    stem_channels: int
    stage_blocks: tuple[int, ...]
    stage_channels: tuple[int, ...]
    stage_strides: tuple[int, ...]
    dropout_rate: float
    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits [B, classes], at least float32, of normalised images [B, H, W, C].

        With `train`, BatchNorm uses the batch and updates the collection "batch_stats", and dropout
        draws from the random stream "dropout".
        """
        outputs = images.astype(self.layers.dtype)
        outputs = self.layers.conv(images.shape[-1], self.stem_channels, self.stem_kernel, 1, "stem_conv")(
            outputs
        )
        outputs = nn.relu(self.layers.norm(train, "stem_norm")(outputs))
        stages = zip(self.stage_blocks, self.stage_channels, self.stage_strides, strict=True)
        for stage, (blocks, features, stride) in enumerate(stages):
            for block in range(blocks):
                outputs = ResidualBlock(
                    self.layers, features, stride if block == 0 else 1, name=f"stage{stage}_block{block}"
                )(outputs, train=train)
        outputs = nn.Dropout(self.dropout_rate, deterministic=not train)(outputs)
        outputs = jnp.mean(outputs, axis=(1, 2))
        outputs = self.layers.dense(outputs.shape[-1], self.classes, "head")(outputs)
        return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


def build_model(config: Config) -> ResNet:
    """The network that the configuration describes."""
    model = config.model
    dtype, precision = COMPUTE[config.precision]
    return ResNet(
        layers=LayerFactory(model.conv_bias, model.initializer, dtype, precision, config.cpu_devices),
        stem_kernel=model.stem_kernel,
        stem_channels=model.stem_channels,
        stage_blocks=model.stage_blocks,
        stage_channels=model.stage_channels,
        stage_strides=model.stage_strides,
        dropout_rate=model.dropout_rate,
        classes=len(config.dataset.class_names),
    )


@dataclass(frozen=True)
class LayerInfo:
    """One layer of the network, as `describe` finds it.

    `macs` counts the multiply-accumulates of convolutions and linear layers for one image; it is 0
    for other layers, whose work is small beside them.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


def describe(config: Config) -> list[LayerInfo]:
    """Every layer with parameters, in the order in which the data passes them; computes nothing."""
    model = build_model(config)
    image = jax.ShapeDtypeStruct((1, *config.dataset.image_shape), jnp.float32)
    calls: list[tuple[nn.Module, tuple[int, ...]]] = []

    def record(next_call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        output = next_call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(
            context.module, nn.Conv | nn.Dense | nn.BatchNorm
        ):
            calls.append((context.module.clone(), context.module.path, output.shape[1:]))
        return output

    with nn.intercept_methods(record):
        variables = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), image)
    params = flatten_dict(variables["params"])
    layers = []
    for module, path, shape in calls:
        own = {key[-1]: leaf for key, leaf in params.items() if key[:-1] == path}
        # Each output unit takes one product per entry of its slice of the kernel.
        macs = math.prod(shape[:-1]) * own["kernel"].size if "kernel" in own else 0
        layers.append(
            LayerInfo(
                name="/".join(path),
                kind=type(module).__name__,
                output_shape=shape,
                parameters=sum(leaf.size for leaf in own.values()),
                macs=macs,
            )
        )
    return layers
