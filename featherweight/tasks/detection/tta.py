# SPDX-License-Identifier: Apache-2.0
"""One picture seen three times: at 1, 0.83 (mirrored) and 0.67 of its size; all predictions side by side."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .decode import decode

VIEWS = ((1.0, False), (0.83, True), (0.67, False))  # scale, mirrored
GRAY = 0.447  # of the padding that smaller views get on the right and at the bottom


def augmented(model: Any, images: Tensor) -> Tensor:
    """A detector's decoded answers (B, N, 5 + K) to each view of the images (B, 3, H, W), mapped back and joined.

    Boxes of smaller views may lie outside the picture, where the padding was (fact sheet, 9).
    """
    head, found = model.head, []
    stride, (height, width) = max(head.strides), images.shape[-2:]
    for scale, mirrored in VIEWS:
        view = images.flip(-1) if mirrored else images
        if scale != 1:
            size = int(height * scale), int(width * scale)
            view = F.interpolate(view, size=size, mode="bilinear", align_corners=False)
            whole = [math.ceil(n * scale / stride) * stride for n in (height, width)]
            view = F.pad(view, (0, whole[1] - size[1], 0, whole[0] - size[0]), value=GRAY)
        decoded = decode(model(view), head.anchors, head.strides)
        center_x, rest = decoded[..., :1] / scale, decoded[..., 1:4] / scale
        center_x = width - center_x if mirrored else center_x
        found.append(torch.cat([center_x, rest, decoded[..., 4:]], dim=-1))
    return torch.cat(found, dim=1)
