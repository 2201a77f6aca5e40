# SPDX-License-Identifier: Apache-2.0
"""The widths of a transformer: of its attention heads and of its tokens, where `prune` cuts whole heads and neurons.

In each head queries and keys lose the same channels, values and the projection's inputs the same; the scale of the
scores stays what it was, so that what is left is exactly the sub-network. The width of the tokens is the residual
stream, found by `coupling` and cut in every layer at once; there norms see fewer channels, so that answers change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import anatomy_of, blocks_of
from ..errors import OptionError
from ..surgery import Edit, apply, edit_kind, submodule
from .channels import Ranked, check_runs, rank
from .importance import NORMS
from .masks import check_patterns
from .narrow import checked
from .prune import Heads, narrow_layer

Lists = Sequence[Sequence[int]]  # for each head the channels that stay


@dataclass(frozen=True)
class HeadWidth:
    """A block's attention, its heads cut to fewer channels each."""

    heads: Heads

    @classmethod
    def of(cls, block: nn.Module, anatomy: Any, where: str) -> HeadWidth:
        """Raises LookupError where the layers are not what can be narrowed."""
        heads = Heads.of(block, anatomy, where)
        known = (*heads.qkv, heads.projection)
        width = heads.projection.in_features // heads.groups
        for name, module in heads.attention.named_modules():
            if module not in known and any(width in tensor.shape for tensor in module.parameters(recurse=False)):
                raise LookupError(
                    f"{where}.{anatomy.attention}.{name} works on all {width} channels of a head; skip it"
                )
        return cls(heads)

    @property
    def width(self) -> int:
        return self.heads.projection.in_features // self.heads.groups

    def scores(self, p: float) -> tuple[Tensor, Tensor]:
        """What each head's channels are worth (h, d): of queries and keys together, of values with the projection."""
        query, key, value = (part.reshape(self.heads.groups, self.width, -1) for part in self.parts())
        reader = self.heads.projection.weight.detach().T.reshape(self.heads.groups, self.width, -1)
        both = query.norm(p=p, dim=-1) * key.norm(p=p, dim=-1)
        return both.float().cpu(), (value.norm(p=p, dim=-1) * reader.norm(p=p, dim=-1)).float().cpu()

    def parts(self) -> list[Tensor]:
        """Rows of queries, keys and values, each with its bias (h·d, C + 1)."""
        found: list[Tensor] = []
        for layer in self.heads.qkv:
            bias = torch.zeros(layer.out_features, device=layer.weight.device) if layer.bias is None else layer.bias
            rows = torch.cat([layer.weight.detach(), bias.detach()[:, None].to(layer.weight)], dim=1)
            found += rows.chunk(3 // len(self.heads.qkv))
        return found

    @torch.no_grad()
    def narrow(self, qk: Lists, v: Lists) -> None:
        heads, old, new = self.heads, self.width, len(v[0])
        total = heads.groups * old
        rows = [[head * old + i for head, kept in enumerate(some) for i in kept] for some in (qk, qk, v)]
        for number, layer in enumerate(heads.qkv):
            mine = rows if len(heads.qkv) == 1 else [rows[number]]
            narrow_layer(layer, [part * total + i for part, kept in enumerate(mine) for i in kept], dim=0)
        narrow_layer(heads.projection, rows[2], dim=1)
        names, attention = heads.anatomy, heads.attention
        scale = getattr(attention, names.scale) if names.scale else old**-0.5
        if math.isclose(scale, old**-0.5):  # scores are divided by √d, which is another now
            first = heads.qkv[0]
            for tensor in (first.weight, first.bias):
                if tensor is not None:
                    tensor[: heads.groups * new] *= math.sqrt(new / old)
            if names.scale:
                setattr(attention, names.scale, new**-0.5)
        if names.head_dim:
            setattr(attention, names.head_dim, new)
        for name in names.widths:
            setattr(attention, name, heads.groups * new)


@edit_kind
def narrow_head_width(model: nn.Module, *, block: str, qk: Lists, v: Lists) -> nn.Module:
    """The model with only these channels left in each head of a block: of queries and keys, and of values."""
    part = HeadWidth.of(submodule(model, block), anatomy_of(model), block)
    for name, some in (("qk", qk), ("v", v)):
        if not isinstance(some, (list, tuple)) or len(some) != part.heads.groups:
            raise OptionError(f"{block}: {name}", f"must be a list for each of the {part.heads.groups} heads")
        for kept in some:
            checked(kept, part.width, f"{block}: {name}")
    if len({len(kept) for kept in (*qk, *v)}) != 1:
        raise OptionError(f"{block}: qk and v", "must leave every head the same number of channels")
    part.narrow(qk, v)
    return model


def plan_heads(
    model: nn.Module, *, ratio: float = 0.25, importance: str = "l2", round_to: int = 8, skip: Sequence[str] = ()
) -> list[Edit]:
    """The edits that cut the share `ratio` of the width of every attention head; nothing is touched.

    importance: l1 or l2. round_to: the width left is a multiple of it. skip: name patterns of blocks (`blocks.0`).
    Raises OptionError, TypeError for a model without anatomy, LookupError for unfit layers.
    """
    _check(ratio, importance, round_to)
    blocks = blocks_of(model)
    names = {path: f"{anatomy_of(model).blocks}.{i}" for i, path in enumerate(blocks)}
    check_patterns("skip", skip, list(names.values()))
    edits = []
    for path, block in blocks.items():
        if ratio == 0 or any(fnmatchcase(names[path], pattern) for pattern in skip):
            continue
        part = HeadWidth.of(block, anatomy_of(model), path)
        count = min(part.width, max(round_to, int((1 - ratio) * part.width / round_to + 0.5) * round_to))
        if count < part.width:
            qk, v = ([_best(row, count) for row in score] for score in part.scores(NORMS[importance]))
            edits.append(Edit("", "narrow_head_width", {"block": path, "qk": qk, "v": v}))
    return edits


def plan_embed(
    model: nn.Module, example: Any, *, ratio: float = 0.25, importance: str = "l2", round_to: int = 8
) -> list[Edit]:
    """The edits that cut the share `ratio` of the width of the tokens, in every layer; nothing is touched.

    example: a batch. Raises OptionError, TypeError for a model without anatomy, LookupError where it cannot be cut.
    """
    _check(ratio, importance, round_to)
    if ratio == 0:
        return []
    edits = rank_tokens(model, example, importance=importance).edits(ratio, round_to=round_to)
    check_runs(model, edits, example)
    return edits


def rank_tokens(model: nn.Module, example: Any, *, importance: str = "l2") -> Ranked:
    """The channels of the tokens alone, each with its score: enough to cut them to any width.

    Heads and neurons may be cut in between, for the edits name other dimensions of the same weights.
    """
    ranked = rank(model, example, importance=importance)
    writer = f"{next(iter(blocks_of(model)))}.{anatomy_of(model).mlp[1]}.weight"
    place = next((i for i, group in enumerate(ranked.groups) if (writer, 0) in group.makers), None)
    if place is None:
        raise LookupError(f"{type(model).__name__}: the width of its tokens cannot be cut")
    return ranked.only(place)


def narrow_heads_and_tokens(
    model: nn.Module, example: Any, *, head_width: float = 0.0, embed: float = 0.0, **options: Any
) -> nn.Module:
    """A copy with these shares of the heads' width and of the tokens' width cut; options of both plans."""
    new = apply(model, plan_heads(model, ratio=head_width, **options))
    return apply(new, plan_embed(new, example, ratio=embed, **options))


def _best(scores: Tensor, count: int) -> list[int]:
    return sorted(scores.argsort(descending=True, stable=True)[:count].tolist())


def _check(ratio: float, importance: str, round_to: int) -> None:
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise OptionError("ratio", f"{ratio!r} is not in [0, 1); it is the share that is removed")
    if importance not in NORMS:
        raise OptionError("importance", f"no {importance!r} here. Known: {', '.join(NORMS)}")
    if type(round_to) is not int or round_to < 1:
        raise OptionError("round_to", f"{round_to!r} is not a whole number of 1 or more")
