# SPDX-License-Identifier: Apache-2.0
"""DIST (Huang 2022, 2205.10536): keep what a strong teacher prefers, not how strongly.

Instead of a KL, 1 - Pearson's correlation of the softened answers: over the classes of each picture (inter-class), and
over the pictures of the batch for each class (intra-class). A batch of one sample has no intra-class part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..method import Method, Pass
from .distill import check_teacher, taught


def uncorrelated(a: Tensor, b: Tensor) -> Tensor:
    """1 - Pearson's correlation of the rows of a and b (N, M), mean over the rows."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return 1 - torch.nn.functional.cosine_similarity(a, b, dim=1).mean()


def relations(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits (B, K) of student and teacher -> inter-class and intra-class distance, each times T²."""
    mine, theirs = (torch.softmax(x.float() / temperature, dim=1) for x in (logits, teacher))
    inter = uncorrelated(mine, theirs)
    intra = uncorrelated(mine.T, theirs.T) if len(mine) > 1 else 0.0 * inter
    return inter * temperature**2, intra * temperature**2


@dataclass(frozen=True)
class DIST(Method):
    """The task's loss + beta * inter-class + gamma * intra-class distance; both 0 is plain training."""

    teacher: nn.Module
    beta: float = 2.0
    gamma: float = 2.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("beta", "gamma"):
            if not getattr(self, name) >= 0:
                raise OptionError(name, f"{getattr(self, name)!r} is not 0 or more")
        if not self.temperature > 0:
            raise OptionError("temperature", f"{self.temperature!r} is not above 0")

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model as it is. OptionError for a teacher of other classes, where both tell; else the first loss does."""
        check_teacher(model, self.teacher)
        return model

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        inter, intra = relations(run.output, taught(run.output, run, self.teacher), self.temperature)
        return {**terms, "dist_inter": self.beta * inter, "dist_intra": self.gamma * intra}
