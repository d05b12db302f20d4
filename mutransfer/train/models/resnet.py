"""A small residual network for small images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mutransfer.errors import ConfigError
from mutransfer.train.models.init import init_standard
from mutransfer.train.settings import check_whole


@dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a residual network.

    Attributes:
        width: channels of the stem and the first stage; each further stage doubles them.
        channels, outputs: of the images, and of the classifier: from the data.
        depth: blocks per stage.
        stages: number of stages; each but the first halves the image.
    """

    width: int
    channels: int
    outputs: int
    image_size: int = 8
    depth: int = 1
    stages: int = 3

    def __post_init__(self) -> None:
        check_whole("model", self, "width", "channels", "outputs", "image_size", "depth", "stages")
        if self.image_size < 2**self.stages:
            raise ConfigError(
                f"model.stages={self.stages} halve an image of {self.image_size} pixels to less than 2, where "
                "BatchNorm has nothing to average. Use fewer stages or larger images."
            )


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut: the identity, or a projection where channels or image size change."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(channels, out, 3, stride), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = _conv(out, out, 3, 1), nn.BatchNorm2d(out)
        identity = channels == out and stride == 1
        self.shortcut = (
            nn.Identity() if identity else nn.Sequential(_conv(channels, out, 1, stride), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        branch = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(branch)))


class ResNet(nn.Module):
    """Images (batch, channels, height, width) to logits (batch, outputs).

    >>> ResNet(ResNetConfig(width=8, channels=1, outputs=10))(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem, self.norm = _conv(config.channels, config.width, 3, 1), nn.BatchNorm2d(config.width)
        self.stages = nn.ModuleList(_stage(config, index) for index in range(config.stages))
        self.readout = nn.Linear(config.width * 2 ** (config.stages - 1), config.outputs)
        init_standard(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.readout(x.mean(dim=(2, 3)))
        return logits

    def example_inputs(self, batch: int = 1, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        size = self.config.image_size
        return (torch.randn(batch, self.config.channels, size, size, generator=generator),)


def _stage(config: ResNetConfig, index: int) -> nn.Sequential:
    channels = config.width * 2**index
    first = ResidualBlock(channels if index == 0 else channels // 2, channels, stride=1 if index == 0 else 2)
    return nn.Sequential(first, *[ResidualBlock(channels, channels, stride=1) for _ in range(config.depth - 1)])


def _conv(channels: int, out: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, stride=stride, padding=kernel // 2, bias=False)
