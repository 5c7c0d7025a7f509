"""The whole network: stem, stages of residual blocks, head."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxresnet.network.blocks import COMPUTE, Convolution, LayerFactory, ResidualBlock
from jaxresnet.plan import Plan


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
    frozen_stages: int = 0
    """With 1 or more, the stem and that many stages are as without `train`, also with it."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits [B, classes], at least float32, of normalised images [B, H, W, C].

        With `train`, BatchNorm normalises by the batch and updates the collection "batch_stats", and dropout takes
        random numbers from the stream "dropout".
        """
        outputs = images.astype(self.layers.dtype)
        outputs = self.layers.conv(images.shape[-1], self.stem_channels, self.stem_kernel, 1, "stem_conv")(
            outputs
        )
        outputs = nn.relu(self.layers.norm(train and not self.frozen_stages, "stem_norm")(outputs))
        stages = zip(self.stage_blocks, self.stage_channels, self.stage_strides, strict=True)
        for stage, (blocks, features, stride) in enumerate(stages):
            for block in range(blocks):
                outputs = ResidualBlock(
                    self.layers, features, stride if block == 0 else 1, name=f"stage{stage}_block{block}"
                )(outputs, train=train and stage >= self.frozen_stages)
        outputs = nn.Dropout(self.dropout_rate, deterministic=not train)(outputs)
        outputs = jnp.mean(outputs, axis=(1, 2))
        outputs = self.layers.dense(outputs.shape[-1], self.classes, "head")(outputs)
        return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


def build_model(plan: Plan, convolution: Convolution | None = None) -> ResNet:
    """The network that a plan describes.

    `convolution` replaces XLA's own. `jaxresnet.network.cpu_convolution` makes one that is faster on a CPU. It changes
    no name, shape or initial value of a parameter, and it changes results by rounding only.
    """
    model = plan.config.model
    dtype, precision = COMPUTE[plan.config.precision]
    return ResNet(
        layers=LayerFactory(model.conv_bias, model.initializer, model.dirac, dtype, precision, convolution),
        stem_kernel=model.stem_kernel,
        stem_channels=model.stem_channels,
        stage_blocks=model.stage_blocks,
        stage_channels=model.stage_channels,
        stage_strides=model.stage_strides,
        dropout_rate=model.dropout_rate,
        classes=plan.info.classes,
        frozen_stages=plan.config.freeze_stages,
    )


def frozen_modules(plan: Plan) -> frozenset[str]:
    """The names of the modules that are not trained: the stem and the first `freeze_stages` stages; none if that is 0.

    They are keys of the network's "params" and "batch_stats".
    """
    config = plan.config
    if not config.freeze_stages:
        return frozenset()
    stages = enumerate(config.model.stage_blocks[: config.freeze_stages])
    blocks = {f"stage{stage}_block{block}" for stage, blocks in stages for block in range(blocks)}
    return frozenset(blocks | {"stem_conv", "stem_norm"})
