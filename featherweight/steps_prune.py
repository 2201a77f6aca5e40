# SPDX-License-Identifier: Apache-2.0
"""The steps that prune single weights, channels and blocks: functions Work -> Work like those of `steps`."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from torch import nn

from . import outlines_prune
from .binding import Within
from .composition import CODEBOOK, FLOATS, MASKS, MODEL, NORMS, PLAIN, TOKENS, TRAINS, Effect, also, composes
from .costs import macs_share, time_share
from .errors import OptionError
from .fitting import trained
from .methods import channels, drop_blocks, iterative
from .methods import sparsify as single
from .methods.budgeted import fit_budget
from .methods.distill import Distill
from .methods.gradual import GradualPruning
from .methods.masks import sparsity as zeros
from .methods.narrow import kept_outputs
from .methods.repair import repair
from .modes import BATCH_NORMS
from .recipe import Count, Epochs, Rate
from .surgery import apply
from .train import Method
from .work import Work, current, finished_stage

Share = Annotated[float, Within(0.0, 1.0, open_high=True)]
ByLayer = Share | Mapping[str, Share]
Options = Mapping[str, Any]


def _zeros(options: Options) -> Effect:
    """Zeros, and where nothing is trained after them, statistics that fit no more."""
    apart = {CODEBOOK: "weights that share a value cannot be told apart"}
    effect = Effect(
        needs={MODEL: "", FLOATS: "they are compared by size"},
        gives=(MASKS,),
        breaks={NORMS: "weights are gone and nothing is trained after", **apart},
    )
    still = options["epochs"] is None and options["how"] == "one_shot"
    return effect if still else also(TRAINS, gives=(MASKS,), breaks=apart)


@composes(_zeros, outline=outlines_prune.thinned, marks={"sparse": Effect(gives=(MASKS,))})
def sparsify(
    work: Work,
    *,
    sparsity: ByLayer = 0.8,
    how: Literal["one_shot", "gradual", "iterative"] = "one_shot",
    importance: Literal["magnitude", "taylor", "snip", "fisher", "wanda", "movement"] = "magnitude",
    scope: Literal["layer", "output", "global", "lamp", "erk"] | None = None,
    pattern: str = "",
    quality: Annotated[float, Within(0.0, 1000.0)] | Mapping[str, float] | None = None,
    rounds: Annotated[int, Within(1, 100)] = 3,
    end: Annotated[float, Within(0.0, 1.0, open_low=True)] = 0.7,
    skip: Sequence[str] = (),
    samples: Count = 256,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Set single weights to zero, at once, while training, or in rounds of `epochs` each; they stay zero after.

    At once, nothing is trained without `epochs`. scope: by default layer for shares by layer, lamp for one share by
    magnitude, output for wanda, else global. quality: of the rounds, a threshold of so many standard deviations.
    """
    before = current(work)
    where: dict[str, Any] = {"scope": scope, "pattern": pattern, "skip": tuple(skip)}
    _check(how, importance, quality, sparsity)

    def learn(place: Work, model: nn.Module, *methods: Method) -> nn.Module:
        return trained(place, model, (*_teachers(work, before), *methods), epochs, images, lr)

    def make() -> nn.Module:
        if how == "gradual":
            options: dict[str, Any] = {"sparsity": sparsity, "importance": importance, "end": end}
            return learn(work, before, GradualPruning(**options, **where))
        seen = {"batches": list(work.batches("train", limit=samples, augment=False).epoch(0)), "task": work.task}
        known = {"importance": importance, **seen, **where}
        if how == "one_shot":
            small = single.sparsify(before, sparsity=sparsity, **known)
            return learn(work, small) if epochs is not None else small.eval()

        def retrain(model: nn.Module, number: int) -> nn.Module:
            place = dataclasses.replace(work, step=f"{work.step}/round-{number}")
            return place.once("model", lambda: learn(place, model))

        return iterative.iterate(before, retrain, rounds=rounds, sparsity=_one(sparsity), quality=quality, **known)

    model = work.once("model", make)
    return finished_stage(work, f"sparse ({zeros(model):.0%} zeros, {how.replace('_', ' ')})", model)


