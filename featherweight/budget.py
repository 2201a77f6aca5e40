# SPDX-License-Identifier: Apache-2.0
"""What a budget asks for: "1%" and "2x", "5ms" or "1MB" as numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import OptionError
from .recipe import Budget

UNITS = {"x": "speed", "ms": "latency_ms", "kb": "bytes", "mb": "bytes"}
BYTES = {"kb": 1e3, "mb": 1e6}


@dataclass(frozen=True)
class Goal:
    """A budget in numbers. `kind` is speed (times the start), latency_ms or bytes; None asks for no more."""

    max_drop: float  # as a fraction of the images
    kind: str | None = None
    value: float = 0.0


def goal(budget: Budget) -> Goal:
    """The numbers in "1%" and "2x", "5ms", "1MB"; OptionError for what cannot be read."""
    drop = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:%|points?)", budget.max_drop.strip(), re.ASCII)
    if not drop or float(drop[1]) > 100:
        raise OptionError("max_drop", f"{budget.max_drop!r} is not a share such as 1% (points of top-1)")
    if budget.target is None:
        return Goal(float(drop[1]) / 100)
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(x|ms|kb|mb)", budget.target.strip().lower(), re.ASCII)
    if not found or float(found[1]) <= 0:
        raise OptionError("target", f"{budget.target!r} is not 2x (faster), 5ms (at batch 1) or 1MB (on disk)")
    unit = found[2]
    return Goal(float(drop[1]) / 100, UNITS[unit], float(found[1]) * BYTES.get(unit, 1.0))
