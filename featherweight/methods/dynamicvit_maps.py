# SPDX-License-Identifier: Apache-2.0
"""DynamicViT for networks of maps (Rao 2022, 2207.01580): in one stage of timm's ConvNeXt or Swin most positions of a
map take a block's MLP, the others a fast path of one linear layer, and all stay on the map.

Evaluation gathers both kinds, runs each, and puts them back. Training carries two streams, one as if every position
were kept and one as if none were, mixed by a sampled mask (Gumbel-softmax, straight through). The masks of successive
predictors do not depend on each other. Not here: blocks whose norm looks at the whole map (ConvNeXt V2, Swin V2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import OptionError
from ..surgery import Edit, edit_kind, put, submodule
from .token_scores import (
    Keep,
    Predictor,
    Sparse,
    above,
    all_sparse,
    check_choice,
    check_shares,
    shares_at,
    take,
)

STAGE = 3  # counted from 1
RATIO_WEIGHT = 10.0


@dataclass(frozen=True)
class Pyramid:
    """One family of networks in stages. Maps are (B, H, W, C) here, whatever the host has."""

    stages: str  # path of the list of stages; the blocks of each are at `blocks`
    channels_last: bool  # whether the host's own maps are (B, H, W, C)
    spatial: Callable[[Any, Tensor], Tensor]  # (block, map) -> what looks around: convolution, or attention
    slow: Callable[[Any, Tensor], Tensor]  # (block, positions (B, n, C)) -> the MLP's branch
    drop: Callable[[Any, Tensor], Tensor]  # (block, branch) -> stochastic depth
    residual: bool  # whether the branch is added to the block's input; else to what looked around
    eps: tuple[float, float]  # of the new norms: in the predictors, in the fast paths
    features: str  # the last stage's map, or the last norm's
    normed: Callable[[Any, Tensor], Tensor]  # (model, that) -> (B, N, C)


def _conv_mlp(block: Any, y: Tensor) -> Tensor:
    """Positions (B, n, C) through norm, MLP and layer scale of a ConvNeXt block."""
    if block.use_conv_mlp:  # 1x1 convolutions
        y = block.mlp(block.norm(y.transpose(1, 2)[..., None]))[..., 0].transpose(1, 2)
    else:
        y = block.mlp(block.norm(y))
    return y if block.gamma is None else y * block.gamma


def _last_map(model: Any, x: Tensor) -> Tensor:
    """ConvNeXt's last map (B, C, H, W), with the norm that the host takes after pooling."""
    norm = model.head.norm if isinstance(model.norm_pre, nn.Identity) else model.norm_pre
    return norm(x).flatten(2).transpose(1, 2)


CONVNEXT = Pyramid(
    stages="stages",
    channels_last=False,
    spatial=lambda block, x: block.conv_dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1),
    slow=_conv_mlp,
    drop=lambda block, x: block.drop_path(x),
    residual=True,
    eps=(1e-6, 1e-6),
    features="stages",
    normed=_last_map,
)
SWIN = Pyramid(
    stages="layers",
    channels_last=True,
    spatial=lambda block, x: x + block.drop_path1(block._attn(block.norm1(x))),
    slow=lambda block, y: block.mlp(block.norm2(y)),
    drop=lambda block, x: block.drop_path2(x),
    residual=False,
    eps=(1e-5, 1e-5),
    features="norm",
    normed=lambda model, x: x.flatten(1, 2),
)
_BY_PLACE = {
    ("timm.models.convnext", "ConvNeXt"): CONVNEXT,
    ("timm.models.swin_transformer", "SwinTransformer"): SWIN,
}


def pyramid_of(model: nn.Module) -> Pyramid | None:
    """The record of a ConvNeXt or Swin, or None."""
    found = (_BY_PLACE.get((cls.__module__, cls.__name__)) for cls in type(model).__mro__)
    return next((record for record in found if record is not None), None)


