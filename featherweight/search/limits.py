# SPDX-License-Identifier: Apache-2.0
"""What a search is to keep to: "5ms", "2MB", "0.3G" and "0.5" as numbers, and how far a model is from them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from featherweight.errors import OptionError

UNITS: dict[str, dict[str, float]] = {  # option -> unit in lower case -> what one of it is
    "latency": {"ms": 1.0, "us": 1e-3, "s": 1e3},
    "size": {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9},
    "macs": {"k": 1e3, "m": 1e6, "g": 1e9},
    "max-drop": {"": 0.01, "%": 0.01, "point": 0.01, "points": 0.01},
}
EXAMPLES = {"latency": "5ms", "size": "2MB", "macs": "0.3G", "max-drop": "0.5 (points of accuracy)"}
RECIPE = "recipe"  # a latency that is not more than that of the recipe as it is written
EQUAL = 1.03  # times another latency: as fast, as far as a short race can tell
COSTS = ("latency_ms", "size_bytes", "macs")  # what a result is counted by, in the order in which a limit decides


@dataclass(frozen=True)
class Limits:
    """The largest latency at batch 1, bytes of the file, multiply-adds and loss of accuracy; None: as it comes.

    An infinite latency is that of the recipe as it is written, which is not known yet.
    """

    latency_ms: float | None = None
    size_bytes: float | None = None
    macs: float | None = None
    max_drop: float | None = None  # as a fraction of the pictures

    @property
    def cost(self) -> str:
        """The cost that the search weighs against accuracy: the first that is limited, else latency."""
        return next((name for name in COSTS if getattr(self, name) is not None), COSTS[0])

    @property
    def bounded(self) -> bool:
        """Whether a cost is limited, not only the loss."""
        return any(getattr(self, name) is not None for name in COSTS)

    @property
    def as_recipe(self) -> bool:
        return self.latency_ms == math.inf

    def excess(self, costs: Mapping[str, Any]) -> dict[str, float]:
        """Cost -> by how much it is above its limit, as a share of the limit; a cost that is not known is not above."""
        found = {}
        for name in COSTS:
            limit, value = getattr(self, name), costs.get(name)
            if limit is not None and value is not None and value > limit:
                found[name] = float(value / limit - 1)
        return found

    def too_much(self, costs: Mapping[str, Any], drop: float | None) -> dict[str, float]:
        """`excess` with the loss of accuracy, which is above its limit by so many fractions of the pictures."""
        found = self.excess(costs)
        if self.max_drop is not None and drop is not None and drop > self.max_drop + 1e-9:
            found["max_drop"] = float(drop - self.max_drop)
        return found

    def __str__(self) -> str:
        said = [f"{words(name, getattr(self, name))} at most" for name in COSTS if getattr(self, name) is not None]
        if self.max_drop is not None:
            said.append(f"{100 * self.max_drop:g} points lost at most")
        return ", ".join(said)

    def to_dict(self) -> dict[str, float | None]:
        return asdict(self)


def limits(
    *,
    latency: str | float | None = None,
    size: str | float | None = None,
    macs: str | float | None = None,
    max_drop: str | float | None = None,
) -> Limits:
    """The limits from what a user writes; a number is milliseconds, bytes, multiply-adds or points of accuracy.

    latency: or "recipe".
    """
    found = Limits(
        math.inf if latency == RECIPE else _number("latency", latency, 1.0),
        _number("size", size, 1.0),
        _number("macs", macs, 1.0),
        _number("max-drop", max_drop, 0.01),
    )
    if found == Limits():
        text = "nothing is asked for: give --latency 5ms, --size 2MB, --macs 0.3G or --max-drop 0.5"
        raise OptionError("fit", text)
    if found.max_drop is not None and found.max_drop > 1:
        raise OptionError("--max-drop", f"{100 * found.max_drop:g} points are more than there are; 100 is all")
    return found


def _number(name: str, value: str | float | None, plain: float) -> float | None:
    """The value in the unit of `Limits`; a bare number counts `plain` each."""
    if value is None:
        return None
    told = str(value).strip()
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z%]*)", told, re.ASCII)
    units = UNITS[name]
    if match and isinstance(value, (int, float)) and not isinstance(value, bool):
        factor: float | None = plain
    else:
        factor = units.get(match[2].lower()) if match else None
    if match is None or factor is None or (float(match[1]) <= 0 and name != "max-drop"):
        raise OptionError(f"--{name}", f"{told!r} is not something like {EXAMPLES[name]}")
    return float(match[1]) * factor


def words(cost: str, value: float) -> str:
    """A cost as a person writes it: "1.25 ms", "0.47 MB", "46.5 M multiply-adds"."""
    if cost == "latency_ms":
        return f"{value:.3g} ms"
    if cost == "size_bytes":
        return f"{value / 1e6:.3g} MB" if value >= 1e5 else f"{value / 1e3:.3g} kB"
    return f"{value / 1e6:.3g} M multiply-adds"


def seconds(option: str, text: str) -> float:
    """ "90s", "5m", "1h" -> seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*(s|min|m|h)", text.strip().lower(), re.ASCII)
    if not match or float(match[1]) <= 0:
        raise OptionError(option, f"{text!r} is not something like 90s, 5m or 1h")
    return float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[match[2]]
