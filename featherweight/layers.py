# SPDX-License-Identifier: Apache-2.0
"""Modules that both models and methods make."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .surgery import Aside


class DropPath(nn.Module):
    """Stochastic depth: in training a sample's branch is dropped with probability `rate` (Huang 2016, 1603.09382)."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device, dtype=torch.float32) < keep
        return x * (mask.to(x.dtype) / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class TwoHeads(nn.Module):
    """Class logits and distillation logits (B, K) -> one tensor (B, K).

    Training returns the class logits and puts the distillation logits aside for the loss; evaluation returns the
    mean of the two logits (Touvron 2021, 2012.12877).
    """

    def __init__(self) -> None:
        super().__init__()
        self.aside = Aside()

    def forward(self, logits: Tensor, dist_logits: Tensor) -> Tensor:
        if self.training:
            self.aside.dist_logits = dist_logits
            return logits
        return (logits + dist_logits) / 2

    def answer(self, logits: Tensor) -> Tensor:
        """In training: what evaluation would have answered to the batch whose class logits these are."""
        return (logits + self.aside.dist_logits) / 2
