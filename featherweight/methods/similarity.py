# SPDX-License-Identifier: Apache-2.0
"""Similarity-preserving distillation (Tung & Mori 2019, 1907.09682): pictures that are alike to the teacher stay alike.

The features of a batch, flattened to (B, D), give a matrix of similarities G = Q Qᵀ (B, B) whose rows have length 1;
the loss is the mean squared difference of the two matrices. Width, depth and resolution of the features may differ.
A batch of one sample has nothing to compare with and costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from .features import FeatureDistance, FeatureDistill


def similarities(features: Tensor) -> Tensor:
    """Features (B, ...) -> similarities of the samples of a batch (B, B), rows of length 1."""
    flat = features.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


def similarity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 / B² * the squared Frobenius norm of the difference."""
    return F.mse_loss(similarities(student), similarities(teacher))


@dataclass(frozen=True)
class SimilarityPreserving(FeatureDistill):
    """Beside the task's loss, the distance of similarity matrices; 3000 is the paper's weight. 0 is plain training."""

    distance: FeatureDistance = similarity_distance
    weight: float = field(default=3000.0, kw_only=True)