@composes(
    also(
        TRAINS,
        needs={PLAIN: "rows and columns are cut out of them"},
        breaks={MASKS: "rows and columns are cut out of what they cover"},
    ),
    outline=outlines_prune.cut,
)
def prune_channels(
    work: Work,
    *,
    ratio: ByLayer = 0.3,
    macs: Annotated[float, Within(0.0, 1.0, open_low=True)] | None = None,
    time: Annotated[float, Within(0.0, 1.0, open_low=True)] | None = None,
    runtime: Literal["onnxruntime", "openvino"] = "openvino",
    importance: Literal["l1", "l2", "bn_scale", "fpgm", "taylor"] = "l2",
    scope: Literal["uniform", "global", "isomorphic"] = "uniform",
    round_to: Annotated[int, Within(1, 1024)] = 8,
    skip: Sequence[str] = (),
    samples: Count = 256,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Cut whole channels out, mend the statistics of norms, then fine-tune with the teachers at hand.

    macs, time: in place of `ratio` a budget, the share of the multiply-adds or of the measured time that may be left.
    """
    before = current(work)
    if macs is not None and time is not None:
        raise OptionError("macs", "and time are two budgets; give one of them")
    seen = list(work.batches("train", limit=samples, augment=False).epoch(0))
    example = seen[0]["image"][:2]

    def cut() -> nn.Module:
        known: dict[str, Any] = {"importance": importance, "batches": seen, "task": work.task, "skip": tuple(skip)}
        how: dict[str, Any] = {"scope": scope, "round_to": round_to}
        if macs is None and time is None:
            return channels.prune_channels(before, example, ratio=ratio, **known, **how)
        ranked = channels.rank(before, example, **known)
        cost = macs_share(before, example) if time is None else time_share(before, example, runtime=runtime)
        budget = time if macs is None else macs
        found = fit_budget(lambda r: apply(before, ranked.edits(r, **how)), cost, budget=budget or 1.0)
        work.tell({"event": "note", "text": f"{work.step}: ratio {found.ratio:.3f} leaves {found.cost:.1%}"})
        return found.model

    def make() -> nn.Module:
        small = cut()
        if any(isinstance(module, BATCH_NORMS) for module in small.modules()):
            small = repair(small, before, seen, work.task, kept=kept_outputs(small, before))
        return trained(work, small, _teachers(work, before), epochs, images, lr)

    said = f"{macs:.0%} of MACs" if macs is not None else f"{time:.0%} of time" if time is not None else f"{ratio}"
    return finished_stage(work, f"prune channels ({said})", work.once("model", make))


@composes(also(TRAINS, needs={TOKENS: "what drops or merges some counts the blocks"}), outline=outlines_prune.shorter)
def drop(
    work: Work,
    *,
    count: Annotated[int, Within(0, 1000)] = 1,
    rule: drop_blocks.Rule = "similarity",
    skip: Sequence[str] = (),
    samples: Count = 128,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Leave whole residual blocks out, those that do least or evenly, then fine-tune with the teachers at hand."""
    before = current(work)

    def make() -> nn.Module:
        seen = list(work.batches("train", limit=samples, augment=False).epoch(0))
        small = drop_blocks.drop_blocks(before, count=count, rule=rule, batches=seen, task=work.task, skip=tuple(skip))
        return trained(work, small, _teachers(work, before), epochs, images, lr)

    return finished_stage(work, f"{count} blocks less", work.once("model", make))


def _teachers(work: Work, before: nn.Module) -> tuple[Method, ...]:
    """What takes part in training already, else the model as it was."""
    return work.methods or (Distill(copy.deepcopy(before).eval()),)


def _check(how: str, importance: str, quality: Any, sparsity: Any) -> None:
    if (importance == "movement") > (how == "gradual"):
        raise OptionError("importance", "'movement' is seen while training only: use how: gradual")
    if how == "gradual" and importance in ("snip", "wanda"):
        raise OptionError("importance", f"{importance!r} is taken at once: use how: one_shot or iterative")
    if how != "one_shot" and isinstance(sparsity, Mapping):
        raise OptionError("sparsity", f"how: {how} wants one number; by layer there is `quality`, or how: one_shot")
    if quality is not None and how != "iterative":
        raise OptionError("quality", "is a threshold of the rounds: use how: iterative")


def _one(sparsity: ByLayer) -> float:
    return sparsity if isinstance(sparsity, (int, float)) else 0.0
