# SPDX-License-Identifier: Apache-2.0
"""Token merging (Bolya 2022, 2210.09461): between attention and MLP of each block, r tokens join the one they resemble.

Works on every described transformer (`anatomy`) with or without training, and adds no weights. Tokens are compared by
their mean keys; every second token may join one of the others; prefix tokens (class, distillation, registers) do
neither. A joined token is the mean of the patches it holds, and attention counts it as often as it holds patches.

Every image of a batch loses as many tokens, so that batches work and it exports. Not here: undoing the merge for dense
heads inside the host (`unmerge` does it outside), hosts that average their tokens (they would need the sizes).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy import Anatomy, Around, anatomy_of, blocks_of, embed_dim, mean_key, prefix_of, wrap_blocks
from ..errors import OptionError
from ..modes import evaluating
from ..surgery import Aside, Edit, all_of, apply, edit_kind, edits_of, find, record, submodule


class Match(NamedTuple):
    """Who joins whom. The tokens after the prefix are movers and receivers by turns; the last of them is a mover
    where their number with the prefix is odd."""

    prefix: int
    rest: Tensor  # (B, M - r) movers that stay, in the order of their places
    joining: Tensor  # (B, r) movers that join
    into: Tensor  # (B, r) the receiver each joins


def match(keys: Tensor, r: int, *, prefix: int) -> Match:
    """The r best pairs of each image by the cosine of their keys (B, prefix + N, d); r is at most N // 2.

    Without any prefix the movers that stay are in the order of their scores, as the authors' numbers are.
    """
    with torch.no_grad():
        keys = F.normalize(keys[:, prefix:].float(), dim=-1)
        movers, receivers = _turns(keys, prefix)
        best, into = (movers @ receivers.transpose(1, 2)).max(dim=-1)  # (B, M)
        order = best.argsort(dim=-1, descending=True)
        joining, rest = order[:, :r], order[:, r:]
        if prefix:
            rest = rest.sort(dim=-1).values
        return Match(prefix, rest, joining, into.gather(1, joining))


def _turns(x: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Tokens after the prefix -> movers, those at even places of the whole, and receivers, at odd ones."""
    return x[:, prefix % 2 :: 2], x[:, 1 - prefix % 2 :: 2]


