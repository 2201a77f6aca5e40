# SPDX-License-Identifier: Apache-2.0
"""Boxes and how much they overlap: IoU, GIoU, DIoU and CIoU of pairs, with gradients, and IoU of all with all.

Boxes are xyxy. The four are those of the YOLOv7 loss (fact sheet, section 6): heights and unions are a touch larger
than they are, so that nothing is divided by zero. Not here: rotated boxes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = 1e-7


def xyxy_of(cxcywh: Tensor) -> Tensor:
    """(..., 4) centers and sides -> corners."""
    middle, half = cxcywh[..., :2], cxcywh[..., 2:] / 2
    return torch.cat((middle - half, middle + half), dim=-1)


def cxcywh_of(xyxy: Tensor) -> Tensor:
    """(..., 4) corners -> centers and sides."""
    low, high = xyxy[..., :2], xyxy[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def iou(pred: Tensor, true: Tensor, *, eps: float = EPS) -> Tensor:
    """Intersection over union of pairs of boxes (..., 4) -> (...)."""
    inter, union = _overlap(pred, true, eps)
    return inter / union


def giou(pred: Tensor, true: Tensor, *, eps: float = EPS) -> Tensor:
    """IoU less the share of the enclosing box that neither covers (Rezatofighi 2019, 1902.09630)."""
    inter, union = _overlap(pred, true, eps)
    width, height = _enclosing(pred, true)
    hull = width * height + eps
    return inter / union - (hull - union) / hull


def diou(pred: Tensor, true: Tensor, *, eps: float = EPS) -> Tensor:
    """IoU less the squared distance of the centers in units of the enclosing diagonal (Zheng 2020, 1911.08287)."""
    return iou(pred, true, eps=eps) - _distance(pred, true, eps)


def ciou(pred: Tensor, true: Tensor, *, eps: float = EPS) -> Tensor:
    """DIoU less a term for the aspect, whose weight takes no part in the gradient (Zheng 2020, 1911.08287)."""
    overlap = iou(pred, true, eps=eps)
    aspects = [torch.atan((box[..., 2] - box[..., 0]) / (box[..., 3] - box[..., 1] + eps)) for box in (pred, true)]
    v = 4 / math.pi**2 * (aspects[1] - aspects[0]) ** 2
    with torch.no_grad():
        alpha = v / (v - overlap + (1 + eps))
    return overlap - (_distance(pred, true, eps) + alpha * v)


def iou_matrix(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of each with each: (..., M, 4), (..., N, 4) -> (..., M, N); 0 for boxes without area."""
    a, b = boxes[..., :, None, :], others[..., None, :, :]
    width = (torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])).clamp_(min=0)  # (..., M, N)
    height = (torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])).clamp_(min=0)
    inter = width.mul_(height)
    union = (area(boxes)[..., :, None] + area(others)[..., None, :]).sub_(inter)
    return inter.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _overlap(pred: Tensor, true: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Intersection and union of pairs."""
    width = (torch.minimum(pred[..., 2], true[..., 2]) - torch.maximum(pred[..., 0], true[..., 0])).clamp(min=0)
    height = (torch.minimum(pred[..., 3], true[..., 3]) - torch.maximum(pred[..., 1], true[..., 1])).clamp(min=0)
    inter = width * height
    areas = [(box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1] + eps) for box in (pred, true)]
    return inter, areas[0] + areas[1] - inter + eps


def _enclosing(pred: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height of the smallest box around both."""
    low = torch.minimum(pred[..., :2], true[..., :2])
    high = torch.maximum(pred[..., 2:], true[..., 2:])
    return (high - low).unbind(-1)  # type: ignore[return-value]


def _distance(pred: Tensor, true: Tensor, eps: float) -> Tensor:
    """Squared distance of the centers over the squared diagonal of the enclosing box."""
    width, height = _enclosing(pred, true)
    between = (true[..., :2] + true[..., 2:] - pred[..., :2] - pred[..., 2:]).square().sum(-1) / 4
    return between / (width.square() + height.square() + eps)
