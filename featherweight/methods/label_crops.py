# SPDX-License-Identifier: Apache-2.0
"""Cutting a label map as its picture was cut, turned and mirrored: pure functions of maps and geometry.

Each cell is the mean of places in it, one in each direction for every cell of the map that it covers, each between four
cells of the map, as RoIAlign does it (He 2017, 1703.06870); a turned picture has turned cells. The published code takes
the crop with its axes exchanged, which `transposed` does as well.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cropped(
    scores: Tensor, classes: Tensor, geometry: Tensor, crop: Tensor, grid: tuple[int, int], num_classes: int
) -> Tensor:
    """Maps (B, k, h, w), cut as their pictures were -> logits (B, H * W, C) of the cells of a grid (H, W).

    geometry (B, 2, 3), crop (B, 4): as in a batch of `data.Batches`. What is outside the crop was never seen and counts
    as 0 for every class.
    """
    b, _, h, w = scores.shape
    places = (t.flatten(2).transpose(1, 2) for t in (classes, scores))  # (B, h * w, k)
    dense = scores.new_zeros(b, h * w, num_classes).scatter(2, *places)
    return _weights(geometry.float(), crop.float(), grid, (h, w)) @ dense


def _weights(geometry: Tensor, crop: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """How much of each cell of the map (h, w) is in each cell of the grid (H, W): (B, H * W, h * w)."""
    b, (h, w), (rows, columns) = len(geometry), size, grid
    scale = geometry.new_tensor([w, h])
    sides = (geometry[:, :, :2] * scale[:, None]).norm(dim=1)  # (B, 2): width and height of the picture, in map cells
    counts = (sides / geometry.new_tensor([columns, rows]) - 1e-3).ceil().clamp(min=1)  # places per cell, each way
    x, share_x = _places(columns, counts[:, 0])  # (B, W * nx)
    y, share_y = _places(rows, counts[:, 1])
    here = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None], torch.ones_like(x[:, None, :])), dim=-1)
    there = torch.einsum("bij,byxj->byxi", geometry, here)  # (B, H * ny, W * nx, 2) in the file
    inside = ((there >= crop[:, None, None, :2] - 1e-5) & (there <= crop[:, None, None, 2:] + 1e-5)).all(-1)
    share = inside * share_y[:, :, None] * share_x[:, None, :]
    last = scale - 1
    where = (there * scale - 0.5).clamp(min=0).minimum(last)
    low = where.floor()
    part = where - low
    total = geometry.new_zeros(b, rows * columns * h * w)
    cell_y = torch.arange(y.shape[1], device=y.device) * rows // y.shape[1]
    cell_x = torch.arange(x.shape[1], device=x.device) * columns // x.shape[1]
    cell = (cell_y[:, None] * columns + cell_x[None]) * (h * w)  # (H * ny, W * nx)
    for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
        corner = (low + low.new_tensor([right, down])).minimum(last).long()
        of_x = part[..., 0] if right else 1 - part[..., 0]
        of_y = part[..., 1] if down else 1 - part[..., 1]
        index = cell + corner[..., 1] * w + corner[..., 0]
        total.scatter_add_(1, index.flatten(1), (share * of_x * of_y).flatten(1))
    return total.view(b, rows * columns, h * w)


def _places(cells: int, counts: Tensor) -> tuple[Tensor, Tensor]:
    """For each picture `counts` (B,) places in every cell of an axis, and their shares: (B, cells * most) each."""
    most = int(counts.max())
    number = torch.arange(most, device=counts.device, dtype=counts.dtype)
    inner = (number + 0.5) / counts[:, None]  # (B, most)
    share = (number < counts[:, None]) / counts[:, None]
    cell = torch.arange(cells, device=counts.device, dtype=counts.dtype)
    return ((cell[:, None] + inner[:, None]) / cells).flatten(1), share[:, None].expand(-1, cells, -1).flatten(1)


def transposed(geometry: Tensor, crop: Tensor) -> tuple[Tensor, Tensor]:
    """Geometry and crop as the published code takes them: the crop's axes exchanged, all after it as it should be."""
    left, top, right, bottom = crop.unbind(1)
    zero, one = torch.zeros_like(left), torch.ones_like(left)

    def matrix(x: Tensor, y: Tensor, width: Tensor, height: Tensor) -> Tensor:
        rows = [torch.stack(row, dim=1) for row in ((width, zero, x), (zero, height, y), (zero, zero, one))]
        return torch.stack(rows, dim=1)  # (B, 3, 3)

    whole = torch.cat([geometry, torch.stack([zero, zero, one], dim=1)[:, None]], dim=1)
    after = torch.linalg.solve(matrix(left, top, right - left, bottom - top), whole)
    wrong = matrix(top, left, bottom - top, right - left) @ after
    return wrong[:, :2], torch.stack([top, left, bottom, right], dim=1)
