# SPDX-License-Identifier: Apache-2.0
"""Attention in groups of tokens that do not see each other: N x N becomes g times N/g x N/g (Shen 2022, 2111.05297).

Works on every described transformer (`anatomy`) by running the host's own blocks on smaller batches of tokens. In
some of the blocks the groups are of permuted tokens, so that what one block keeps apart meets in the next. Class and
distillation tokens are in every group, and become the mean of what the groups make of them. Evaluation uses fixed,
seeded permutations, so that it gives one answer and exports. Not here: dropping or merging tokens in the same model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn

from ..anatomy import Anatomy, Around, EveryToken, anatomy_of, blocks_of
from ..errors import OptionError, closest
from ..recurrence import Permutation, in_groups
from ..surgery import Edit, all_of, apply, edit_kind, put, submodule

MOST = 1 << 24  # patches, what a file may ask for
Permute = Literal["alternate", "all", "none"]


class Grouped(EveryToken):
    """A host's own block on tokens (B, P + N, C), for each of `groups` runs of the N patches and the P prefix tokens.

    All of a block but its attention treats each token by itself, so this is attention in groups. What the host hands
    its blocks besides is made for all tokens (an attention mask of nothing but ones, where transformers is traced), so
    the block is run without.
    """

    def __init__(self, block: nn.Module, anatomy: Anatomy, tokens: int, groups: int, order: Permutation | None) -> None:
        super().__init__()
        self.block = block
        self.anatomy = anatomy
        self.tokens = tokens
        self.groups = groups
        self.permutation = order

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        prefix = x.shape[1] - self.tokens
        if prefix < 0:
            raise ValueError(f"{x.shape[1]} tokens given to attention in groups of {self.tokens} patches")
        order = None if self.permutation is None else self.permutation()
        return in_groups(
            lambda part: self.anatomy.run(self.block, part, None), x, self.groups, order=order, prefix=prefix
        )

    def extra_repr(self) -> str:
        return f"tokens={self.tokens}, groups={self.groups}"


@edit_kind
def group_attention(
    model: nn.Module, block: str, tokens: int, groups: int, seed: int | None, redraw: bool
) -> nn.Module:
    """The model whose block at that path attends in groups, of tokens permuted by a seed or (None) in order."""
    _check_groups(groups, tokens)
    if block not in (known := blocks_of(model)):
        raise OptionError("grouping", f"no block {block!r}; {closest(block, known)}".strip(" ;"))
    if isinstance(submodule(model, block.rpartition(".")[0]), Grouped):
        raise OptionError("grouping", f"{block} attends in groups already")
    order = None if seed is None else Permutation(tokens, seed=_checked(seed), redraw=redraw)
    return put(model, block, Grouped(known[block], anatomy_of(model), tokens, groups, order))


def plan(
    model: nn.Module,
    *,
    groups: int = 4,
    at: Sequence[int] | None = None,
    permute: Permute = "alternate",
    seed: int = 1,
    redraw: bool = True,
    tokens: int | None = None,
) -> list[Edit]:
    """The edits that make attention group-wise in the blocks `at` (all, where it is not given); nothing is touched.

    permute: in which of these the groups are of permuted tokens; alternate: the second, the fourth, and so on. seed: of
    the permutations in evaluation. redraw: in training each pass draws a new one, as SReT does. tokens: patches, where
    the family's record cannot tell. groups=1 changes nothing. Raises OptionError for groups that do not divide the
    patches or a block beyond the depth.
    """
    blocks, many = list(blocks_of(model)), _patches(model, tokens)
    _check_groups(groups, many)
    _check(model, at, permute, seed, len(blocks))
    if groups == 1:
        return []
    edits = []
    for number, place in enumerate(sorted(range(len(blocks)) if at is None else at)):
        permuted = permute == "all" or (permute == "alternate" and number % 2 == 1)
        spec = {"block": blocks[place], "tokens": many, "groups": groups, "redraw": redraw}
        edits.append(Edit("", "group_attention", {**spec, "seed": (seed + place) % 2**32 if permuted else None}))
    return edits


def group(model: nn.Module, **options: Any) -> nn.Module:
    """A copy whose attention is in groups; the options are those of `plan`."""
    return apply(model, plan(model, **options))


def _check_groups(groups: int, tokens: int) -> None:
    if type(tokens) is not int or not 1 <= tokens <= MOST:
        raise OptionError("tokens", f"{tokens!r} is not a number of patches, 1 to {MOST}")
    if type(groups) is not int or groups < 1 or tokens % groups:
        raise OptionError("groups", f"{groups!r} does not divide the {tokens} patches")


def _checked(seed: int) -> int:
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise OptionError("seed", f"{seed!r} is not a whole number from 0 to 2**32 - 1")
    return seed


def _check(model: nn.Module, at: Sequence[int] | None, permute: str, seed: int, depth: int) -> None:
    if permute not in get_args(Permute):
        raise OptionError("permute", f"{permute!r} is not one of {', '.join(get_args(Permute))}")
    _checked(seed)
    for place in at or ():
        if not 0 <= place < depth:
            raise OptionError("at", f"no block {place}: the model has {depth}, counted from 0")
    if at is not None and len(set(at)) != len(at):
        raise OptionError("at", f"{list(at)} names a block twice")
    if any(around.counts for around in all_of(model, Around).values()):
        raise OptionError("grouping", "the model changes the number of tokens, which groups cannot follow; use one")


def _patches(model: nn.Module, tokens: int | None) -> int:
    known = anatomy_of(model).patches
    if tokens is None and known is None:
        raise OptionError("tokens", f"say how many patches {type(model).__name__} has; its anatomy does not tell")
    return known(model) if tokens is None and known is not None else tokens  # type: ignore[return-value]
