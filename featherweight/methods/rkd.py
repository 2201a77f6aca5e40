# SPDX-License-Identifier: Apache-2.0
"""Relational knowledge distillation (Park 2019, 1904.05068): distances and angles between the samples of a batch.

Each sample is a vector (B, C), maps and tokens averaged over their places. Distances between pairs are divided by their
mean; angles are the cosines at the middle one of three samples. Both are compared by the Huber loss. The embeddings may
have different widths. Angles of a batch take B³ numbers. A batch of one sample has no relations and costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import OptionError
from .features import FeatureDistance, FeatureDistill, embedding


def distances(points: Tensor) -> Tensor:
    """Points (B, C) -> Euclidean distances (B, B), divided by the mean of those above 0."""
    squared = (points[:, None] - points[None]).square().sum(-1)  # (B, B)
    found = torch.where(squared > 0, squared.clamp(min=1e-24).sqrt(), 0.0)  # no infinite slope at 0
    return found / found[found > 0].mean().clamp(min=1e-12) if bool((found > 0).any()) else found


def angles(points: Tensor) -> Tensor:
    """Points (B, C) -> cosines (B, B, B): at [j, i, k] that of the angle between i and k, seen from j."""
    ways = F.normalize(points[None] - points[:, None], dim=2)  # (B, B, C): from j to i
    return ways @ ways.transpose(1, 2)


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss of the distances between samples."""
    return F.smooth_l1_loss(distances(embedding(student)), distances(embedding(teacher)))


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss of the angles between samples."""
    return F.smooth_l1_loss(angles(embedding(student)), angles(embedding(teacher)))


@dataclass(frozen=True)
class Relations:
    """distance_weight * distances + angle_weight * angles; 25 and 50 are the paper's."""

    distance_weight: float = 25.0
    angle_weight: float = 50.0

    def __post_init__(self) -> None:
        for name in ("distance_weight", "angle_weight"):
            if not getattr(self, name) >= 0:
                raise OptionError(name, f"{getattr(self, name)!r} is not 0 or more")

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        near, turned = distance_loss(student, teacher), angle_loss(student, teacher)
        return self.distance_weight * near + self.angle_weight * turned


@dataclass(frozen=True)
class RKD(FeatureDistill):
    """Beside the task's loss, the relations at pairs of places. weight 0 is plain training."""

    distance: FeatureDistance = Relations()
