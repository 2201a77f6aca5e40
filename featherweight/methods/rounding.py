# SPDX-License-Identifier: Apache-2.0
"""Symmetric grids of few values: how a weight is rounded to one, which step is best, how its gradient passes.

A grid has L levels, evenly spaced and symmetric around 0: value = (code - (L - 1) / 2) * step, code in 0..L-1. An odd
number of levels has an exact 0: 255 (8 bits), 15 (4 bits), 3 (ternary). An even number has none, so zeros of a pruned
net would not stay: 4 (2 bits), 2 (binary). All functions broadcast the step against the weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from ..errors import OptionError, closest

LEVELS: Mapping[str, int] = MappingProxyType({"int8": 255, "int4": 15, "int2": 4, "ternary": 3, "binary": 2})
TERNARY_SHARE = 0.7  # of the mean magnitude: below it, a ternary weight is 0 (Li 2016, 1605.04711)
SHRUNK = 24  # steps that are tried between half and all of the largest weight


def levels_of(grid: str, where: str = "grid") -> int:
    """How many values the grid of that name has; OptionError for an unknown one."""
    if grid not in LEVELS:
        raise OptionError(where, f"no {grid!r}; {closest(str(grid), LEVELS)}Known: {', '.join(LEVELS)}")
    return LEVELS[grid]


def bits_of(levels: int) -> int:
    """Bits that tell so many levels apart: 1, 2, 4 or 8, so that codes fill whole bytes."""
    return next(bits for bits in (1, 2, 4, 8) if levels <= 1 << bits)


def to_codes(weight: Tensor, step: Tensor, levels: int) -> Tensor:
    """The nearest codes 0..levels-1, uint8, half to even."""
    return torch.round(weight / step + (levels - 1) / 2).clamp(0, levels - 1).to(torch.uint8)


def to_values(codes: Tensor, step: Tensor, levels: int) -> Tensor:
    """What the codes stand for."""
    return (codes.to(step.dtype) - (levels - 1) / 2) * step


def rounded(values: Tensor, step: Tensor, levels: int, zero: Tensor | float | None = None) -> Tensor:
    """Values moved to the grid, with the gradients of LSQ (Esser 2020, 1902.08153).

    For the values: 1 inside the grid's range, 0 outside (straight-through). For the step: what rounding added, inside;
    the outermost level, outside. zero: the code of 0, the middle unless given.
    """
    middle = (levels - 1) / 2 if zero is None else zero
    inside = (values / step + middle).clamp(0, levels - 1)
    return (inside.round().detach() + (inside - inside.detach()) - middle) * step


def widest(rows: Tensor, levels: int) -> Tensor:
    """The step that reaches the largest magnitude of each row (..., n) -> (..., 1); 1 for a row of zeros."""
    largest = rows.abs().amax(-1, keepdim=True)
    return torch.where(largest > 0, largest / ((levels - 1) / 2), torch.ones_like(largest))


def fitted_between(rows: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, step and the code of 0 of a grid from the smallest value of each row to its largest, 0 in between."""
    low, high = rows.amin(-1, keepdim=True).clamp(max=0), rows.amax(-1, keepdim=True).clamp(min=0)
    step = (high - low) / (levels - 1)
    step = torch.where(step > 0, step, torch.ones_like(step))
    zero = torch.round(-low / step).clamp(0, levels - 1)
    return torch.round(rows / step + zero).clamp(0, levels - 1).to(torch.uint8), step, zero


def nearest(rows: Tensor, levels: int) -> Tensor:
    """The step with the least squared error of each row (..., n) -> (..., 1), among shrunk forms of the widest one."""
    wide = widest(rows, levels)
    best, least = wide, torch.full_like(wide, torch.inf)
    for share in torch.linspace(0.5 if levels > 4 else 0.2, 1.0, SHRUNK).tolist():
        step = wide * share
        error = (to_values(to_codes(rows, step, levels), step, levels) - rows).square().sum(-1, keepdim=True)
        best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    return best


def binary_step(rows: Tensor) -> Tensor:
    """Twice the mean magnitude: codes 0 and 1 are then -mean and +mean, the closest two values (Rastegari 2016,
    1603.05279). 1 for a row of zeros."""
    mean = rows.abs().mean(-1, keepdim=True)
    return torch.where(mean > 0, 2 * mean, torch.ones_like(mean))


def ternary_step(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Threshold and step (..., 1) of ternary weight networks: 0.7 of the mean magnitude, and the mean of what is
    above it (Li 2016, 1605.04711); a step of 1 for a row of zeros."""
    magnitude = rows.abs()
    threshold = TERNARY_SHARE * magnitude.mean(-1, keepdim=True)
    above = magnitude > threshold
    step = (magnitude * above).sum(-1, keepdim=True) / above.sum(-1, keepdim=True).clamp(min=1)
    return threshold, torch.where(step > 0, step, torch.ones_like(step))


def ternary_codes(rows: Tensor, threshold: Tensor) -> Tensor:
    """0, 1 or 2: minus, nothing, plus."""
    return (torch.sign(rows) * (rows.abs() > threshold) + 1).to(torch.uint8)


def fitted(rows: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Codes (..., n) and step (..., 1) that stand for these rows best, by the rule of their grid."""
    if levels == 2:
        step = binary_step(rows)
        return (rows >= 0).to(torch.uint8), step
    if levels == 3:
        threshold, step = ternary_step(rows)
        return ternary_codes(rows, threshold), step
    step = nearest(rows, levels)
    return to_codes(rows, step, levels), step
