# SPDX-License-Identifier: Apache-2.0
"""The anchor-based head of YOLOv7 (fact sheet 3): plain, with implicit knowledge, with auxiliary branches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..convs import fused, shell, with_values
from ..errors import OptionError


class ImplicitAdd(nn.Module):
    """Adds a learned vector (1, C, 1, 1), at first normal around 0 with deviation 0.02 (Wang 2021, 2105.04206)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.implicit = nn.Parameter(torch.empty(1, channels, 1, 1).normal_(0.0, 0.02))

    def forward(self, x: Tensor) -> Tensor:
        return self.implicit + x


class ImplicitMul(nn.Module):
    """Multiplies by a learned vector (1, C, 1, 1), at first normal around 1 with deviation 0.02."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.implicit = nn.Parameter(torch.empty(1, channels, 1, 1).normal_(1.0, 0.02))

    def forward(self, x: Tensor) -> Tensor:
        return self.implicit * x


class Detect(nn.Module):
    """Feature maps, one per level -> raw maps (B, A, H_l, W_l, 5 + K): x, y, w, h, objectness, classes before sigmoid.

    `anchors` (L, A, 2) is in units of the level's stride, as in official files; `anchor_grid` has pixels. `implicit`
    adds a vector before each convolution (`ia`) and multiplies by one after it (`im`). `aux_channels` are the widths
    of the maps that auxiliary branches read; those have no implicit vectors.
    """

    anchors: Tensor
    anchor_grid: Tensor

    def __init__(
        self,
        channels: Sequence[int],
        anchors: Sequence[Sequence[float]],
        strides: Sequence[int],
        num_classes: int,
        *,
        implicit: bool = False,
        aux_channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.num_classes = num_classes
        pixels = torch.tensor([list(level) for level in anchors]).view(len(anchors), -1, 2)  # (L, A, 2)
        self.register_buffer("anchors", torch.empty_like(pixels))
        self.register_buffer("anchor_grid", torch.empty_like(pixels)[:, None, :, None, None])
        self.set_anchors(pixels)
        width = pixels.shape[1] * (5 + num_classes)
        self.m = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.m2 = nn.ModuleList(nn.Conv2d(c, width, 1) for c in aux_channels)
        self.ia = nn.ModuleList(ImplicitAdd(c) for c in channels if implicit)
        self.im = nn.ModuleList(ImplicitMul(width) for _ in channels if implicit)
        self.init_biases()

    @property
    def num_anchors(self) -> int:
        """Anchors of a level."""
        return self.anchors.shape[1]

    @torch.no_grad()
    def set_anchors(self, pixels: Tensor) -> None:
        """Other anchors (L, A, 2): widths and heights in pixels of the input."""
        stride = torch.tensor(self.strides, device=pixels.device)[:, None, None]
        self.anchors.copy_(pixels / stride)
        self.anchor_grid.copy_(pixels[:, None, :, None, None])

    @torch.no_grad()
    def init_biases(self, frequencies: Tensor | None = None) -> None:
        """Add to the biases what 8 objects in a 640 x 640 picture want; classes at 0.6 / K, or as frequent as told."""
        aux = zip(self.m2, self.strides, strict=False)
        for conv, stride in [*zip(self.m, self.strides, strict=True), *aux]:
            bias = conv.bias.view(self.num_anchors, -1)  # type: ignore[operator, union-attr]
            bias[:, 4] += math.log(8 / (640 / stride) ** 2)
            if frequencies is None:
                bias[:, 5:] += math.log(0.6 / (self.num_classes - 0.99))
            else:
                bias[:, 5:] += torch.log(frequencies / frequencies.sum())

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The lead branches on their maps, finest level first."""
        found = []
        for level, x in enumerate(maps):
            x = self.m[level](self.ia[level](x) if self.ia else x)
            found.append(self._split(self.im[level](x) if self.im else x))
        return tuple(found)

    def aux(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The auxiliary branches on their maps, finest level first."""
        return tuple(self._split(conv(x)) for conv, x in zip(self.m2, maps, strict=True))

    def _split(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape  # (B, A (5 + K), H, W)
        return x.view(batch, self.num_anchors, 5 + self.num_classes, height, width).permute(0, 1, 3, 4, 2)

    def extra_repr(self) -> str:
        return f"strides={self.strides}, num_classes={self.num_classes}"


@fused.register
@torch.no_grad()
def _(head: Detect) -> nn.Module | None:
    """Implicit vectors go into the convolutions, the added one first; auxiliary branches go. Anchors stay."""
    if not head.ia and not head.m2:
        return None
    other = next((type(conv).__name__ for conv in head.m if not isinstance(conv, nn.Conv2d)), "")
    if other and head.ia:
        text = f"a {other} stands for the head's convolutions, where implicit vectors cannot go: fuse first, or skip it"
        raise OptionError("fuse", text)
    new = shell(head)
    new.ia, new.im, new.m2 = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
    convs: list[nn.Module] = list(head.m)
    for level, (before, after) in enumerate(zip(head.ia, head.im, strict=True)):
        convs[level] = _merged(before, convs[level], after)  # type: ignore[arg-type]
    new.m = nn.ModuleList(convs)
    return new


def _merged(before: ImplicitAdd, conv: nn.Conv2d, after: ImplicitMul) -> nn.Conv2d:
    """after(conv(before(x))) as one 1x1 convolution, worked out in float64."""
    weight, bias = conv.weight.double(), conv.bias.double()  # type: ignore[union-attr]
    bias = bias + weight[:, :, 0, 0] @ before.implicit.double().flatten()
    factor = after.implicit.double().flatten()
    return with_values(conv, weight * factor[:, None, None, None], bias * factor)