def merge(x: Tensor, sizes: Tensor | None, found: Match) -> tuple[Tensor, Tensor]:
    """Tokens (B, P + N, C) and how many patches each holds (B, P + N, 1), None for one -> both, r tokens fewer.

    The new order is prefix, movers that stay, receivers. A receiver becomes the mean weighted by the sizes.
    """
    if sizes is None:
        sizes = x.new_ones(x.shape[0], x.shape[1], 1, dtype=torch.float32)
    p = found.prefix
    movers, receivers = _turns(x[:, p:], p)
    mover_sizes, receiver_sizes = _turns(sizes[:, p:], p)
    places = torch.arange(receivers.shape[1], device=x.device)[:, None]
    joins = (found.into[:, None] == places).float() * _rows(mover_sizes, found.joining).transpose(1, 2)  # (B, R, r)
    new_sizes = receiver_sizes + joins.sum(-1, keepdim=True)
    receivers = receivers * (receiver_sizes / new_sizes).to(x.dtype)
    receivers = receivers + (joins / new_sizes).to(x.dtype) @ _rows(movers, found.joining)
    tokens = torch.cat([x[:, :p], _rows(movers, found.rest), receivers], dim=1)
    return tokens, torch.cat([sizes[:, :p], _rows(mover_sizes, found.rest), new_sizes], dim=1)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """(B, N, C) and (B, n) -> (B, n, C)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def moved(found: Match, count: int) -> Tensor:
    """Where each of the `count` tokens before the merge is after it (B, count)."""
    p, (batch, stay) = found.prefix, found.rest.shape
    new = torch.arange(count, device=found.rest.device).repeat(batch, 1)
    movers, receivers = _turns(new[:, p:], p)
    receivers.copy_(torch.arange(p + stay, p + stay + receivers.shape[1], device=new.device).expand_as(receivers))
    movers.scatter_(1, found.rest, torch.arange(p, p + stay, device=new.device).expand(batch, -1))
    movers.scatter_(1, found.joining, p + stay + found.into)
    return new


def unmerge(tokens: Tensor, owner: Tensor) -> Tensor:
    """Merged tokens (B, n, C) and the token that holds each place (B, N) -> one for each place (B, N, C)."""
    return _rows(tokens, owner)


class MergingBlocks(Around):
    """Runs the host's blocks on fewer and fewer tokens. `r`: how many are merged away in each; may be changed."""

    counts = True

    def __init__(
        self, blocks: nn.ModuleList, anatomy: Anatomy, r: Sequence[int], prefix: int, proportional: bool
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.anatomy = anatomy
        self.r = tuple(r)
        self.prefix = prefix
        self.proportional = proportional
        self.recording = False  # put aside, for each block, who holds which patch and how many
        self.aside = Aside()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        sizes: Tensor | None = None
        owner = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1) if self.recording else None
        seen: list[tuple[Tensor, Tensor]] = []
        for r, block in zip(self.r, self.blocks, strict=True):
            mask = None if sizes is None or not self.proportional else sizes.log()[:, None, None, :, 0].to(x.dtype)
            r = min(r, (x.shape[1] - self.prefix) // 2)
            if r == 0:
                x = self.anatomy.run(block, x, mask)
            else:
                x, found = self._attended(block, x, mask, r)
                if owner is not None:
                    owner = moved(found, x.shape[1]).gather(1, owner)
                x, sizes = merge(x, sizes, found)
                x = self.anatomy.halves.mlp(block, x)  # type: ignore[union-attr]
            if owner is not None:
                seen.append((owner, x.new_ones(x.shape[:2]) if sizes is None else sizes[..., 0]))
        if self.recording:
            self.aside.owners = [owner[:, self.prefix :] - self.prefix for owner, _ in seen]
            self.aside.sizes = [held[:, self.prefix :] for _, held in seen]
        return x

    def _attended(self, block: nn.Module, x: Tensor, mask: Tensor | None, r: int) -> tuple[Tensor, Match]:
        halves = self.anatomy.halves
        y = submodule(block, halves.norm)(x)  # type: ignore[union-attr]
        found = match(mean_key(block, self.anatomy, y), r, prefix=self.prefix)
        return halves.attend(block, x, y, mask), found  # type: ignore[union-attr]


@edit_kind
def merge_tokens(model: nn.Module, r: Sequence[int], proportional: bool = True) -> nn.Module:
    """The host with its blocks inside `MergingBlocks`; no weights are added."""
    if all_of(model, MergingBlocks):
        raise OptionError("merge_tokens", "this model merges tokens already; another r: tome.with_r(model, r)")
    anatomy, prefix, blocks = anatomy_of(model), prefix_of(model), blocks_of(model)
    r = schedule(list(r), len(blocks))
    if any(r):
        _check_halves(model, anatomy, list(blocks.values()))
    return wrap_blocks(model, lambda blocks: MergingBlocks(blocks, anatomy, r, prefix, proportional))


def _check_halves(model: nn.Module, anatomy: Anatomy, blocks: Sequence[nn.Module]) -> None:
    """LookupError unless each block is its two halves, one after the other, as the record says."""
    name = type(model).__name__
    if anatomy.halves is None:
        raise LookupError(f"the record of {name} has no halves, and merging happens between attention and MLP")
    weight = next(model.parameters())
    if weight.is_meta:
        return
    x = torch.linspace(-1, 1, 4 * embed_dim(model)).sin().reshape(1, 4, -1).to(weight)
    for block in blocks:
        with evaluating(block), torch.no_grad():
            whole = anatomy.run(block, x, None)
            try:
                half = anatomy.halves.attend(block, x, submodule(block, anatomy.halves.norm)(x), None)
                error = float((anatomy.halves.mlp(block, half) - whole).float().norm())
            except (AttributeError, LookupError):  # of another class, which has other parts
                error = float("inf")
        if error > 0.02 * float((whole - x).float().norm()):
            raise LookupError(f"a block of {name} ({type(block).__name__}) is not an attention and then an MLP")


def schedule(r: int | Sequence[int] | tuple[int, float], depth: int, inflection: float = 0.0) -> tuple[int, ...]:
    """How many tokens each of `depth` blocks merges away.

    A number is for every block; with an inflection from -1 to 1 (also as the pair (r, inflection)) on a line from
    r * (1 - inflection) to r * (1 + inflection). A list says it block by block, with 0 for those it does not name.
    """
    if isinstance(r, tuple) and len(r) == 2 and isinstance(r[1], float):
        r, inflection = r
    if isinstance(r, bool) or not isinstance(r, (int, list, tuple)):
        raise OptionError("r", f"{r!r} is not a number of tokens, or a list of one for each block")
    listed = [r] if isinstance(r, int) else list(r)
    for number in listed:
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise OptionError("r", f"{number!r} is not a number of tokens, which is 0 or more")
    if not -1 <= inflection <= 1:
        raise OptionError("inflection", f"{inflection!r} is not in -1..1")
    if isinstance(r, int):
        first = int(r * (1.0 - inflection))
        slope = (2 * r - 2 * first) / max(1, depth - 1)
        return tuple(int(first + slope * i) for i in range(depth))
    if inflection:
        raise OptionError("inflection", "goes with one number r, not with a list of one for each block")
    if len(listed) > depth:
        raise OptionError("r", f"names {len(listed)} blocks; the model has {depth}")
    return tuple(listed) + (0,) * (depth - len(listed))


def plan(
    model: nn.Module, *, r: int | Sequence[int] = 8, inflection: float = 0.0, proportional: bool = True
) -> list[Edit]:
    """The edit that makes the model merge r tokens a block (`schedule`); nothing is touched.

    proportional: attention counts a token as often as it holds patches. Right for a model trained without merging.
    """
    numbers = schedule(r, len(blocks_of(model)), inflection)
    return [Edit("", "merge_tokens", {"r": list(numbers), "proportional": bool(proportional)})]


def with_r(model: nn.Module, r: int | Sequence[int], *, inflection: float = 0.0) -> nn.Module:
    """A copy of a model that merges tokens, which merges r a block instead; its record says so."""
    numbers = schedule(r, len(find(model, MergingBlocks).r), inflection)
    edits = [
        Edit(e.path, e.kind, {**e.spec, "r": list(numbers)}) if e.kind == "merge_tokens" else e for e in edits_of(model)
    ]
    new = apply(model, [])
    find(new, MergingBlocks).r = numbers
    record(new, edits)
    return new


@contextmanager
def recording(model: nn.Module) -> Iterator[MergingBlocks]:
    """While inside, a run puts aside, for each block, `owners` (B, N), the token after the prefix that holds each
    patch, and `sizes` (B, n), how many patches each token holds."""
    merging = find(model, MergingBlocks)
    merging.recording = True
    try:
        yield merging
    finally:
        merging.recording = False
        merging.aside.clear()
