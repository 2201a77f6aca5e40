# SPDX-License-Identifier: Apache-2.0
"""The layers of YOLOv7's graphs (fact sheet 1); what they are called in a state dict is official.

Convolution blocks are in `convs`; SPPCSPC, DownC and RepConv use SiLU whatever the model's activation is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..convs import ConvNorm


class ReOrg(nn.Module):
    """Pixels to channels: (B, C, H, W) -> (B, 4C, H/2, W/2); even rows and columns first, then the rows' parity."""

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return torch.cat(parts, dim=1)


class Cat(nn.Module):
    """Channel concatenation in the order given."""

    def forward(self, *maps: Tensor) -> Tensor:
        return torch.cat(maps, dim=1)


class Add(nn.Module):
    """The sum of maps of one shape."""

    def forward(self, *maps: Tensor) -> Tensor:
        total = maps[0]
        for x in maps[1:]:
            total = total + x
        return total


class Up(nn.Module):
    """Nearest neighbor, twice the size."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Widest(nn.Module):
    """Max pool of a k x k window, stride 1, same size: along rows, then along columns, which is the same maximum."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        k = self.kernel
        return F.max_pool2d(F.max_pool2d(x, (1, k), 1, (0, k // 2)), (k, 1), 1, (k // 2, 0))

    def extra_repr(self) -> str:
        return f"{self.kernel}"


class SPPCSPC(nn.Module):
    """Spatial pyramid pooling beside a shortcut: (B, C, H, W) -> (B, C', H, W).

    The windows 5, 9 and 13 are pools of 5 after each other: a maximum of maxima, equal to pools beside each other.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        c = outputs
        self.cv1, self.cv2 = ConvNorm(inputs, c), ConvNorm(inputs, c)
        self.cv3, self.cv4 = ConvNorm(c, c, 3), ConvNorm(c, c)
        self.cv5, self.cv6 = ConvNorm(4 * c, c), ConvNorm(c, c, 3)
        self.cv7 = ConvNorm(2 * c, c)
        self.pool = Widest(5)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.cv4(self.cv3(self.cv1(x)))]
        for _ in range(3):
            maps.append(self.pool(maps[-1]))
        main = self.cv6(self.cv5(torch.cat(maps, dim=1)))
        return self.cv7(torch.cat([main, self.cv2(x)], dim=1))


class DownC(nn.Module):
    """Half the resolution: a strided convolution beside a max pool, (B, C, H, W) -> (B, C', H/2, W/2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.cv1 = ConvNorm(inputs, inputs)
        self.cv2 = ConvNorm(inputs, outputs // 2, 3, 2)
        self.cv3 = ConvNorm(inputs, outputs // 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.cv2(self.cv1(x)), self.cv3(F.max_pool2d(x, 2))], dim=1)