class AdaptiveBlock(nn.Module):
    """A host's block with a fast path beside its MLP, for the positions that are not kept."""

    def __init__(self, block: nn.Module, pyramid: Pyramid, dim: int) -> None:
        super().__init__()
        self.block = block
        self.pyramid = pyramid
        linear = nn.Linear(dim, dim)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        self.fast_path = nn.Sequential(nn.LayerNorm(dim, eps=pyramid.eps[1]), linear)
        gamma = getattr(block, "gamma", None)
        if gamma is not None:
            self.fast_path_gamma = nn.Parameter(gamma.detach().clone())  # it starts at the strength of the MLP

    def fast(self, y: Tensor) -> Tensor:
        """Positions (B, n, C) -> the fast path's branch."""
        y = self.fast_path(y)
        return y * self.fast_path_gamma if hasattr(self, "fast_path_gamma") else y

    def slow(self, y: Tensor) -> Tensor:
        return self.pyramid.slow(self.block, y)

    def split(self, x: Tensor, cut: Cut) -> Tensor:
        """Evaluation: map (B, H, W, C) -> (B, H, W, C)."""
        y = self.pyramid.spatial(self.block, x)
        flat = y.flatten(1, 2)
        return (x if self.pyramid.residual else y) + cut.joined(flat, self.slow, self.fast).view_as(x)

    def streams(self, x1: Tensor, x2: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Training: the kept and the dropped stream (B, H, W, C), and the mask (B, H, W, 1)."""
        y = self.pyramid.spatial(self.block, kept * x1 + (1 - kept) * x2)
        y1, y2 = kept * y + (1 - kept) * x1, (1 - kept) * y + kept * x2
        if not self.pyramid.residual:
            x1 = x2 = y
        return x1 + self._branch(self.slow, y1), x2 + self._branch(self.fast, y2)

    def _branch(self, path: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
        return self.pyramid.drop(self.block, path(y.flatten(1, 2)).view_as(y))


@dataclass(frozen=True)
class Cut:
    """Which positions take the MLP (B, n), and which the fast path (B, m); None: those that are left over."""

    chosen: Tensor
    rest: Tensor | None

    def joined(self, y: Tensor, slow: Callable[[Tensor], Tensor], fast: Callable[[Tensor], Tensor]) -> Tensor:
        """Positions (B, N, C) -> each through its path, in place."""
        if self.rest is None:  # images keep different numbers
            return fast(y).scatter(1, self.chosen[..., None].expand(-1, -1, y.shape[2]), slow(take(y, self.chosen)))
        both = torch.cat([slow(take(y, self.chosen)), fast(take(y, self.rest))], dim=1)
        return take(both, torch.cat([self.chosen, self.rest], dim=1).sort(dim=1).indices)


class SparseStage(Sparse):
    """The blocks of one stage; from the first place on each position takes the MLP or the fast path."""

    def __init__(
        self, blocks: nn.Module, pyramid: Pyramid, keep: Sequence[tuple[int, float]], dim: int, threshold: float | None
    ) -> None:
        super().__init__(keep, threshold)
        first = self.keep[0][0]
        children = list(blocks.children())
        made = [AdaptiveBlock(block, pyramid, dim) for block in children[first:]]
        self.blocks = nn.ModuleList([*children[:first], *made])
        self.score_predictor = nn.ModuleList([Predictor(dim, pyramid.eps[0]) for _ in keep])
        self.pyramid = pyramid

    def forward(self, x: Tensor) -> Tensor:
        first = self.keep[0][0]
        for block in self.blocks[:first]:
            x = block(x)
        if not self.pyramid.channels_last:
            x = x.permute(0, 2, 3, 1)
        x = self._streams(x) if self.training else self._split(x)
        return x if self.pyramid.channels_last else x.permute(0, 3, 1, 2)

    def _adaptive(self) -> list[tuple[int | None, AdaptiveBlock]]:
        """The number of the predictor to ask before, and the block."""
        first, stages = self.keep[0][0], self.stages()
        return [(stages.get(first + i), block) for i, block in enumerate(self.blocks[first:])]  # type: ignore[misc]

    def _streams(self, x: Tensor) -> Tensor:
        x1 = x2 = x
        kept = x.new_ones(*x.shape[:3], 1)  # (B, H, W, 1)
        decisions: list[Tensor] = []
        for stage, block in self._adaptive():
            if stage is not None:
                mixed = kept * x1 + (1 - kept) * x2
                log_p = self.score_predictor[stage](mixed.flatten(1, 2))  # (B, N, 2)
                decision = F.gumbel_softmax(log_p, hard=True, dim=-1)[..., :1].to(x.dtype)
                decisions.append(decision)
                kept = decision.view_as(kept)
            x1, x2 = block.streams(x1, x2, kept)
        self.aside.decisions = decisions
        return kept * x1 + (1 - kept) * x2

    def _split(self, x: Tensor) -> Tensor:
        total, cut = x.shape[1] * x.shape[2], None
        seen: list[Tensor] = []
        for stage, block in self._adaptive():
            if stage is not None:
                cut, places = self._cut(stage, x, total)
                seen.append(places)
            x = self._whole(block.block, x) if cut is None else block.split(x, cut)
        if self.recording:
            self.aside.places, self.aside.count = seen, total
        return x

    def _whole(self, block: nn.Module, x: Tensor) -> Tensor:
        """The host's own block, as it is."""
        if self.pyramid.channels_last:
            return block(x)
        return block(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _cut(self, stage: int, x: Tensor, total: int) -> tuple[Cut | None, Tensor]:
        """Who takes which path from this stage on, None where all are kept; and the places kept (B, n)."""
        if self.threshold is None and self.count(stage, total) == total:
            return None, torch.arange(total, device=x.device).expand(x.shape[0], -1)
        score = self.score_predictor[stage](x.flatten(1, 2))[..., 0]  # (B, N)
        if self.threshold is not None:
            chosen, _ = above(score, self.threshold, None)
            return Cut(chosen, None), chosen
        count = self.count(stage, total)
        order = score.topk(total, dim=1).indices
        chosen, rest = order[:, :count].sort(dim=1).values, order[:, count:].sort(dim=1).values
        return Cut(chosen, rest), chosen


@edit_kind
def sparse_stage(
    model: nn.Module, stage: int, keep: Sequence[tuple[int, float]], threshold: float | None = None
) -> nn.Module:
    """The host with the blocks of one stage inside `SparseStage`; predictors and fast paths start at random."""
    if all_sparse(model):
        raise OptionError("sparse_stage", "this model drops tokens already")
    check_choice("predictor", threshold)
    pyramid, path = _pyramid(model), blocks_path(model, stage)
    blocks = submodule(model, path)
    keep = list(check_shares(dict(keep), len(list(blocks.children())), falling=False).items())
    dim = _width(blocks)
    return put(model, path, SparseStage(blocks, pyramid, keep, dim, threshold))


def stages(keep: Keep, at: Sequence[int] | None, depth: int) -> dict[int, float]:
    """{before which block of the stage: share}. A single rate r becomes r, r - 0.2, r - 0.4 at `at`."""
    return check_shares(shares_at(keep, at, depth, lambda rate, k: rate - 0.2 * k if k else rate), depth, falling=False)


def plan(
    model: nn.Module,
    *,
    keep: Keep = 0.7,
    at: Sequence[int] | None = None,
    stage: int = STAGE,
    threshold: float | None = None,
) -> list[Edit]:
    """The edit that makes one stage (counted from 1) of timm's ConvNeXt or Swin adaptive; nothing is touched."""
    check_choice("predictor", threshold)
    blocks = submodule(model, blocks_path(model, stage))
    found = stages(keep, at, len(list(blocks.children())))
    chosen = {"threshold": threshold} if threshold is not None else {}
    return [Edit("", "sparse_stage", {"stage": stage, "keep": [[i, share] for i, share in found.items()], **chosen})]


def blocks_path(model: nn.Module, stage: int) -> str:
    """Path of a stage's blocks. OptionError for a stage that is not there, or that has blocks of another kind."""
    pyramid = _pyramid(model)
    count = len(list(submodule(model, pyramid.stages).children()))
    if isinstance(stage, bool) or not isinstance(stage, int) or not 1 <= stage <= count:
        raise OptionError("stage", f"no stage {stage!r}: the model has {count}, counted from 1")
    path = f"{pyramid.stages}.{stage - 1}.blocks"
    if isinstance(submodule(model, path), SparseStage):
        raise OptionError("stage", f"{stage} drops tokens already")
    for block in submodule(model, path).children():
        if "GlobalResponseNorm" in type(getattr(block, "mlp", None)).__name__:
            raise OptionError("model", "ConvNeXt V2 normalizes over the whole map; give a ConvNeXt of the first kind")
        if not isinstance(getattr(block, "shortcut", None) or nn.Identity(), nn.Identity):
            raise OptionError("stage", f"{stage} has a block that changes the size of the map; give another")
    return path


def _pyramid(model: nn.Module) -> Pyramid:
    found = pyramid_of(model)
    if found is None:
        raise TypeError(f"{type(model).__name__} is not timm's ConvNeXt or Swin")
    return found


def _width(blocks: nn.Module) -> int:
    """Channels of a stage, read from a block's MLP."""
    layer = next(iter(blocks.children())).mlp.fc1  # type: ignore[union-attr]
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)  # type: ignore[union-attr,arg-type]
