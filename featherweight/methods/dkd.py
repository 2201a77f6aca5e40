# SPDX-License-Identifier: Apache-2.0
"""Decoupled knowledge distillation (Zhao 2022, 2203.08679): the teacher's answer in two parts, weighed apart.

Hinton's KL is the KL of "the label's class or another one" (target) plus, weighed by how unsure the teacher is, the KL
among the other classes (non-target). Here the second has a weight of its own, so that a sure teacher teaches too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import OptionError
from ..method import Method, Pass
from .distill import check_teacher, taught


def decoupled(logits: Tensor, teacher: Tensor, label: Tensor, temperature: float = 4.0) -> tuple[Tensor, Tensor]:
    """Student's and teacher's logits (B, K), labels (B,) -> target and non-target part, each times T², batch means.

    Hinton's loss is the first plus, sample by sample, (1 - the teacher's share of the label) times the second.
    """
    mine, theirs = (torch.log_softmax(x.float() / temperature, dim=1) for x in (logits, teacher))
    at = F.one_hot(label, logits.shape[1]).bool()
    target = _kl(_two(mine, at), _two(theirs, at))
    others = (log[~at].view(len(log), -1).log_softmax(1) for log in (mine, theirs))  # (B, K - 1)
    return target * temperature**2, _kl(*others) * temperature**2


def _two(log: Tensor, at: Tensor) -> Tensor:
    """Log-probabilities (B, K) -> those of the label's class and of all others together (B, 2)."""
    return torch.stack([log[at], log[~at].view(len(log), -1).logsumexp(1)], dim=1)


def _kl(mine: Tensor, theirs: Tensor) -> Tensor:
    return F.kl_div(mine, theirs, reduction="batchmean", log_target=True)


def label_of(batch: Mapping[str, Tensor]) -> Tensor:
    """The class (B,) that counts for most of a sample, where labels are mixed."""
    return batch["soft_label"].argmax(1) if "soft_label" in batch else batch["label"]


@dataclass(frozen=True)
class DKD(Method):
    """The task's loss + alpha * target part + beta * non-target part; alpha = beta = 0 is plain training.

    warmup: share of the run over which the two grow from 0, as in the authors' code.
    """

    teacher: nn.Module
    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            if not getattr(self, name) >= 0:
                raise OptionError(name, f"{getattr(self, name)!r} is not 0 or more")
        if not self.temperature > 0:
            raise OptionError("temperature", f"{self.temperature!r} is not above 0")
        if not 0 <= self.warmup <= 1:
            raise OptionError("warmup", f"{self.warmup!r} is not a share of the run, 0..1")

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model as it is. OptionError for a teacher of other classes, where both tell; else the first loss does."""
        check_teacher(model, self.teacher)
        return model

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        answer = taught(run.output, run, self.teacher)
        if answer.shape[1] < 3:
            raise OptionError("dkd", "needs 3 classes or more: of two, nothing is left beside the label's")
        target, others = decoupled(run.output, answer, label_of(run.batch), self.temperature)
        weight = min(run.progress / self.warmup, 1.0) if self.warmup else 1.0
        return {**terms, "dkd_target": weight * self.alpha * target, "dkd_others": weight * self.beta * others}
