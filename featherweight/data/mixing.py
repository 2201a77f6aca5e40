# SPDX-License-Identifier: Apache-2.0
"""Mixing a batch with itself read backwards: mixup (Zhang 2017, 1710.09412) and cutmix (Yun 2019, 1905.04899)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PER = ("picture", "batch")
Box = tuple[int, int, int, int]  # top, bottom, left, right


@dataclass(frozen=True)
class Mixing:
    """Alphas of the two beta distributions (0 leaves one out), and how often which of them is done."""

    mixup: float
    cutmix: float
    probability: float = 1.0
    switch: float = 0.5  # probability of cutmix where both are on

    def draw(self, rng: np.random.Generator, height: int, width: int) -> tuple[float, Box | None]:
        """How much of the picture stays (1: all of it), and the rectangle that is replaced, if it is cutmix."""
        if rng.random() >= self.probability:
            return 1.0, None
        cut = self.cutmix > 0 and (self.mixup == 0 or rng.random() < self.switch)
        kept = float(rng.beta(self.cutmix, self.cutmix) if cut else rng.beta(self.mixup, self.mixup))
        if not cut:
            return kept, None
        box = top, bottom, left, right = rectangle(rng, height, width, 1 - kept)
        return 1 - (bottom - top) * (right - left) / (height * width), box

    def mix(
        self, images: Tensor, rngs: Sequence[np.random.Generator], *, per: str = "picture"
    ) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W), each with its mirror place in the batch -> mixed images, own shares (B,).

        per "picture": each draws by its own random numbers; "batch": the first one's hold for all, as in DeiT's code.
        """
        mixed, partners = images.clone(), images.flip(0)
        height, width = images.shape[-2:]
        drawn = [self.draw(rng, height, width) for rng in (rngs[:1] if per == "batch" else rngs)]
        drawn = drawn * len(images) if per == "batch" else drawn
        for i, (kept, box) in enumerate(drawn):
            if box is not None:
                top, bottom, left, right = box
                mixed[i, :, top:bottom, left:right] = partners[i, :, top:bottom, left:right]
            elif kept < 1:
                mixed[i] = images[i] * kept + partners[i] * (1 - kept)
        return mixed, torch.tensor([kept for kept, _ in drawn], dtype=torch.float32)


def target(labels: Tensor, share: Tensor, *, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """Labels (B,), each picture's own share (B,) -> soft labels (B, K); `smoothing` is spread over all classes."""
    own = F.one_hot(labels, num_classes).float()
    soft = own * share[:, None] + own.flip(0) * (1 - share)[:, None]
    return soft * (1 - smoothing) + smoothing / num_classes


def rectangle(rng: np.random.Generator, height: int, width: int, area: float) -> Box:
    """A part of the picture with its shape, around any point, cut off at the border."""
    side = math.sqrt(area)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    half_y, half_x = int(height * side) // 2, int(width * side) // 2
    return max(0, y - half_y), min(height, y + half_y), max(0, x - half_x), min(width, x + half_x)
