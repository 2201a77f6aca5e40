# SPDX-License-Identifier: Apache-2.0
"""Recursion: fewer blocks, each run several times over (Shen 2022, 2111.05297; Dehghani 2018, 1807.03819).

Works on every described transformer (`anatomy`): neighboring blocks become one, which runs in their place, so that the
model keeps its depth and its multiply-adds and loses parameters; or every block stays and runs more often, so that the
model gets deeper at equal parameters. Passes through one block can be kept apart by SReT's non-linear projections and
learned coefficients. Not here: SReT itself (a model), another depth in each step (mixed_depth), groups (grouping).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from ..anatomy import anatomy_of, blocks_of, embed_dim, replace_blocks
from ..errors import OptionError
from ..recurrence import Looped
from ..surgery import Edit, all_of, apply, edit_kind, submodule

Take = Literal["first", "mean"]


@edit_kind
def share_blocks(
    model: nn.Module, unique: int, loops: int, take: Take, nll_ratio: float, coefficients: bool
) -> nn.Module:
    """The host with `unique` blocks, each of which stands for as many neighbors and runs `loops` times."""
    _check(model, unique, loops, take, nll_ratio)
    dim, depth = embed_dim(model), len(blocks_of(model))

    def shared(blocks: list[nn.Module]) -> list[nn.Module]:
        runs = [blocks[i : i + depth // unique] for i in range(0, depth, depth // unique)]
        return [Looped(_one(run, take), loops, dim=dim, nll_ratio=nll_ratio, coefficients=coefficients) for run in runs]

    return replace_blocks(model, shared)


def plan(
    model: nn.Module,
    *,
    loops: int = 2,
    unique: int | None = None,
    take: Take = "first",
    nll_ratio: float = 0.0,
    coefficients: bool = False,
) -> list[Edit]:
    """The edit that leaves `unique` blocks and runs each `loops` times; nothing is touched.

    unique: depth / loops where it is not given, which keeps the depth; the depth itself keeps all blocks and makes the
    model deeper. take: what a block that stands for several starts as. nll_ratio: hidden width, as a share of the
    model's, of a projection after each pass; 0 has none. loops=1 without these changes nothing. Raises OptionError for
    numbers that do not divide the depth, TypeError for a model without anatomy.
    """
    depth = len(blocks_of(model))
    if unique is None:
        if not _whole(loops) or depth % loops:
            raise OptionError("loops", f"{loops!r} does not divide the {depth} blocks; say how many stay with `unique`")
        unique = depth // loops
    _check(model, unique, loops, take, nll_ratio)
    if loops == 1 and unique == depth and not nll_ratio and not coefficients:
        return []
    spec = {"unique": unique, "loops": loops, "take": take, "nll_ratio": nll_ratio, "coefficients": coefficients}
    return [Edit("", "share_blocks", spec)]


def share(model: nn.Module, **options: Any) -> nn.Module:
    """A copy whose blocks run several times; the options are those of `plan`. It has to be trained before use."""
    return apply(model, plan(model, **options))


def _check(model: nn.Module, unique: int, loops: int, take: str, nll_ratio: float) -> None:
    blocks, hidden = blocks_of(model), anatomy_of(model).mlp[0]
    depth = len(blocks)
    for path, block in blocks.items():
        if type(submodule(block, hidden)) is not nn.Linear:
            raise LookupError(f"{path}.{hidden} is not a plain linear layer: share blocks first, then quantize")
    if all_of(model, Looped):
        raise OptionError("recursion", "blocks of this model run several times already")
    if not _whole(loops) or loops > 1000:
        raise OptionError("loops", f"{loops!r} is not a whole number from 1 to 1000")
    if not _whole(unique) or depth % unique:
        raise OptionError("unique", f"{unique!r} does not divide the {depth} blocks")
    if take not in get_args(Take):
        raise OptionError("take", f"{take!r} is not one of {', '.join(get_args(Take))}")
    if not 0 <= nll_ratio <= 64 or (nll_ratio and int(embed_dim(model) * nll_ratio) < 1):
        raise OptionError("nll_ratio", f"{nll_ratio!r} is not from 0 (none) to 64 times the model's width")


def _whole(number: object) -> bool:
    return type(number) is int and number >= 1


@torch.no_grad()
def _one(run: Sequence[nn.Module], take: Take) -> nn.Module:
    """The first of these blocks, with its own weights or the mean of all."""
    if take == "mean" and len(run) > 1:
        states = [block.state_dict() for block in run]
        for name, tensor in states[0].items():
            others = [state.get(name) for state in states]
            if any(other is None or other.shape != tensor.shape for other in others):
                raise OptionError("take", f"blocks differ in {name}, so they have no mean; use first, or prune later")
            if tensor.is_floating_point():
                tensor.copy_(torch.stack(others).mean(0))  # type: ignore[arg-type]
    return run[0]
