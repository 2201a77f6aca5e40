# SPDX-License-Identifier: Apache-2.0
"""Attention transfer (Zagoruyko & Komodakis 2017, 1612.03928): where a teacher's features are large, the student's be.

The attention map of features (B, C, H, W) is the sum over the channels of their squares, as a vector of length 1; the
loss is the mean squared difference of two maps, as in the authors' code, of which `weight` 1000 is the published value
(the paper's formula takes half the norm). Student and teacher may differ in width; larger maps are averaged down to
the smaller ones' size. Tokens (B, N, C) have a map over tokens. Not here: the gradient-based variant.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from .features import FeatureDistance, FeatureDistill, same_places


def attention(features: Tensor) -> Tensor:
    """Features (B, C, H, W) or (B, N, C) -> attention maps (B, H * W) or (B, N) of length 1."""
    power = features.square()
    return F.normalize(power.mean(1).flatten(1) if features.ndim == 4 else power.mean(2), dim=1)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the attention maps."""
    a, b = same_places(student, teacher, "attention_transfer")
    return F.mse_loss(attention(a), attention(b))


@dataclass(frozen=True)
class AttentionTransfer(FeatureDistill):
    """Beside the task's loss, the distance of attention maps at pairs of places. weight 0 is plain training."""

    distance: FeatureDistance = attention_distance
    weight: float = field(default=1000.0, kw_only=True)
