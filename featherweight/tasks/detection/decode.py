# SPDX-License-Identifier: Apache-2.0
"""Raw maps of an anchor-based detector -> boxes and probabilities, in float32 whatever the model computes in.

A map is (B, A, H, W, 5 + K): x, y, w, h, objectness, K classes before the sigmoid. Anchors are in units of their
level's stride (fact sheet, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .boxes import xyxy_of


def decode(maps: Sequence[Tensor], anchors: Tensor, strides: Sequence[int]) -> Tensor:
    """Maps of all levels -> (B, N, 5 + K): cxcywh in pixels of the input, objectness, class probabilities.

    anchors (L, A, 2) in stride units. Level by level, each in (anchor, row, column) order.
    """
    levels = []
    for raw, own, stride in zip(maps, anchors, strides, strict=True):
        rows, columns = raw.shape[2], raw.shape[3]
        values = at_least_float32(raw)
        grid_y = torch.arange(rows, device=raw.device, dtype=values.dtype)[:, None].expand(rows, columns)
        grid_x = torch.arange(columns, device=raw.device, dtype=values.dtype)[None, :].expand(rows, columns)
        cells = torch.stack((grid_x, grid_y), dim=-1)  # (H, W, 2)
        boxes = boxes_at(values[..., :4], own.to(values)[None, :, None, None, :], cells, stride)
        found = torch.cat((boxes, values[..., 4:].sigmoid()), dim=-1)  # (B, A, H, W, 5 + K)
        levels.append(found.flatten(1, 3))
    return torch.cat(levels, dim=1)


def boxes_at(raw: Tensor, anchors: Tensor, cells: Tensor, stride: float) -> Tensor:
    """Raw x, y, w, h (..., 4) with their anchor and cell (x, y), each (..., 2) -> cxcywh in pixels (..., 4)."""
    local = local_boxes(raw, anchors)
    return torch.cat(((local[..., :2] + cells) * stride, local[..., 2:] * stride), dim=-1)


def local_boxes(raw: Tensor, anchors: Tensor) -> Tensor:
    """The same in units of the stride, the center counted from the cell's corner."""
    half = raw.sigmoid() * 2
    return torch.cat((half[..., :2] - 0.5, half[..., 2:].square() * anchors), dim=-1)


def scored(decoded: Tensor) -> tuple[Tensor, Tensor]:
    """Decoded (..., 5 + K) -> corners xyxy (..., 4) and class scores (..., K).

    A score is objectness times class; of a single class it is the objectness, because its class output is not trained.
    """
    objectness, classes = decoded[..., 4:5], decoded[..., 5:]
    return xyxy_of(decoded[..., :4]), objectness if classes.shape[-1] == 1 else objectness * classes


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision becomes float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
