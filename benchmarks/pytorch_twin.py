"""The same network in plain PyTorch, as its users would write it: what the JAX network is compared with."""

import torch
from torch import Tensor, nn

from jaxresnet.config import Config


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
    def __init__(self, config: Config):
        super().__init__()
        model, bias = config.model, config.model.conv_bias
        channels = model.stem_channels
        self.conv1 = nn.Conv2d(3, channels, model.stem_kernel, padding=model.stem_kernel // 2, bias=bias)
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
        self.linear = nn.Linear(channels, len(config.dataset.class_names))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        for number in range(1, self.stages + 1):
            out = getattr(self, f"layer{number}")(out)
        return self.linear(torch.flatten(self.pool(self.dropout(out)), 1))


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.SGD:
    """PyTorch's SGD, whose weight decay is coupled."""
    settings = config.optimizer
    return torch.optim.SGD(
        model.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
