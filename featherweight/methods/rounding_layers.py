# SPDX-License-Identifier: Apache-2.0
"""Scaffold of training with rounding: how a weight and an activation are rounded, and the layer that does both.

Weights: steps that are learned (LSQ: Esser 2020, 1902.08153) or that reach the largest weight; ternary (Li 2016,
1605.04711); binary with the mean magnitude of each row (Rastegari 2016, 1603.05279). `qat` puts them in and takes them
away; what is deployed is in `int8` and `stored`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .int8 import scale_of
from .rounding import binary_step, levels_of, nearest, rounded, ternary_codes, ternary_step, to_codes, to_values, widest

SMALLEST_STEP = 1e-8
LEAST = 1e-3  # of the step where it began: what a learned step does not go below


class Step(nn.Module):
    """Steps (rows,) or one (), which are learned, if they are, as multiples of where they began.

    Adam's updates have the size of the rate whatever the gradient's; of a step of a thousandth, as 8 bits have it, one
    would be as large as the step itself. The gradient is scaled as if the step were what is learned, divided by
    sqrt(count * largest code) as LSQ balances it with the weights', so that plain SGD moves it as in the paper.
    """

    start: Tensor
    multiple: Tensor

    def __init__(self, start: Tensor, *, learned: bool) -> None:
        super().__init__()
        self.register_buffer("start", start.clamp(min=SMALLEST_STEP))
        if learned:
            self.multiple = nn.Parameter(torch.ones_like(start))
        else:
            self.register_buffer("multiple", torch.ones_like(start))

    def value(self) -> Tensor:
        """The steps as they are."""
        return self.start * self.multiple.detach().clamp(min=LEAST)

    def forward(self, count: int, largest: float) -> Tensor:
        """The steps, for values of which one step has `count`, with codes up to `largest`."""
        multiple = self.multiple.clamp(min=LEAST)
        factor = (count * largest) ** -0.5 / self.start.square()
        return self.start * (multiple.detach() + (multiple - multiple.detach()) * factor)


class WeightRounding(nn.Module):
    """Rounds a weight (rows, ...) with a step for each row: a parameter if `learned`, else what reaches the largest."""

    def __init__(self, weight: Tensor, levels: int, *, learned: bool) -> None:
        super().__init__()
        self.levels = levels
        start = nearest(weight.detach().flatten(1), levels).squeeze(1)
        self.step = Step(start, learned=True) if learned else None

    def steps(self, rows: Tensor) -> Tensor:
        """(rows, 1)"""
        return widest(rows, self.levels) if self.step is None else self.step.value()[:, None]

    def forward(self, weight: Tensor) -> Tensor:
        rows = weight.flatten(1)
        if self.step is None:
            step = self.steps(rows.detach())
        else:
            step = self.step(rows.shape[1], (self.levels - 1) / 2)[:, None]
        return rounded(rows, step, self.levels).reshape(weight.shape)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (rows, n), uint8, and steps (rows, 1)."""
        rows = weight.flatten(1)
        step = self.steps(rows)
        return to_codes(rows, step, self.levels), step


class TernaryRounding(nn.Module):
    """A weight as -a, 0 and a: what is below 0.7 of the row's mean magnitude is 0, a is the mean of the rest."""

    levels = 3

    def forward(self, weight: Tensor) -> Tensor:
        codes, step = self.codes(weight)
        return to_values(codes, step, 3).reshape(weight.shape) + (weight - weight.detach())

    @torch.no_grad()
    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (rows, n), uint8, and steps (rows, 1)."""
        rows = weight.flatten(1)
        threshold, step = ternary_step(rows)
        return ternary_codes(rows, threshold), step


class BinaryRounding(nn.Module):
    """A weight as -a and a, a the row's mean magnitude; its gradient is multiplied by 1 / n + a where |w| <= 1."""

    levels = 2

    def forward(self, weight: Tensor) -> Tensor:
        rows = weight.flatten(1)
        codes, step = self.codes(weight)
        factor = 1 / rows.shape[1] + step / 2 * (rows.detach().abs() <= 1)
        through = rows * factor
        return (to_values(codes, step, 2) + (through - through.detach())).reshape(weight.shape)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (rows, n), uint8, and steps (rows, 1)."""
        rows = weight.flatten(1)
        return (rows >= 0).to(torch.uint8), binary_step(rows)


def rounding_of(weight: Tensor, grid: str, *, learned: bool) -> nn.Module:
    """What rounds this weight to the grid of that name in training."""
    if grid == "ternary":
        return TernaryRounding()
    if grid == "binary":
        return BinaryRounding()
    return WeightRounding(weight, levels_of(grid), learned=learned)


class InputRounding(nn.Module):
    """Rounds activations to levels from a fixed zero point, with a step that is learned or stays."""

    zero: Tensor

    def __init__(self, limits: tuple[float, float], levels: int, *, learned: bool) -> None:
        super().__init__()
        scale, zero = scale_of(limits, levels)
        self.levels = levels
        self.register_buffer("zero", torch.tensor(float(zero)))
        self.step = Step(torch.tensor(scale), learned=learned)

    def forward(self, x: Tensor) -> Tensor:
        return rounded(x, self.step(x[0].numel(), self.levels - 1), self.levels, self.zero)


class Rounded(nn.Module):
    """A layer that computes with its weight and its input rounded."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rounding: nn.Module, inputs: nn.Module) -> None:
        super().__init__()
        self.layer, self.rounding, self.input = layer, rounding, inputs

    @property
    def weight(self) -> Tensor:
        """Hosts look at its type to know what to feed in."""
        return self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        weight = self.rounding(self.layer.weight)
        result: Tensor = functional_call(self.layer, {"weight": weight}, (self.input(x),))
        return result


class Settled(nn.Module):
    """A batch norm that uses its running statistics once it is `settled`, also in training."""

    settled: Tensor

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("settled", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        self.norm.train(self.training and not bool(self.settled))
        return self.norm(x)
