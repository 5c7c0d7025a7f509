"""The same network in plain PyTorch, as its users would write it: what the JAX network is compared with."""

import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]

from jaxresnet.data.batches import mixes
from jaxresnet.data.info import DatasetInfo
from jaxresnet.errors import UserError
from jaxresnet.plan import Plan


class BasicBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, bias: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=1, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=bias), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """Logits [B, classes] of normalised images [B, C, H, W]."""

    def __init__(self, plan: Plan):
        super().__init__()
        model, bias, colours = plan.config.model, plan.config.model.conv_bias, plan.info.image_shape[2]
        channels = model.stem_channels
        self.conv1 = nn.Conv2d(
            colours, channels, model.stem_kernel, padding=model.stem_kernel // 2, bias=bias
        )
        self.bn1 = nn.BatchNorm2d(channels)
        self.stages = len(model.stage_blocks)
        stages = zip(model.stage_blocks, model.stage_channels, model.stage_strides, strict=True)
        for number, (blocks, width, stride) in enumerate(stages, 1):
            layers = []
            for block in range(blocks):
                layers.append(BasicBlock(channels, width, stride if block == 0 else 1, bias))
                channels = width
            setattr(self, f"layer{number}", nn.Sequential(*layers))
        self.dropout = nn.Dropout(model.dropout_rate)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, plan.info.classes)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        for number in range(1, self.stages + 1):
            out = getattr(self, f"layer{number}")(out)
        return self.linear(torch.flatten(self.pool(self.dropout(out)), 1))


class Normalise(nn.Module):
    """Images uint8 [B, H, W, C] as normalised float32 [B, C, H, W]."""

    mean: Tensor
    std: Tensor

    def __init__(self, info: DatasetInfo):
        super().__init__()
        self.register_buffer("mean", torch.tensor(info.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(info.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images.permute(0, 3, 1, 2) / 255 - self.mean) / self.std


def make_optimizer(plan: Plan, network: nn.Module) -> torch.optim.SGD:
    """PyTorch's SGD, whose weight decay is coupled.

    Raises UserError for a part of a recipe that the twin does not have.
    """
    settings, config = plan.config.optimizer, plan.config
    others = {
        "optimizer.decayed": settings.decayed != "all",
        "optimizer.decoupled": settings.decoupled and settings.weight_decay,
        "optimizer.clip_norm": settings.clip_norm,
        "optimizer.ema_decay": settings.ema_decay,
        "label_smoothing": config.label_smoothing,
        "loss": config.loss != "cross_entropy",
        "freeze_stages": config.freeze_stages,
        "resolution.sizes": config.resolution.sizes,
        "augment.mixup or cutmix": mixes(config),
    }
    if found := [name for name, is_given in others.items() if is_given]:
        raise UserError(f"expected a recipe that the network in PyTorch has, too, found {', '.join(found)}")
    return torch.optim.SGD(
        network.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )
