# SPDX-License-Identifier: Apache-2.0
"""The steps that share blocks, group attention and mix depths: functions Work -> Work like those of `steps`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from . import outlines
from .binding import Filled, Within
from .composition import GLOBAL, LOOKS, ONCE, PLAIN, TOKENS, TRAINS, Effect, also, composes, restarting
from .fitting import began, changed, trained
from .methods import grouping as groups_of
from .methods import mixed_depth as depths
from .methods import recursion as sharing
from .recipe import Count, Epochs, Rate
from .work import Work, current, finished_stage

Loops = Annotated[int, Within(1, 1000)]


AGAIN = Effect(breaks={ONCE: "blocks run several times"})
GROUPS = Effect(breaks={GLOBAL: "it is in groups"})
EVERY = {TOKENS: "what drops or merges some counts the blocks"}


@composes(
    restarting(also(TRAINS, needs={PLAIN: "blocks are made one", ONCE: "", **EVERY}, breaks=AGAIN.breaks)),
    outline=outlines.recursed,
    marks={"share_blocks": AGAIN},
)
def recursion(
    work: Work,
    *,
    loops: Loops = 2,
    unique: Loops | None = None,
    take: sharing.Take = "first",
    nll_ratio: Annotated[float, Within(0.0, 64.0)] = 0.0,
    coefficients: bool = False,
    restart: bool = False,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Run each of fewer blocks several times, then train; with `restart` from where the baseline began."""
    options: dict[str, Any] = {"unique": unique, "take": take, "nll_ratio": nll_ratio, "coefficients": coefficients}
    model = changed(work, lambda m: sharing.plan(m, loops=loops, **options), restart, epochs, images, lr)
    return finished_stage(work, f"recursion ({loops} loops)", model)


@composes(
    restarting(also(TRAINS, needs={TOKENS: "groups have a fixed number", GLOBAL: ""}, breaks=GROUPS.breaks)),
    outline=outlines.grouped,
    marks={"group_attention": GROUPS},
)
def grouping(
    work: Work,
    *,
    groups: Annotated[int, Within(1, 1_000_000)] = 4,
    at: Annotated[Sequence[Annotated[int, Within(0, 1000)]], Filled()] | None = None,
    permute: groups_of.Permute = "alternate",
    redraw: bool = True,
    restart: bool = False,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Attention in groups of tokens, then training; with `restart` from where the baseline began."""
    options: dict[str, Any] = {"at": at, "permute": permute, "redraw": redraw}
    model = changed(work, lambda m: groups_of.plan(m, groups=groups, **options), restart, epochs, images, lr)
    return finished_stage(work, f"grouping ({groups} groups)", model)


@composes(restarting(TRAINS))
def mixed_depth(
    work: Work,
    *,
    least: Loops = 1,
    teach: Annotated[float, Within(0.0, 1e6)] = 0.0,
    temperature: Annotated[float, Within(0.0, 1000.0, open_low=True)] = 1.0,
    restart: bool = False,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Train with another number of passes in each step; with `restart` from where the baseline began."""
    method = depths.MixedDepth(least=least, teach=teach, temperature=temperature, seed=work.recipe.seed)
    begin = began(work, restart)
    model = work.once("model", lambda: trained(work, begin, (*work.methods, method), epochs, images, lr))
    return finished_stage(work, "mixed depth", model)


@composes(LOOKS, outline=outlines.depth)
def depth(work: Work, *, loops: Loops = 1) -> Work:
    """The model with no block run more than `loops` times, as it is: what mixed depth prepared it for."""
    before = current(work)
    model = work.once("model", lambda: depths.cut(before, loops=loops).eval())
    return finished_stage(work, f"depth ({loops} loops)", model)
