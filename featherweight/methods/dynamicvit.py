# SPDX-License-Identifier: Apache-2.0
"""DynamicViT (Rao 2021, 2106.02034): predictors drop the tokens that matter least, stage by stage, image by image.

Works on every described transformer (`anatomy`). Training drops nothing: decisions are sampled (Gumbel-softmax,
straight through) and dropped tokens are masked out of the attention as keys. Evaluation keeps as many tokens of every
image (top-k, in the order of their places) and gathers them, so that later blocks really are smaller, and it exports.

The mask is added to the scores as log(keep): equal to the official masked softmax but for its two 1e-6 terms. Not here:
thresholds in place of fixed counts, the ConvNeXt and Swin forms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy import Anatomy, Around, anatomy_of, blocks_of, embed_dim, prefix_of, wrap_blocks
from ..errors import OptionError
from ..layers import TwoHeads
from ..surgery import Aside, Edit, all_of, apply, edit_kind, find, submodule, tap, untap, watching
from ..train import Method, Pass
from .distill import kl

TINY = 1e-12  # keeps log(keep) and the mean over kept tokens finite when nothing is kept


class Predictor(nn.Module):
    """Tokens (B, N, C) and what is kept so far (B, N, 1) -> log-probabilities keep, drop (B, N, 2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU(), nn.Linear(dim // 4, 2)
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)  # not 0.02, which hardly learns where C is small
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        local, rest = self.in_conv(x).chunk(2, dim=-1)  # (B, N, C / 2) each
        if kept is None:
            whole = rest.mean(dim=1, keepdim=True)
        else:
            whole = (rest * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=TINY)
        return F.log_softmax(self.out_conv(torch.cat([local, whole.expand_as(local)], dim=-1)).float(), dim=-1)


class SparseBlocks(Around):
    """Runs the host's blocks on fewer and fewer tokens. `keep`: pairs (before which block, share of all tokens)."""

    def __init__(
        self, blocks: nn.ModuleList, anatomy: Anatomy, keep: Sequence[tuple[int, float]], dim: int, prefix: int
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.score_predictor = nn.ModuleList([Predictor(dim) for _ in keep])
        self.keep = tuple((int(place), float(share)) for place, share in keep)
        self.anatomy = anatomy
        self.prefix = prefix
        self.recording = False  # also in evaluation: put the kept positions aside
        self.aside = Aside()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._masked(x) if self.training else self._gathered(x)

    def _masked(self, x: Tensor) -> Tensor:
        p = self.prefix
        kept = x.new_ones(x.shape[0], x.shape[1] - p, 1)  # (B, N, 1)
        stages = {place: predictor for (place, _), predictor in zip(self.keep, self.score_predictor, strict=True)}
        decisions: list[Tensor] = []
        mask: Tensor | None = None
        for place, block in enumerate(self.blocks):
            if place in stages:
                log_p = stages[place](x[:, p:], kept)
                kept = bounded(F.gumbel_softmax(log_p, hard=True, dim=-1)[..., :1].to(x.dtype) * kept)
                decisions.append(kept)
                mask = attention_mask(kept, p)
            x = self.anatomy.run(block, x, mask)
        self.aside.decisions = decisions
        return x

    def _gathered(self, x: Tensor) -> Tensor:
        p, first = self.prefix, x.shape[1] - self.prefix
        stages = {place: (share, pred) for (place, share), pred in zip(self.keep, self.score_predictor, strict=True)}
        places = torch.arange(first, device=x.device).expand(x.shape[0], -1)  # (B, N)
        seen: list[Tensor] = []
        for place, block in enumerate(self.blocks):
            if place in stages:
                share, predictor = stages[place]
                count = max(1, int(first * share))
                if count < x.shape[1] - p:
                    score = predictor(x[:, p:])[..., 0]  # (B, N)
                    chosen = score.topk(count, dim=1).indices.sort(dim=1).values  # (B, count)
                    kept = x[:, p:].gather(1, chosen[..., None].expand(-1, -1, x.shape[2]))
                    x, places = torch.cat([x[:, :p], kept], dim=1), places.gather(1, chosen)
                seen.append(places)
            x = self.anatomy.run(block, x, None)
        if self.recording:
            self.aside.places, self.aside.count = seen, first
        return x


def attention_mask(kept: Tensor, prefix: int) -> Tensor:
    """Decisions (B, N, 1) -> additive mask (B, 1, P + N, P + N): log(keep) for a key, 0 for a token to itself."""
    keep = torch.cat([kept.new_ones(kept.shape[0], prefix, 1), kept], dim=1)[..., 0]  # (B, P + N)
    n = keep.shape[1]
    itself = torch.eye(n, dtype=keep.dtype, device=keep.device)
    return torch.log(keep[:, None, None, :] * (1 - itself) + itself + TINY)


def bounded(kept: Tensor) -> Tensor:
    """The same decisions (B, N, 1), whose gradient is at most 1 / B each way: 1 per image, as the loss is a mean.

    Where a dropped token had by far the largest score of a row, the true gradient grows like exp(score) without end,
    and one such row steers the whole step.
    """
    if kept.requires_grad:
        limit = 1.0 / kept.shape[0]
        kept.register_hook(lambda gradient: gradient.clamp(-limit, limit))
    return kept


@edit_kind
def sparse_tokens(model: nn.Module, keep: Sequence[tuple[int, float]]) -> nn.Module:
    """The host with its blocks inside `SparseBlocks`; predictors start at random."""
    if all_of(model, SparseBlocks):
        raise OptionError("sparse_tokens", "this model drops tokens already")
    depth, dim, prefix, anatomy = len(blocks_of(model)), embed_dim(model), prefix_of(model), anatomy_of(model)
    check_stages(dict(keep), depth)
    return wrap_blocks(model, lambda blocks: SparseBlocks(blocks, anatomy, keep, dim, prefix))


def stages(keep: float | Mapping[int, float], at: Sequence[int] | None, depth: int) -> dict[int, float]:
    """{before which block: share of the first count that stays}. A single rate r becomes r, r^2, r^3 at `at`.

    Places default to a quarter, a half and three quarters of the depth, the paper's choice.
    """
    if isinstance(keep, Mapping):
        found = {int(place): float(share) for place, share in keep.items()}
    else:
        places = at if at is not None else sorted({max(1, depth * k // 4) for k in (1, 2, 3)})
        found = {int(place): float(keep) ** (k + 1) for k, place in enumerate(places)}
    check_stages(found, depth)
    return dict(sorted(found.items()))


def check_stages(found: Mapping[int, float], depth: int) -> None:
    """Raises OptionError for a place outside the model or shares that are not falling within 0..1."""
    if not found:
        raise OptionError("at", "names no block to drop tokens before")
    for place, share in found.items():
        if not 0 <= place < depth:
            raise OptionError("at", f"no block {place}: the model has {depth}, counted from 0")
        if not 0 < share <= 1:
            raise OptionError("keep", f"{share!r} is not in (0, 1]; it is the share of tokens that stays")
    shares = [found[place] for place in sorted(found)]
    if shares != sorted(shares, reverse=True):
        raise OptionError("keep", f"{shares} grows; dropped tokens do not come back")


def plan(model: nn.Module, *, keep: float | Mapping[int, float] = 0.7, at: Sequence[int] | None = None) -> list[Edit]:
    """The edit that puts the predictors in; nothing is touched."""
    found = stages(keep, at, len(blocks_of(model)))
    return [Edit("", "sparse_tokens", {"keep": [[place, share] for place, share in found.items()]})]


@dataclass(frozen=True)
class DynamicViT(Method):
    """Adds ratio_weight * ratio loss + distill_weight * KL + token_weight * squared difference of kept tokens.

    `teacher` is the un-sparsified model of the same family; without one only the ratio loss is added.
    """

    teacher: nn.Module | None = None
    keep: float | Mapping[int, float] = 0.7
    at: Sequence[int] | None = None
    ratio_weight: float = 2.0
    distill_weight: float = 0.5
    token_weight: float = 0.5

    def prepare(self, model: nn.Module) -> nn.Module:
        if not all_of(model, SparseBlocks):
            model = apply(model, plan(model, keep=self.keep, at=self.at))
        return tap(model, anatomy_of(model).norm) if self.teacher is not None else model

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        sparse = find(run.model, SparseBlocks)
        decisions = sparse.aside.take("decisions")
        shares = [share for _, share in sparse.keep]
        ratio = sum(
            (d.float().mean(dim=(1, 2)) - share).square().mean() for d, share in zip(decisions, shares, strict=True)
        )
        terms = {**terms, "ratio": self.ratio_weight * ratio / len(shares)}  # type: ignore[operator]
        if self.teacher is None:
            return terms
        with watching(self.teacher, anatomy_of(self.teacher).norm) as seen:
            answer = run.call(self.teacher)
        normed: Aside = submodule(run.model, anatomy_of(run.model).norm).aside  # type: ignore[assignment]
        tokens = normed.take("output")[:, sparse.prefix :]
        distance = token_distance(tokens, seen[-1][:, prefix_of(self.teacher) :], decisions[-1])
        heads = list(all_of(run.model, TwoHeads).values())
        mine = heads[0].answer(run.output) if heads else run.output
        return {**terms, "kl": self.distill_weight * kl(mine, answer), "tokens": self.token_weight * distance}

    def finish(self, model: nn.Module) -> nn.Module:
        return untap(model)


def token_distance(tokens: Tensor, teacher: Tensor, kept: Tensor) -> Tensor:
    """Mean squared difference over kept tokens and channels of (B, N, C); 0 if nothing is kept."""
    if tokens.shape != teacher.shape:
        raise ValueError(
            f"the teacher's tokens are {tuple(teacher.shape)}, the student's {tuple(tokens.shape)}; give one alike"
        )
    kept = (kept > 0.5).float()
    difference = (tokens.float() - teacher.float()).square().mean(dim=-1, keepdim=True)
    return (difference * kept).sum() / kept.sum().clamp(min=1.0)


@contextmanager
def recording(model: nn.Module) -> Iterator[SparseBlocks]:
    """While inside, each evaluation puts the kept positions (B, n) of every stage in the module's `aside.places`."""
    sparse = find(model, SparseBlocks)
    sparse.recording = True
    try:
        yield sparse
    finally:
        sparse.recording = False
        sparse.aside.clear()
