# SPDX-License-Identifier: Apache-2.0
"""Learned absolute positions for another grid: what changes when a model meets pictures of another size.

Three rules are in use, and the same weights give different models by them: DeiT and LV-ViT interpolate bicubically,
timm since 0.9 bicubically with antialiasing, older timm and DynamicViT bilinearly. All keep the rows of the prefix
tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import OptionError, closest

KERNELS = ("bicubic", "bicubic-antialias", "bilinear")
Grid = tuple[int, int]


def resize(
    positions: Tensor, grid: Grid, *, prefix: int = 0, source: Grid | None = None, kernel: str = "bicubic"
) -> Tensor:
    """(1, prefix + N, C) for the grid `source` -> (1, prefix + H * W, C) for `grid` = (H, W); equal grids: unchanged.

    `source` is the square that N makes where it is not given. OptionError for an unknown kernel, or an N that is
    neither a square nor the size of `source`.
    """
    check_kernel(kernel)
    rows = positions.shape[1] - prefix
    source = source or square(rows)
    if source is None or math.prod(source) != rows:
        text = f"{rows} positions make no square" if source is None else f"{rows} positions are not a grid of {source}"
        raise OptionError("pos_embed", f"{text}; say which grid (height, width) they were learned for")
    if source == tuple(grid):
        return positions
    fixed, moving = positions[:, :prefix], positions[:, prefix:]
    field = moving.reshape(1, *source, -1).permute(0, 3, 1, 2)  # (1, C, H, W)
    moved = resize_map(field, grid, kernel=kernel).permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([fixed, moved], dim=1)


def resize_map(field: Tensor, grid: Grid, *, kernel: str = "bicubic") -> Tensor:
    """A map of positions (1, C, h, w) -> (1, C, H, W) for `grid` = (H, W); an equal one comes back unchanged."""
    check_kernel(kernel)
    if tuple(field.shape[-2:]) == tuple(grid):
        return field
    mode = kernel.partition("-")[0]
    antialias = kernel.endswith("antialias")
    return F.interpolate(field.float(), size=grid, mode=mode, align_corners=False, antialias=antialias).to(field.dtype)


def square(count: int) -> Grid | None:
    """The square grid of that many places, or None."""
    side = math.isqrt(count)
    return (side, side) if side > 0 and side * side == count else None


def check_kernel(kernel: str) -> None:
    """OptionError unless it is one of KERNELS."""
    if kernel not in KERNELS:
        raise OptionError("resize", f"no {kernel!r}; {closest(kernel, KERNELS)}Known: {', '.join(KERNELS)}")
