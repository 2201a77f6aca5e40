# SPDX-License-Identifier: Apache-2.0
"""A transformer's blocks run on fewer and fewer tokens: masked or gathered in training, gathered in evaluation.

The forward passes of `dynamicvit` (Rao 2021, 2106.02034), which says what they are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy import Anatomy, Around
from .attention import class_attention
from .token_scores import TINY, Predictor, Score, Sparse, above, best, random_order, take


class SparseBlocks(Around, Sparse):
    """Runs the host's blocks on fewer and fewer tokens. `keep`: pairs (before which block, share of all tokens)."""

    counts = True

    def __init__(
        self,
        blocks: nn.ModuleList,
        anatomy: Anatomy,
        keep: Sequence[tuple[int, float]],
        dim: int,
        prefix: int,
        *,
        score: Score = "predictor",
        seed: int = 0,
        threshold: float | None = None,
    ) -> None:
        super().__init__(keep, threshold)
        self.blocks = blocks
        self.score_predictor = nn.ModuleList([Predictor(dim) for _ in keep if score == "predictor"])
        self.anatomy = anatomy
        self.prefix = prefix
        self.score, self.seed = score, seed
        self.gathering = False  # in training: drop tokens, do not mask them

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.training:
            return self._gathered(x)
        return self._sampled(x) if self.gathering or self.score != "predictor" else self._masked(x)

    def _masked(self, x: Tensor) -> Tensor:
        p, stages = self.prefix, self.stages()
        kept = x.new_ones(x.shape[0], x.shape[1] - p, 1)  # (B, N, 1)
        decisions: list[Tensor] = []
        mask: Tensor | None = None
        for place, block in enumerate(self.blocks):
            if place in stages:
                log_p = self.score_predictor[stages[place]](x[:, p:], kept)
                decision = F.gumbel_softmax(log_p, hard=True, dim=-1)[..., :1].to(x.dtype)
                kept = bounded(one_at_least(decision * kept, kept, log_p[..., :1]))
                decisions.append(kept)
                mask = attention_mask(kept, p)
            x = self.anatomy.run(block, x, mask)
        self.aside.decisions = decisions
        return x

    def _sampled(self, x: Tensor) -> Tensor:
        """Tokens (B, P + N, C) -> (B, P + n, C), chosen with noise; the mask is 0 and carries the gradient only."""
        p, total, stages = self.prefix, x.shape[1] - self.prefix, self.stages()
        places = torch.arange(total, device=x.device).expand(x.shape[0], -1)  # (B, N)
        logits = torch.zeros_like(places, dtype=torch.float32)
        mask: Tensor | None = None
        rates: list[tuple[Tensor, float]] = []  # mean keep probability (B,), share of what was left before
        for place, block in enumerate(self.blocks):
            if place in stages:
                stage, left = stages[place], x.shape[1] - p
                count = min(left, self.count(stage, total))
                score, log_keep = self._noisy(stage, block, x)
                chosen = best(score, count)
                x = torch.cat([x[:, :p], take(x[:, p:], chosen)], dim=1)
                places = places.gather(1, chosen)
                if log_keep is not None:
                    rates.append((log_keep.exp().mean(1), count / left))
                    logits = (logits + log_keep).gather(1, chosen)
                    mask = weightless(logits, p).to(x.dtype)
            x = self.anatomy.run(block, x, mask)
        self.aside.places, self.aside.rates = places, rates
        return x

    def _noisy(self, stage: int, block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores (B, n) to choose by in training, and the log-probabilities (B, n) that learn from the choice."""
        if self.score == "random":
            return torch.rand(x.shape[0], x.shape[1] - self.prefix, device=x.device), None
        if self.score == "attention":
            with torch.no_grad():
                return class_attention(block, self.anatomy, x, self.prefix), None
        log_p = self.score_predictor[stage](x[:, self.prefix :])  # (B, n, 2)
        noise = -torch.empty_like(log_p).exponential_().log()
        noisy = log_p + noise
        return (noisy[..., 0] - noisy[..., 1]).detach(), log_p[..., 0]

    def _gathered(self, x: Tensor) -> Tensor:
        p, total, stages = self.prefix, x.shape[1] - self.prefix, self.stages()
        places = torch.arange(total, device=x.device).expand(x.shape[0], -1)  # (B, N)
        real: Tensor | None = None  # (B, n): False for a copy that fills a row
        mask: Tensor | None = None
        seen: list[Tensor] = []
        for place, block in enumerate(self.blocks):
            if place in stages:
                stage, chosen = stages[place], None
                if self.threshold is not None:
                    kept = None if real is None else real[..., None].to(x.dtype)
                    score = self.score_predictor[stage](x[:, p:], kept)[..., 0]
                    chosen, real = above(score, self.threshold, real)
                    mask = None if real is None else copies_unseen(real, p, x.dtype)
                elif (count := self.count(stage, total)) < x.shape[1] - p:
                    chosen = best(self._score(stage, block, x, places), count)
                if chosen is not None:
                    x, places = torch.cat([x[:, :p], take(x[:, p:], chosen)], dim=1), places.gather(1, chosen)
                seen.append(places)
            x = self.anatomy.run(block, x, mask)
        if self.recording:
            self.aside.places, self.aside.count = seen, total
        return x

    def _score(self, stage: int, block: nn.Module, x: Tensor, places: Tensor) -> Tensor:
        """What decides in evaluation who stays (B, n)."""
        if self.score == "random":
            return random_order(places, self.seed)
        if self.score == "attention":
            return class_attention(block, self.anatomy, x, self.prefix)
        return self.score_predictor[stage](x[:, self.prefix :])[..., 0]


def attention_mask(kept: Tensor, prefix: int) -> Tensor:
    """Decisions (B, N, 1) -> additive mask (B, 1, P + N, P + N): log(keep) for a key, 0 for a token to itself."""
    keep = torch.cat([kept.new_ones(kept.shape[0], prefix, 1), kept], dim=1)[..., 0]  # (B, P + N)
    n = keep.shape[1]
    itself = torch.eye(n, dtype=keep.dtype, device=keep.device)
    return torch.log(keep[:, None, None, :] * (1 - itself) + itself + TINY)


def weightless(logits: Tensor, prefix: int) -> Tensor:
    """Log-probabilities (B, n) -> additive mask (B, 1, 1, P + n) that is 0, with the gradient of the probabilities."""
    keep = logits.exp()
    return F.pad(keep - keep.detach(), (prefix, 0))[:, None, None, :]


def copies_unseen(real: Tensor, prefix: int, dtype: torch.dtype) -> Tensor:
    """Which tokens are real (B, n) -> additive mask (B, 1, 1, P + n): nothing attends to a copy."""
    mask = torch.zeros(real.shape, dtype=dtype, device=real.device).masked_fill(~real, -torch.inf)
    return F.pad(mask, (prefix, 0))[:, None, None, :]


def one_at_least(kept: Tensor, before: Tensor, log_keep: Tensor) -> Tensor:
    """Decisions (B, N, 1); of an image that would lose all of its tokens the likeliest stays."""
    score = log_keep.detach().masked_fill(before == 0, -torch.inf)
    likeliest = torch.zeros_like(kept).scatter_(1, score.argmax(dim=1, keepdim=True), 1.0)
    return torch.where(kept.sum(dim=1, keepdim=True) > 0, kept, likeliest)


def bounded(kept: Tensor) -> Tensor:
    """The same decisions (B, N, 1), whose gradient is at most 1 / B each way: 1 per image, as the loss is a mean.

    Where a dropped token had by far the largest score of a row, the true gradient grows like exp(score) without end,
    and one such row steers the whole step.
    """
    if kept.requires_grad:
        limit = 1.0 / kept.shape[0]
        kept.register_hook(lambda gradient: gradient.clamp(-limit, limit))
    return kept
