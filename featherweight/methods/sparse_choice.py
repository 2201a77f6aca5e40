# SPDX-License-Identifier: Apache-2.0
"""From a score for each weight to masks: which share goes in each layer, and in which pattern.

Scopes: `layer`, the same share of every layer; `output`, of every output of it; `global`, the smallest wherever they
are; `lamp`, the same with each score taken relative to those above it in its layer (Lee 2021, 2010.07611); `erk`, a
share by the layer's shape, small layers denser (Evci 2020, 1911.11134). Patterns: single weights, blocks `4x1` (outputs
x inputs), or `2:4`, of every four neighbors along the input the two best stay (Mishra 2021, 2104.08378).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import OptionError, closest
from .masks import Masks, weight_of

SCOPES = ("layer", "output", "global", "lamp", "erk")
Shares = float | Mapping[str, float]  # fraction removed: one, or by layer


@dataclass(frozen=True)
class Pattern:
    """Single weights (1 x 1), blocks of rows x columns, or `keep` of every `of` along the input."""

    rows: int = 1
    columns: int = 1
    keep: int = 0
    of: int = 0

    @classmethod
    def of_text(cls, text: str) -> Pattern:
        """From "", "4x1" or "2:4"; OptionError for anything else."""
        if text == "":
            return cls()
        if found := re.fullmatch(r"(\d{1,4})x(\d{1,4})", text, re.ASCII):
            rows, columns = int(found[1]), int(found[2])
            if rows and columns:
                return cls(rows, columns)
        if found := re.fullmatch(r"(\d{1,3}):(\d{1,3})", text, re.ASCII):
            keep, of = int(found[1]), int(found[2])
            if 0 < keep < of:
                return cls(keep=keep, of=of)
        text = f"{text!r} is none: single weights are '', blocks '4x1' (outputs x inputs), N of every M '2:4'"
        raise OptionError("pattern", text)


def usual(sparsity: Shares, importance: str) -> str:
    """The scope where none is asked for: what a share by layer or Wanda's comparison means, or what did best.

    Of sizes LAMP's, which ends 14 points above the same share of each layer in docs/studies/compression.md; gradients
    can be compared over all layers as they are.
    """
    if isinstance(sparsity, Mapping):
        return "layer"
    return {"magnitude": "lamp", "wanda": "output"}.get(importance, "global")


def check(scope: str) -> None:
    if scope not in SCOPES:
        raise OptionError("scope", f"no {scope!r} here; {closest(scope, SCOPES)}Known: {', '.join(SCOPES)}")


def choose(scores: Mapping[str, Tensor], shares: Shares, *, scope: str = "layer", pattern: Pattern) -> Masks:
    """Path -> mask from path -> scores (O, I, ...); of equal scores the first ones go.

    shares: the fraction removed; by layer only where the scope is `layer` or `output`. A pattern N:M has its own share.
    Raises OptionError where nothing of a layer would be left.
    """
    if pattern.of:
        return {path: _n_of_m(score, pattern) for path, score in scores.items()}
    units = {path: _units(score, pattern) for path, score in scores.items()}  # (rows, columns) each
    kept = _kept(units, shares, scope)
    for path, mask in kept.items():
        if not bool(mask.any()):
            advice = "ask for less, leave it out with skip, or take another scope"
            raise OptionError("sparsity", f"would leave nothing of {path} ({scores[path].numel()} weights); {advice}")
    return {path: _spread(kept[path], score.shape, pattern) for path, score in scores.items()}


def _kept(units: Mapping[str, Tensor], shares: Shares, scope: str) -> Masks:
    if isinstance(shares, Mapping):
        return {path: _smallest(unit, shares[path], scope) for path, unit in units.items()}
    if scope in ("layer", "output"):
        return {path: _smallest(unit, shares, scope) for path, unit in units.items()}
    if scope == "erk":
        densities = erk({path: tuple(unit.shape) for path, unit in units.items()}, 1 - shares)
        return {path: _smallest(unit, 1 - densities[path], "layer") for path, unit in units.items()}
    ranked = {path: lamp(unit) if scope == "lamp" else unit for path, unit in units.items()}
    flat = _without_smallest(torch.cat([unit.flatten() for unit in ranked.values()]), shares)
    parts = flat.split([unit.numel() for unit in ranked.values()])
    return {path: part.view_as(units[path]) for path, part in zip(units, parts, strict=True)}


def lamp(scores: Tensor) -> Tensor:
    """s² over the sum of the squares that are not smaller, shaped like the scores; the largest has 1."""
    squares = scores.double().square().flatten()
    order = squares.argsort(stable=True)
    above = squares[order].flip(0).cumsum(0).flip(0)
    found = torch.empty_like(squares)
    found[order] = squares[order] / above.clamp(min=1e-300)
    return found.view_as(scores)


def erk(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Path -> the share kept, in all `density` of the weights; before the cap at 1 as sum over product of the shape."""
    sizes = {path: float(torch.tensor(shape).prod()) for path, shape in shapes.items()}
    raw = {path: sum(shape) / sizes[path] for path, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        budget = density * sum(sizes.values()) - sum(sizes[path] for path in dense)
        rest = [path for path in sizes if path not in dense]
        factor = budget / sum(raw[path] * sizes[path] for path in rest) if rest else 0.0
        over = {path for path in rest if factor * raw[path] > 1}
        if not over:
            return {path: 1.0 if path in dense else factor * raw[path] for path in sizes}
        dense |= over


def _smallest(unit: Tensor, share: float, scope: str) -> Tensor:
    if scope == "output":
        return torch.stack([_without_smallest(row, share) for row in unit])
    return _without_smallest(unit.flatten(), share).view_as(unit)


def _without_smallest(scores: Tensor, share: float) -> Tensor:
    """All but the smallest `share` of a flat tensor."""
    mask = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    gone = int(share * len(scores) + 0.5)
    mask[scores.argsort(stable=True)[:gone]] = False
    return mask


def _units(score: Tensor, pattern: Pattern) -> Tensor:
    """Scores (O, I, ...) -> one for each block (rows, columns), the mean of what is in it."""
    flat = score.reshape(score.shape[0], -1)
    if pattern == Pattern():
        return flat
    pads = (0, -flat.shape[1] % pattern.columns, 0, -flat.shape[0] % pattern.rows)
    counts = F.pad(torch.ones_like(flat), pads)
    sums = [_blocks(t, pattern).sum((1, 3)) for t in (F.pad(flat, pads), counts)]
    return sums[0] / sums[1]


def _blocks(flat: Tensor, pattern: Pattern) -> Tensor:
    rows, columns = flat.shape
    return flat.reshape(rows // pattern.rows, pattern.rows, columns // pattern.columns, pattern.columns)


def _spread(unit: Tensor, shape: torch.Size, pattern: Pattern) -> Tensor:
    """A mask over blocks (rows, columns) -> over weights."""
    whole = unit.repeat_interleave(pattern.rows, 0).repeat_interleave(pattern.columns, 1)
    return whole[: shape[0], : shape[1:].numel()].reshape(shape)


def _n_of_m(score: Tensor, pattern: Pattern) -> Tensor:
    """Of every M neighboring input channels the best N; a layer whose inputs M does not divide stays whole."""
    if score.shape[1] % pattern.of:
        return torch.ones(score.shape, dtype=torch.bool, device=score.device)
    last = score.movedim(1, -1)  # (O, ..., I)
    groups = last.unflatten(-1, (-1, pattern.of))
    best = groups.argsort(dim=-1, descending=True, stable=True)[..., : pattern.keep]
    mask = torch.zeros(groups.shape, dtype=torch.bool, device=score.device).scatter_(-1, best, True)
    return mask.flatten(-2).movedim(-1, 1)


def fits(layer: nn.Module, pattern: Pattern) -> bool:
    """Whether N of every M can be had in this layer."""
    return not pattern.of or weight_of(layer).shape[1] % pattern.of == 0
