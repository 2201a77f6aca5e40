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
from ..recurrence import Looped
from ..surgery import Aside, Edit, all_of, apply, edit_kind, edits_of, find, record, submodule


class Match(NamedTuple):
    """Who stays and who joins whom, as places of tokens."""

    staying: Tensor  # (B, n) old places in the new order: prefix, movers, receivers
    joining: Tensor  # (B, r) old places
    into: Tensor  # (B, r) the new place of the one each joins


def match(keys: Tensor, r: int, *, prefix: int) -> Match:
    """The r best pairs of each image by the cosine of their keys (B, prefix + N, d); r is at most N // 2.

    After the prefix, tokens at even places are movers and those at odd places receivers. Movers that stay are in the
    order of their places; without any prefix in that of their scores, as the authors' numbers are.
    """
    n, device = keys.shape[1], keys.device
    first, second = prefix + prefix % 2, prefix + 1 - prefix % 2  # places of the first mover and the first receiver
    with torch.no_grad():
        keys = F.normalize(keys.float(), dim=-1)
        best, into = (keys[:, first::2] @ keys[:, second::2].transpose(1, 2)).max(dim=-1)  # (B, M)
        order = best.argsort(dim=-1, descending=True)
        joining, rest = order[:, :r], order[:, r:]
        if prefix:
            rest = rest.sort(dim=-1).values
        whole = (torch.arange(prefix, device=device), torch.arange(second, n, 2, device=device))
        before, receivers = (places.expand(keys.shape[0], -1) for places in whole)
        staying = torch.cat([before, 2 * rest + first, receivers], dim=1)
        return Match(staying, 2 * joining + first, into.gather(1, joining) + (prefix + rest.shape[1]))


def merge(x: Tensor, sizes: Tensor | None, found: Match) -> tuple[Tensor, Tensor]:
    """Tokens (B, N, C) and how many patches each holds (B, N, 1), None for one -> both, r tokens fewer.

    One that was joined becomes the mean weighted by the sizes. Joins are a small product: a scatter in its place would
    not be exact twice, and slow where it is exported.
    """
    if sizes is None:
        sizes = x.new_ones(x.shape[0], x.shape[1], 1, dtype=torch.float32)
    places = torch.arange(found.staying.shape[1], device=x.device)[:, None]
    joins = (found.into[:, None] == places) * _rows(sizes, found.joining).transpose(1, 2)  # (B, n, r)
    before = _rows(sizes, found.staying)
    after = before + joins.sum(-1, keepdim=True)
    kept = _rows(x, found.staying) * (before / after).to(x.dtype)  # 1 where nothing joins
    return kept + (joins / after).to(x.dtype) @ _rows(x, found.joining), after


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """(B, N, C) and (B, n) -> (B, n, C)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def moved(found: Match) -> Tensor:
    """Where each token from before the merge is after it (B, N)."""
    new = torch.arange(found.staying.shape[1], device=found.staying.device).expand_as(found.staying)
    count = new.shape[1] + found.into.shape[1]
    return new.new_empty(len(new), count).scatter(1, found.staying, new).scatter(1, found.joining, found.into)


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
                    owner = moved(found).gather(1, owner)
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
    if all_of(model, Looped):
        raise OptionError("merge_tokens", "a block that runs several times cannot merge in between; use one of the two")
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


def schedule(r: Any, depth: int, inflection: float = 0.0) -> tuple[int, ...]:
    """How many tokens each of `depth` blocks merges away.

    A number is for every block; with an inflection from -1 to 1 (also as the pair (r, inflection)) on a line from
    r * (1 - inflection) to r * (1 + inflection). A list says it block by block, with 0 for those it does not name.
    """
    if isinstance(r, (tuple, list)) and len(r) == 2 and isinstance(r[1], float):  # JSON has no tuples
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


def merged(
    model: nn.Module, *, r: int | Sequence[int] = 8, inflection: float = 0.0, proportional: bool = True
) -> nn.Module:
    """A copy of the model that merges r tokens a block; options as for `plan`."""
    return apply(model, plan(model, r=r, inflection=inflection, proportional=proportional))


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
