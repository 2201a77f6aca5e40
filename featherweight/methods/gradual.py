# SPDX-License-Identifier: Apache-2.0
"""Gradual pruning: weights go while the model is trained, most of them early, and the rest adapts.

The share removed follows a cubic from `initial` to `sparsity` between two moments of the run (Zhu & Gupta 2017,
1710.01878). Which weights: by magnitude, or by what the gradients said since the beginning: movement (Sanh 2020,
2005.07683), taylor, fisher. What went may come back with the value it had. `finish` leaves a plain model with zeros.
Not here: learned thresholds, and N of every M, which is chosen at once (`sparsify`) and then kept (`masks.KeepMasks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..method import Method, Pass
from . import sparse_choice
from .masks import WATCHES, Mask, held, hold, masks_of, prunable, release
from .sparse_choice import Pattern
from .sparsify import check_sparsity

Importance = Literal["magnitude", "movement", "taylor", "fisher"]


@dataclass(frozen=True)
class GradualPruning(Method):
    """Prunes single weights while training, from `initial` to `sparsity`; both 0 is plain training.

    begin, end: shares of the run between which it happens, in `updates` steps; after `end` the zeros stay. scope: as of
    `sparse_choice`, by default its `usual`. pattern: "" or blocks "4x1". skip: name patterns of layers.
    """

    sparsity: float = 0.9
    initial: float = 0.0
    begin: float = 0.0
    end: float = 0.7
    updates: int = 50
    importance: Importance = "magnitude"
    scope: str | None = None
    pattern: str = ""
    skip: Sequence[str] = ()

    def __post_init__(self) -> None:
        for share in (self.sparsity, self.initial):
            check_sparsity(share, self.shares)
        sparse_choice.check(self.shares)
        if not 0 <= self.begin < self.end <= 1:
            raise OptionError("end", f"{self.end!r} and begin {self.begin!r} must be shares of the run, begin first")
        if type(self.updates) is not int or self.updates < 1:
            raise OptionError("updates", f"{self.updates!r} is not a whole number of 1 or more")
        if self.importance != "magnitude" and self.importance not in WATCHES:
            raise OptionError("importance", f"no {self.importance!r} here. Known: magnitude, {', '.join(WATCHES)}")
        if Pattern.of_text(self.pattern).of:
            raise OptionError("pattern", f"{self.pattern!r} is chosen at once: use sparsify, then KeepMasks")

    @property
    def shares(self) -> str:
        """The scope, or the usual one."""
        return self.scope or sparse_choice.usual(self.sparsity, self.importance)

    def target(self, progress: float) -> float:
        """The share that is removed at this moment of the run."""
        done = min(1.0, max(0.0, (progress - self.begin) / (self.end - self.begin)))
        return self.sparsity + (self.initial - self.sparsity) * (1 - done) ** 3

    def prepare(self, model: nn.Module) -> nn.Module:
        """With a mask, all ones unless the model was pruned before, beside each weight."""
        if self.sparsity == self.initial == 0:
            return model
        layers, before = prunable(model, self.skip), masks_of(model)
        masks = {
            path: before.get(path, torch.ones_like(layer.weight, dtype=torch.bool))  # type: ignore[arg-type]
            for path, layer in layers.items()
        }
        return hold(model, masks, watches="" if self.importance == "magnitude" else self.importance)

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        for weight, mask in held(run.model).values():
            mask.listen(weight)
        return terms

    @torch.no_grad()
    def after_step(self, model: nn.Module, progress: float) -> None:
        parts = held(model)
        if not parts:
            return
        span = self.end - self.begin
        level = min(self.updates, int(self.updates * max(0.0, progress - self.begin) / span + 1e-9))
        due = progress >= self.begin and level + 1 > int(next(iter(parts.values()))[1].level)
        if due:
            share = self.target(self.begin + span * level / self.updates)
            chosen = self.choose(parts, share)
        for path, (weight, mask) in parts.items():
            if due:
                mask.choose(weight, chosen[path])
                mask.level.fill_(level + 1)
            else:
                weight.mul_(mask.mask)

    def choose(self, parts: dict[str, tuple[nn.Parameter, Mask]], share: float) -> dict[str, Tensor]:
        """The masks at a share removed."""
        by_size = self.importance == "magnitude"
        scores = {path: mask.full(w).float().abs() if by_size else mask.score for path, (w, mask) in parts.items()}
        return sparse_choice.choose(scores, share, scope=self.shares, pattern=Pattern.of_text(self.pattern))

    def finish(self, model: nn.Module) -> nn.Module:
        return release(model)
