# SPDX-License-Identifier: Apache-2.0
"""Residual networks of basic blocks (He 2015, 1512.03385), for small images and for ImageNet's: convolutional teachers.

Names and layouts are those of torchvision's `resnet18`/`resnet34`, whose checkpoints load by name. Bottleneck blocks
are not here: teachers of that size come from timm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..convs import folded_pairs, fused
from ..errors import OptionError


@dataclass(frozen=True)
class ResNetConfig:
    num_classes: int = 1000
    widths: tuple[int, ...] = (64, 128, 256, 512)  # channels of the stages; each but the first halves the resolution
    depths: tuple[int, ...] = (2, 2, 2, 2)  # basic blocks in each stage
    stem: str = "imagenet"  # 7x7 stride 2 and max pooling; "small": one 3x3 at full resolution
    image_size: tuple[int, int] = (224, 224)  # what it was trained for; any size runs
    in_chans: int = 3

    def __post_init__(self) -> None:
        size: Any = self.image_size
        object.__setattr__(self, "image_size", (size, size) if isinstance(size, int) else tuple(size))
        for name in ("widths", "depths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise OptionError("image_size", f"{self.image_size} is not a height and a width")
        if not 1 <= len(self.widths) <= 4 or len(self.widths) != len(self.depths):
            raise OptionError("depths", f"{self.depths} and widths {self.widths} must name the same 1 to 4 stages")
        if self.stem not in ("imagenet", "small"):
            raise OptionError("stem", f"{self.stem!r} is not one of imagenet, small")


class BasicBlock(nn.Module):
    """(B, C, H, W) -> (B, C', H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(x + shortcut)


class ResNet(nn.Module):
    """Image (B, 3, H, W) -> logits (B, K)."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        large = config.stem == "imagenet"
        self.conv1 = nn.Conv2d(
            config.in_chans, config.widths[0], 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(config.widths[0])
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        channels = config.widths[0]
        for stage, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            blocks = [
                BasicBlock(channels if i == 0 else width, width, 2 if i == 0 and stage else 1) for i in range(depth)
            ]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            channels = width
        self.fc = nn.Linear(channels, config.num_classes)
        self._init_weights()

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for stage in range(len(self.config.widths)):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))

    @torch.no_grad()
    def _init_weights(self) -> None:
        """He initialization; the second norm of a block starts at 0, so that the block starts as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)


fused.register(BasicBlock)(folded_pairs)
fused.register(ResNet)(folded_pairs)
