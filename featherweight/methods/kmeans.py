# SPDX-License-Identifier: Apache-2.0
"""k-means of single numbers: which k values stand best for many, and which of them stands for each.

Lloyd's iterations (Lloyd 1982) on sorted values: a cluster is a run of them, so that one iteration costs k searches
whatever the number of values. The same values give the same answer on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError, closest

Array = NDArray[Any]


def linear(ordered: Array, k: int, seed: int) -> Array:
    """Evenly from the least to the largest: rare large values keep centroids of their own (Han 2016, 1510.00149)."""
    return np.linspace(ordered[0], ordered[-1], k)


def density(ordered: Array, k: int, seed: int) -> Array:
    """As many values to each: quantiles."""
    return ordered[((np.arange(k) + 0.5) / k * len(ordered)).astype(np.int64)]


def random(ordered: Array, k: int, seed: int) -> Array:
    """k of the values, drawn (Forgy 1965)."""
    return np.sort(np.random.default_rng(seed).choice(ordered, k, replace=False))


def mixed(ordered: Array, k: int, seed: int) -> Array:
    """Halfway between linear and density: best for weights that were scaled by channel."""
    return (linear(ordered, k, seed) + density(ordered, k, seed)) / 2


STARTS: dict[str, Callable[[Array, int, int], Array]] = {
    start.__name__: start for start in (linear, density, random, mixed)
}


def cluster(values: Array, k: int, *, start: str = "linear", iterations: int = 50, seed: int = 0) -> Array:
    """At most k centroids, ascending, float64: fewer where some stand for nothing. OptionError for an unknown start."""
    if start not in STARTS:
        raise OptionError("init", f"no {start!r}; {closest(start, STARTS)}Known: {', '.join(STARTS)}")
    ordered = np.sort(values.astype(np.float64), axis=None)
    different = np.unique(ordered)
    if len(different) <= k:
        return different
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centroids = STARTS[start](different if start == "random" else ordered, k, seed)
    for _ in range(iterations):
        ends = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2, side="right")
        ends = np.concatenate([[0], ends, [len(ordered)]])
        counts = np.diff(ends)
        means = np.diff(sums[ends]) / np.maximum(counts, 1)
        moved = np.where(counts > 0, means, centroids)  # one that stands for nothing waits where it is
        if np.array_equal(moved, centroids):
            break
        centroids = np.sort(moved)
    used = np.unique(nearest(ordered, centroids))
    found: Array = centroids[used]
    return found


def nearest(values: Array, centroids: Array) -> Array:
    """The place of the nearest centroid for each value, int64; of two as near the lower one."""
    return np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values, side="left")
