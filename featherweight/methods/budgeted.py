# SPDX-License-Identifier: Apache-2.0
"""How much to cut for a budget: a ratio is searched until what a model costs fits, whatever is cut and counted.

What a model costs is a function: its MACs, its bytes, its measured milliseconds (`costs`). Rounding makes the cost fall
in steps, so what is found is the largest model tried that fits, never one above the budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ..errors import OptionError

Make = Callable[[float], nn.Module]
Cost = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Fitted:
    """What was found, and every ratio that was tried with its cost."""

    model: nn.Module
    ratio: float
    cost: float
    tried: tuple[tuple[float, float], ...]


def fit_budget(
    make: Make, cost: Cost, *, budget: float, highest: float = 0.95, steps: int = 9, tolerance: float = 0.01
) -> Fitted:
    """The model make(ratio) with the least cut whose cost is at most `budget`; ratio 0 if that is enough.

    tolerance: of the cost, as a share of the budget, near which the search ends. A ratio that `make` refuses with an
    OptionError counts as too high. Raises OptionError where nothing up to `highest` fits.
    """
    if budget <= 0 or steps < 1 or not 0 < highest < 1:
        raise OptionError("budget", f"{budget!r} (with highest {highest!r} and steps {steps!r}) is not to be searched")
    tried: list[tuple[float, float]] = []
    best: Fitted | None = None
    low, high, ratio = 0.0, highest, 0.0
    for _ in range(steps + 1):
        model = _made(make, ratio)
        if model is None:
            high = ratio
        else:
            spent = cost(model)
            tried.append((ratio, spent))
            if spent <= budget:
                if best is None or spent > best.cost:
                    best = Fitted(model, ratio, spent, ())
                high = ratio
                if ratio == 0 or spent >= (1 - tolerance) * budget:
                    break
            else:
                low = ratio
        ratio = (low + high) / 2
    if best is None:
        least = min((spent for _, spent in tried), default=float("nan"))
        raise OptionError(
            "budget", f"{budget:.4g} was not reached: {least:.4g} at ratio {tried[-1][0]:.3f} is the least"
        )
    return Fitted(best.model, best.ratio, best.cost, tuple(tried))


def _made(make: Make, ratio: float) -> nn.Module | None:
    try:
        return make(ratio)
    except OptionError:
        if ratio == 0:
            raise
        return None
