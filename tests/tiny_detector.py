# SPDX-License-Identifier: Apache-2.0
"""A detector that takes no time: two levels, strides 4 and 8; and one that finds what it is told to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from featherweight.convs import ConvNorm
from featherweight.models.yolov7_head import Detect

ANCHORS = [[28, 30, 34, 29, 32, 40], [40, 44, 60, 50, 56, 68]]  # pixels; large: neighbors overlap


class Small(nn.Module):
    """Two levels, strides 4 and 8: what every detector has, in a second."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNorm(3, 8, 3, 2), ConvNorm(8, 16, 3, 2))
        self.down = ConvNorm(16, 16, 3, 2)
        self.up = nn.Upsample(scale_factor=2.0)
        self.head = Detect([32, 16], ANCHORS, [4, 8], num_classes, implicit=True)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        fine = self.stem(images)
        coarse = self.down(fine)
        maps: tuple[Tensor, ...] = self.head([torch.cat([fine, self.up(coarse)], dim=1), coarse])
        return maps


def small(num_classes: int = 3) -> Small:
    torch.manual_seed(0)
    model = Small(num_classes).eval()
    for conv in model.head.m:
        nn.init.normal_(conv.weight, std=1.0)  # type: ignore[arg-type]
        conv.bias.data.view(3, -1)[:, 4] += 6.0  # type: ignore[union-attr, operator]
    return model


class Told(nn.Module):
    """Finds the same boxes in every picture: rows [x1, y1, x2, y2, score, class] in pixels of the input."""

    def __init__(self, rows: Sequence[Sequence[float]], num_classes: int = 3) -> None:
        super().__init__()
        self.rows = rows
        self.head = Detect([1, 1], ANCHORS, [4, 8], num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        batch, _, height, width = images.shape
        shape = (3, 5 + self.head.num_classes)
        maps = [torch.full((batch, shape[0], height // s, width // s, shape[1]), -20.0) for s in self.head.strides]
        for x1, y1, x2, y2, score, label in self.rows:
            column, row = (x1 + x2) / 8, (y1 + y2) / 8  # of the level with stride 4, in cells
            cell = maps[0][:, 0, int(row), int(column)]
            wide, high = self.head.anchors[0, 0].tolist()
            shares = [column % 1 + 0.5, row % 1 + 0.5, math.sqrt((x2 - x1) / 4 / wide), math.sqrt((y2 - y1) / 4 / high)]
            for i, share in enumerate(shares):
                cell[:, i] = math.log(share / 2 / (1 - share / 2))
            cell[:, 4] = math.log(score / (1 - score))
            cell[:, 5 + int(label)] = 20.0
        return tuple(maps)
