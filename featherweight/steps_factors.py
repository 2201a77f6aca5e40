# SPDX-License-Identifier: Apache-2.0
"""The steps that put something with fewer weights in place of layers, and one that trains with more: Work -> Work."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from torch import nn

from .binding import Ratio, Within
from .composition import CODEBOOK, FLOATS, LOOKS, MASKS, MODEL, NORMS, PLAIN, TRAINS, Effect, also, composes, restarting
from .fitting import began, changed, taught, trained
from .methods import crelu as pairs
from .methods import equivariant as turns
from .methods import lowrank as factors
from .methods import structured as matrices
from .methods import write_out as writing
from .methods.overparameterize import Block, Overparameterize
from .recipe import Count, Epochs, Rate
from .surgery import apply
from .work import Work, current, finished_stage

if TYPE_CHECKING:
    from .explain import Outline

Keep = Annotated[float, Within(0.0, 1.0, open_low=True)]
Size = Annotated[int, Within(1, 1 << 20)]
NEW = Effect(
    needs={MODEL: "", FLOATS: "they are taken apart", PLAIN: "others stand in their place after it"},
    gives=(NORMS,),
    breaks={
        MASKS: "products of factors have no zeros where they were",
        CODEBOOK: "factors have other values",
        PLAIN: "some stand for others now",
    },
)


def _left(effect: Effect, *kinds: str) -> dict[str, Effect]:
    """What holds of a model that carries such edits."""
    return {kind: Effect(breaks={PLAIN: effect.breaks[PLAIN]}) for kind in kinds}


def _planned(module: Any, *names: str) -> Callable[[Outline, Mapping[str, Any]], Outline]:
    """The outline after the edits that depend on these options."""
    return lambda outline, options: outline.changed(
        lambda m: apply(m, module.plan(m, **{name: options[name] for name in names}))
    )


def _factored(outline: Outline, options: Mapping[str, Any]) -> Outline:
    """The ranks that weights which mean nothing would get; those of a share are what they will be."""
    known = {name: options[name] for name in ("ranks", "keep", "conv", "skip")}
    sure = options["ranks"] == "share" and options["only"] == "cheaper"
    return outline.changed(lambda m: apply(m, factors.plan(m, **known)), estimated=not sure)


@composes(NEW, marks=_left(NEW, "low_rank", "spatial", "tucker", "cp"), outline=_factored)
def lowrank(
    work: Work,
    *,
    ranks: factors.Ranks = "energy",
    keep: Keep = 0.9,
    conv: factors.Conv = "tucker",
    by: factors.By = "params",
    only: Literal["cheaper", "faster"] = "cheaper",
    runtime: Literal["torch", "onnxruntime", "openvino"] = "onnxruntime",
    data: bool = True,
    samples: Count = 128,
    skip: Sequence[str] = (),
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Layers in factors of low rank, fitted on training images (`data`), then training with the teachers at hand.

    only: every layer whose factors have fewer weights (or MACs), or of these the ones measured faster in `runtime`.
    """
    before = current(work)

    def make() -> nn.Module:
        from .layer_race import Faster

        seen = work.batches("train", limit=samples, augment=False)
        calibration: dict[str, Any] = {"batches": list(seen.epoch(0)), "task": work.task}
        judge = Faster(runtime) if only == "faster" else None
        looked = calibration if data or judge is not None or by == "macs" else {}
        options: dict[str, Any] = {"ranks": ranks, "keep": keep, "conv": conv, "by": by, "skip": tuple(skip)}
        return taught(work, factors.factorize(before, only=judge, **looked, **options), epochs, images, lr)

    return finished_stage(work, f"low rank ({ranks} {keep:g})", work.once("model", make))


@composes(
    restarting(NEW),
    marks=_left(NEW, "structured_matrix"),
    outline=_planned(matrices, "matrix", "keep", "convolutions", "relu", "skip"),
)
def structured(
    work: Work,
    *,
    matrix: matrices.Name = "monarch",
    keep: Keep = 0.25,
    convolutions: bool = False,
    relu: bool = True,
    skip: Sequence[str] = (),
    restart: bool = False,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Structured matrices in place of weights, then training; with `restart` drawn anew where the baseline began."""
    options: dict[str, Any] = {"matrix": matrix, "keep": keep, "convolutions": convolutions, "relu": relu}
    options |= {"skip": tuple(skip), "fresh": restart}
    model = changed(work, lambda m: matrices.plan(m, **options), restart, epochs, images, lr)
    return finished_stage(work, f"{matrix} matrices", model)


def _paired(outline: Outline, options: Mapping[str, Any]) -> Outline:
    """Half of the filters; in a trained net how many pairs there are shows when they are looked for."""
    if options["restart"]:
        return outline.changed(lambda m: pairs.pair(m, fresh=True, first=options["first"], skip=options["skip"]))
    return outline.changed(copy.deepcopy, estimated=True)


@composes(restarting(NEW), marks=_left(NEW, "pair_filters"), outline=_paired)
def crelu(
    work: Work,
    *,
    similarity: Annotated[float, Within(0.0, 1.0, open_low=True)] = 0.9,
    phase: pairs.Phase = "opposite",
    first: Ratio = 1.0,
    skip: Sequence[str] = (),
    restart: bool = False,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Paired filters computed once, then training; with `restart` half of the filters, where the baseline began."""
    known = {"similarity": similarity, "phase": phase, "first": first, "skip": tuple(skip), "fresh": restart}
    model = changed(work, lambda m: pairs.plan(m, **known), restart, epochs, images, lr)  # type: ignore[arg-type]
    return finished_stage(work, "CReLU", model)


@composes(
    also(NEW, anew=True),
    marks=_left(NEW, "group_conv", "group_norm", "invariant_layer"),
    outline=_planned(turns, "group", "pool", "symmetric"),
)
def equivariant(
    work: Work,
    *,
    group: turns.Group = "p4",
    pool: turns.Pool = "mean",
    symmetric: bool = False,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """The net that turns with its pictures, trained from where the baseline began."""
    options: dict[str, Any] = {"group": group, "pool": pool, "symmetric": symmetric, "fresh": True}
    model = changed(work, lambda m: turns.plan(m, **options), True, epochs, images, lr)
    return finished_stage(work, f"{group} equivariant", model)


@composes(LOOKS, outline=lambda outline, options: outline.changed(writing.written_out))
def write_out(work: Work) -> Work:
    """Layers stored compactly (turning filters, circulant weights) as plain ones: for 8 bits, say. Answers stay."""
    before = current(work)
    model = work.once("model", lambda: writing.written_out(before).eval())
    return finished_stage(work, "written out", model)


def _biased(outline: Outline, options: Mapping[str, Any]) -> Outline:
    """The convolutions that had branches have a bias."""
    from .methods import overparameterize as branches

    return _planned(branches, "skip")(outline, options)


@composes(restarting(also(TRAINS, needs={PLAIN: "they get branches"})), outline=_biased)
def overparameterize(
    work: Work,
    *,
    block: Block = "repvgg",
    gamma: Annotated[float, Within(-1e3, 1e3)] = 0.0,
    skip: Sequence[str] = (),
    restart: bool = False,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Train with branches beside the convolutions, merged at the end; with `restart` from where the baseline began."""
    begin = began(work, restart)
    method = Overparameterize(block, gamma=gamma, skip=tuple(skip))
    model = work.once("model", lambda: trained(work, begin, (*work.methods, method), epochs, images, lr))
    return finished_stage(work, f"over-parameterized ({block})", model)
