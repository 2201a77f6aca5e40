# SPDX-License-Identifier: Apache-2.0
"""Which of several models are worth having: no other is both more accurate and cheaper; and which meets a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from featherweight.search.limits import COSTS, Limits, words

T = TypeVar("T")
Found = Mapping[str, Any]  # what `points.measured` returned
F = TypeVar("F", bound=Mapping[str, Any])


def last_of_each(results: Sequence[Found]) -> list[dict[str, Any]]:
    """Of each point what its longest training came to."""
    best: dict[str, dict[str, Any]] = {}
    for found in results:
        known = best.get(found["key"])
        if known is None or found["images"] > known["images"]:
            best[found["key"]] = dict(found)
    return list(best.values())


def non_dominated(items: Sequence[T], quality: Callable[[T], float], cost: Callable[[T], float]) -> list[T]:
    """The items that no other beats in both, the cheapest first; of equal ones the first given stays."""
    kept: list[T] = []
    best = float("-inf")
    for item in sorted(items, key=lambda i: (cost(i), -quality(i))):
        if quality(item) > best:
            kept.append(item)
            best = quality(item)
    return kept


def layers(items: Sequence[T], quality: Callable[[T], float], cost: Callable[[T], float]) -> list[list[T]]:
    """The non-dominated items, those that are so without them, and so on (Deb 2002, NSGA-II)."""
    left, found = list(items), []
    while left:
        front = non_dominated(left, quality, cost)
        found.append(front)
        chosen = {id(item) for item in front}
        left = [item for item in left if id(item) not in chosen]
    return found


def ordered(items: Sequence[Found], limits: Limits, start: Found) -> list[Found]:
    """The most promising first: those within the limits, then those least above them.

    Where a cost is limited it is the best judged; where only the loss is, it is front by front, and in a front those
    first whose loss so far is nearest to what is allowed.
    """
    inside = [item for item in items if not limits.excess(item)]
    outside = sorted((item for item in items if limits.excess(item)), key=lambda i: sum(limits.excess(i).values()))
    if limits.bounded:
        return sorted(inside, key=lambda i: -float(i["judged"])) + outside
    wanted = float(start["top1"]) - (limits.max_drop or 0.0)
    near: list[Found] = []
    for front in layers(inside, lambda i: float(i["judged"]), lambda i: float(i[limits.cost])):
        near += sorted(front, key=lambda i: abs(wanted - float(i["top1"])))
    return near + outside


def pick(items: Sequence[F], limits: Limits, start: Found) -> tuple[F, str]:
    """The item for the budget and "", or the nearest with the reason why none fits.

    Of those that fit the cheapest; where a cost is limited the best judged one, or, of those that are less than one
    standard error behind it (Breiman 1984), the one that was trained longest: so small a difference is more often the
    validation pictures' than the models'.
    """

    def drop(item: Found) -> float:
        return float(start["top1"]) - float(item["top1"])

    fitting = [item for item in items if not limits.too_much(item, drop(item))]
    if fitting:
        if limits.bounded:
            best = max(float(i["judged"]) for i in fitting)
            near = [i for i in fitting if float(i["judged"]) >= best - standard_error(i)]
            return max(near, key=lambda i: (i.get("images", 0), i["judged"], -i[limits.cost])), ""
        return min(fitting, key=lambda i: (i[limits.cost], -i["top1"])), ""
    nearest = min(items, key=lambda i: sum(limits.too_much(i, drop(i)).values()))
    return nearest, _why(items, nearest, limits, drop)


def standard_error(item: Found) -> float:
    """Of the accuracy on the validation part, as a fraction of its pictures."""
    share = min(max(float(item["top1"]), 0.5 / item["n"]), 1 - 0.5 / item["n"])
    return math.sqrt(share * (1 - share) / item["n"])


def _why(items: Sequence[Found], nearest: Found, limits: Limits, drop: Callable[[Found], float]) -> str:
    """ "none of 12 models is within 1 ms: the fastest takes 1.3 ms"."""
    for name in COSTS:
        limit = getattr(limits, name)
        least = min(float(item[name]) for item in items)
        if limit is not None and least > limit:
            cheapest = {"latency_ms": "the fastest takes", "size_bytes": "the smallest has", "macs": "the least are"}
            asked, reached = words(name, limit), words(name, least)
            return f"none of {len(items)} models keeps to {asked}: {cheapest[name]} {reached}"
    lost = 100 * drop(nearest)
    above = ", ".join(words(name, float(nearest[name])) for name in limits.excess(nearest))
    if limits.max_drop is not None and lost > 100 * limits.max_drop + 1e-6:
        within = " within the other limits" if limits.bounded and not above else ""
        return f"none of {len(items)} models loses {100 * limits.max_drop:g} points or less{within}: {lost:.1f}" + (
            f" and {above} are nearest" if above else " are nearest"
        )
    return f"none of {len(items)} models keeps to all of: {limits}; the nearest needs {above}"
