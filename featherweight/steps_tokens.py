# SPDX-License-Identifier: Apache-2.0
"""The steps that leave fewer tokens, by dropping or merging: functions Work -> Work like those of `steps`."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from torch import nn

from . import outlines
from .binding import Filled, Ratio, Within
from .composition import GLOBAL, MODEL, ONCE, TOKENS, TRAINS, Effect, also, composes
from .errors import OptionError
from .fitting import trained
from .methods import dynamicvit_loss as losses
from .methods import tome
from .methods.distill import Distill
from .methods.dynamicvit import DynamicViT, Training, plan
from .methods.token_scores import Score, all_sparse
from .recipe import Count, Epochs, Rate
from .surgery import apply
from .work import Work, current, finished_stage

Share = Annotated[float, Within(0.0, 1.0, open_low=True)]
Weight = Annotated[float, Within(0.0, 1e6)]
Merged = Annotated[int, Within(0, 1_000_000)]


FEWER = Effect(breaks={TOKENS: "some are dropped or merged"})
SPARSE = {"sparse_tokens": FEWER, "sparse_stage": FEWER}


WHOLE = {TOKENS: "they are counted from the first block on", GLOBAL: "groups have a fixed number of tokens"}


@composes(also(TRAINS, needs=WHOLE, breaks=FEWER.breaks), marks=SPARSE, outline=outlines.tokens)
def tokens(
    work: Work,
    *,
    keep: Share | Annotated[Sequence[Share], Filled()] = 0.7,
    at: Annotated[Sequence[Annotated[int, Within(0, 1000)]], Filled()] | None = None,
    stage: Annotated[int, Within(1, 1000)] | None = None,
    score: Score = "predictor",
    seed: Annotated[int, Within(0, 2**32 - 1)] = 0,
    threshold: Annotated[float, Within(0.0, 1.0, open_low=True, open_high=True)] | None = None,
    train: Training = "mask",
    ratio: losses.Ratio = "image",
    averaging: losses.Averaging = "official",
    ratio_weight: Weight | None = None,
    distill_weight: Weight = 0.5,
    token_weight: Weight = 0.5,
    predictor_lr: Annotated[float, Within(0.0, 1e6, open_low=True)] = 10.0,
    frozen: Ratio = 0.0,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Drop tokens (DynamicViT), taught by the model as it was; predictors learn `predictor_lr` times as fast.

    frozen: the share of the step in which only they learn.
    """
    before = current(work)
    if all_sparse(before):
        raise LookupError("the model drops tokens already")
    weights: dict[str, Any] = {"ratio_weight": ratio_weight, "distill_weight": distill_weight}
    where: dict[str, Any] = {"keep": keep, "at": at, "stage": stage, "score": score, "seed": seed}
    options: dict[str, Any] = {"threshold": threshold, "train": train, "ratio": ratio, "averaging": averaging}
    plan(before, **where, threshold=threshold)  # a mistake is told before anything is trained
    method = DynamicViT(copy.deepcopy(before).eval(), token_weight=token_weight, **where, **options, **weights)
    methods = (*work.methods, method)
    rates = _rates(before, score, predictor_lr, frozen)
    model = work.once("model", lambda: trained(work, before, methods, epochs, images, lr, **rates))
    shares = ", ".join(f"{share:g}" for share in (keep if isinstance(keep, Sequence) else [keep]))
    said = f"keep {shares}" + ("" if score == "predictor" else f", {score}")
    return finished_stage(dataclasses.replace(work, methods=methods), f"tokens ({said})", model)


def _merging(options: Mapping[str, Any]) -> Effect:
    needs = {**WHOLE, ONCE: "each block merges another number"}
    return also(TRAINS if options["epochs"] else Effect(needs={MODEL: ""}), needs=needs, breaks=FEWER.breaks)


@composes(_merging, marks={"merge_tokens": FEWER}, outline=outlines.merge)
def merge(
    work: Work,
    *,
    r: Merged | Annotated[Sequence[Merged], Filled()] = 8,
    inflection: Annotated[float, Within(-1.0, 1.0)] = 0.0,
    proportional: bool = True,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Merge tokens that are alike (ToMe), `r` in each block; without `epochs` the model is not trained after.

    r, inflection: see `methods.tome.schedule`. It comes after `distill`, `tokens` cannot be beside it.
    """
    before = current(work)
    if epochs is None and (images, lr) != (None, None):
        raise OptionError("epochs", "merge is not trained without; images and lr say how, so give epochs too")
    new = apply(before, tome.plan(before, r=r, inflection=inflection, proportional=proportional))
    methods = work.methods or (Distill(copy.deepcopy(before).eval()),)
    model = work.once("model", lambda: trained(work, new, methods, epochs, images, lr) if epochs else new.eval())
    return finished_stage(work, f"merge (r {r})", model)


def _rates(model: nn.Module, score: Score, predictor_lr: float, frozen: float) -> dict[str, Any]:
    """How fast the new parts learn, and until when they learn alone; nothing where there are none."""
    if score != "predictor":
        return {}
    new = losses.new_parts(model)
    groups = {"groups": dict.fromkeys(new, predictor_lr)}
    return {**groups, "freeze": {**dict.fromkeys(new, losses.AT_ONCE), "*": frozen}} if frozen else groups
