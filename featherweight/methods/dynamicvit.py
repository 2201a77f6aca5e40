# SPDX-License-Identifier: Apache-2.0
"""DynamicViT (Rao 2021, 2106.02034): predictors drop the tokens that matter least, stage by stage, image by image.

Works on every described transformer (`anatomy`); on timm's ConvNeXt and Swin in the form of `dynamicvit_maps`. Training
drops nothing: decisions are sampled (Gumbel-softmax, straight through) and dropped tokens are masked out of the
attention as keys. Evaluation keeps as many tokens of every image (top-k, in the order of their places) and gathers
them, so that later blocks really are smaller, and it exports; with a threshold it keeps as many as are likely enough.

Training by gathering (ours, not the paper's) really drops: the tokens with the largest noisy scores stay, as many as in
evaluation, and a predictor learns from the attention that others pay to what it kept.

The mask is added to the scores as log(keep): equal to the official masked softmax but for its two 1e-6 terms.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from ..anatomy import anatomy_of, blocks_of, embed_dim, prefix_of, wrap_blocks
from ..errors import OptionError
from ..surgery import Edit, apply, edit_kind, edits_of, record, untap
from ..train import Method, Pass
from . import dynamicvit_loss as losses
from . import dynamicvit_maps as maps
from .distill import check_teacher
from .dynamicvit_loss import param_groups, token_distance, token_kl
from .sparse_blocks import SparseBlocks, attention_mask
from .token_scores import (
    Keep,
    Predictor,
    Score,
    Sparse,
    all_sparse,
    check_choice,
    check_shares,
    one_sparse,
    recording,
    shares_at,
)

__all__ = [
    "DynamicViT", "Predictor", "Sparse", "SparseBlocks", "all_sparse", "attention_mask", "param_groups", "plan",
    "recording", "set_keep", "stages", "token_distance", "token_kl",
]  # fmt: skip
Training = Literal["mask", "gather"]
TRAININGS = ("mask", "gather")


@edit_kind
def sparse_tokens(
    model: nn.Module,
    keep: Sequence[tuple[int, float]],
    score: Score = "predictor",
    seed: int = 0,
    threshold: float | None = None,
) -> nn.Module:
    """The host with its blocks inside `SparseBlocks`; predictors start at random."""
    if all_sparse(model):
        raise OptionError("sparse_tokens", "this model drops tokens already")
    depth, dim, prefix, anatomy = len(blocks_of(model)), embed_dim(model), prefix_of(model), anatomy_of(model)
    keep = list(check_shares(dict(keep), depth, falling=True).items())
    check_choice(score, threshold, seed)
    if score == "attention" and (prefix < 1 or anatomy.halves is None):
        text = f"attention needs a class token, and blocks described in halves; {type(model).__name__} lacks one"
        raise OptionError("score", text)
    options: dict[str, Any] = {"score": score, "seed": seed, "threshold": threshold}
    return wrap_blocks(model, lambda blocks: SparseBlocks(blocks, anatomy, keep, dim, prefix, **options))


def stages(keep: Keep, at: Sequence[int] | None, depth: int) -> dict[int, float]:
    """{before which block: share of the first count that stays}. A single rate r becomes r, r^2, r^3 at `at`.

    Shares may also be listed for `at`, or given by place. Places default to a quarter, a half and three quarters of the
    depth, the paper's choice. OptionError for places and shares that do not fit.
    """
    return check_shares(shares_at(keep, at, depth, lambda rate, k: rate ** (k + 1)), depth, falling=True)


def plan(
    model: nn.Module,
    *,
    keep: Keep = 0.7,
    at: Sequence[int] | None = None,
    stage: int | None = None,
    score: Score = "predictor",
    seed: int = 0,
    threshold: float | None = None,
) -> list[Edit]:
    """The edit that puts the predictors in; nothing is touched.

    stage: of timm's ConvNeXt and Swin, counted from 1. score: what decides who stays; "random" and "attention" (of the
    class token in the block that follows) are baselines without predictors. threshold: keep the tokens at least this
    likely to be kept, in place of a fixed count. OptionError for options that do not fit the model.
    """
    check_choice(score, threshold, seed)
    chosen = {"threshold": threshold} if threshold is not None else {}
    if maps.pyramid_of(model) is not None:
        if score != "predictor":
            raise OptionError("score", f"{score!r} is for transformers; {type(model).__name__} takes predictor")
        return maps.plan(model, keep=keep, at=at, stage=maps.STAGE if stage is None else stage, **chosen)
    if stage is not None:
        raise OptionError("stage", f"is for timm's ConvNeXt and Swin; {type(model).__name__} has one list of blocks")
    if threshold is not None and getattr(model, "global_pool", "token") not in ("token", ""):
        text = f"{type(model).__name__} averages its tokens, so rows of a batch cannot be filled up; leave it out"
        raise OptionError("threshold", text)
    found = stages(keep, at, len(blocks_of(model)))
    spec: dict[str, Any] = {"keep": [[place, share] for place, share in found.items()], **chosen}
    if score != "predictor":
        spec |= {"score": score} | ({"seed": seed} if score == "random" else {})
    return [Edit("", "sparse_tokens", spec)]


def set_keep(model: nn.Module, keep: Keep | None = None, *, threshold: float | None = None) -> nn.Module:
    """A copy that keeps other shares of the tokens, at the same places; a saved model remembers the new ones.

    keep: as for `plan`; None leaves the shares. threshold: None goes back to fixed counts. LookupError for a model that
    drops none, OptionError for shares that do not fit.
    """
    new = copy.deepcopy(model)
    sparse = one_sparse(new)
    check_choice("predictor" if len(sparse.score_predictor) else "random", threshold)  # type: ignore[arg-type]
    if keep is not None:
        places = [place for place, _ in sparse.keep]
        given = None if isinstance(keep, Mapping) else places
        if given is None and sorted(keep) != places:  # type: ignore[arg-type]
            raise OptionError("keep", f"names blocks {sorted(keep)}; this model drops before {places}")  # type: ignore[arg-type]
        share = stages if isinstance(sparse, SparseBlocks) else maps.stages
        sparse.keep = tuple(share(keep, given, places[-1] + 1).items())
    sparse.threshold = threshold
    kinds = ("sparse_tokens", "sparse_stage")
    pairs = [[place, share] for place, share in sparse.keep]
    record(new, [_changed(edit, pairs, threshold) if edit.kind in kinds else edit for edit in edits_of(model)])
    return new


def _changed(edit: Edit, keep: list[list[Any]], threshold: float | None) -> Edit:
    spec = {key: value for key, value in edit.spec.items() if key != "threshold"} | {"keep": keep}
    return Edit(edit.path, edit.kind, spec | ({} if threshold is None else {"threshold": threshold}))


@dataclass(frozen=True)
class DynamicViT(Method):
    """Adds ratio_weight * ratio loss + distill_weight * KL + token_weight * squared difference of kept tokens.

    `teacher` is the un-sparsified model of the same family; without one only the ratio loss is added. keep, at, stage,
    score, seed and threshold as in `plan`; they count where the model does not drop tokens yet. train: "mask" as the
    paper, or "gather". ratio: shares hold for each image, or for the "batch". averaging: "official", or "corrected":
    the distance of a token is summed over its channels, as the paper writes it. ratio_weight: None is 2, and 10 on
    ConvNeXt and Swin.
    """

    teacher: nn.Module | None = None
    keep: Keep = 0.7
    at: Sequence[int] | None = None
    ratio_weight: float | None = None
    distill_weight: float = 0.5
    token_weight: float = 0.5
    stage: int | None = None
    score: Score = "predictor"
    seed: int = 0
    threshold: float | None = None
    train: Training = "mask"
    ratio: losses.Ratio = "image"
    averaging: losses.Averaging = field(default="official")

    def __post_init__(self) -> None:
        check_choice(self.score, self.threshold, self.seed)
        losses.check(self.ratio, self.averaging)
        if self.train not in TRAININGS:
            raise OptionError("train", f"{self.train!r} is not one of {', '.join(TRAININGS)}")

    def prepare(self, model: nn.Module) -> nn.Module:
        if self.teacher is not None:
            check_teacher(model, self.teacher)
        if not all_sparse(model):
            options: dict[str, Any] = {"stage": self.stage, "score": self.score, "seed": self.seed}
            known = {"keep": self.keep, "at": self.at, "threshold": self.threshold, **options}
            model = apply(model, plan(model, **known))
        sparse = one_sparse(model)
        if self.train == "gather":
            if not isinstance(sparse, SparseBlocks):
                raise OptionError("train", "gather is for transformers; ConvNeXt and Swin train with two streams")
            model = copy.deepcopy(model)
            one_sparse(model).gathering = True  # type: ignore[assignment]
        return losses.tapped(model) if self.teacher is not None else model

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        sparse = one_sparse(run.model)
        ratio = losses.ratio_of(sparse, self.ratio)
        if ratio is not None:
            weight = self.ratio_weight if self.ratio_weight is not None else 2.0
            if self.ratio_weight is None and not isinstance(sparse, SparseBlocks):
                weight = maps.RATIO_WEIGHT
            terms = {**terms, "ratio": weight * ratio}
        if self.teacher is None:
            sparse.aside.clear()
            return terms
        answer, distance = losses.lessons(run, sparse, self.teacher, self.averaging)
        return {**terms, "kl": self.distill_weight * answer, "tokens": self.token_weight * distance}

    def finish(self, model: nn.Module) -> nn.Module:
        model = untap(model)
        for sparse in all_sparse(model):
            if isinstance(sparse, SparseBlocks):
                sparse.gathering = False
        return model
