# SPDX-License-Identifier: Apache-2.0
"""Which range of a tensor's values 8 bits should cover: four answers, each a function of a histogram.

minmax covers all; percentile cuts a fixed share; mse minimizes the squared error of what is left (the default: it is
the best or ties everywhere we measured); entropy minimizes the information lost (Migacz 2017, "8-bit inference with
TensorRT"). Each takes a `Histogram` and returns (low, high) with low <= 0 <= high, because zero must be exact: padding
and masks are made of it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featherweight.errors import OptionError, closest

BINS = 4096
SAMPLE = 1 << 18  # about as many values of a tensor are counted; its smallest and largest are always seen
Range = tuple[float, float]
Array = NDArray[np.float64]


class Histogram:
    """Counts of all that was seen, over [-limit, limit), which doubles as needed: one pass is enough."""

    def __init__(self) -> None:
        self.counts: Array = np.zeros(BINS)
        self.limit = 0.0
        self.low = self.high = 0.0

    def add(self, values: Tensor) -> None:
        """Count the values of a tensor of any shape. ValueError when one is not finite."""
        values = values.detach().float().flatten()
        low, high = (float(edge) for edge in torch.aminmax(values))
        if not np.isfinite([low, high]).all():
            raise ValueError("a value that is not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-low, high))
        if self.limit:
            every = len(values) // SAMPLE | 1  # odd, so that no channel or column is always passed over
            self.counts += torch.histc(values[::every], BINS, -self.limit, self.limit).double().numpy()

    def _widen(self, needed: float) -> None:
        if needed == 0:
            return
        if self.limit == 0:
            self.limit = float(2.0 ** np.ceil(np.log2(needed)))
        while self.limit < needed:  # two bins become one, in the middle half
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.pad(pairs, BINS // 4)
            self.limit *= 2

    def centers(self) -> Array:
        """The middle of each bin."""
        return np.asarray((np.arange(BINS) + 0.5) * (2 * self.limit / BINS) - self.limit, np.float64)


def minmax(seen: Histogram) -> Range:
    """From the smallest value to the largest."""
    return seen.low, seen.high


def percentile(seen: Histogram, *, share: float = 0.9999) -> Range:
    """The range that holds this share of the values, what is left out divided between both ends."""
    total = seen.counts.sum()
    if total == 0:
        return 0.0, 0.0
    below = np.cumsum(seen.counts) / total
    width = 2 * seen.limit / BINS
    low = -seen.limit + width * int(np.searchsorted(below, (1 - share) / 2))
    high = -seen.limit + width * (int(np.searchsorted(below, 1 - (1 - share) / 2)) + 1)
    return _inside(seen, low, high)


def mse(seen: Histogram, *, levels: int = 256, steps: int = 64) -> Range:
    """The range with the least squared rounding and clipping error; each end is searched in turn, twice."""
    low, high = minmax(seen)
    shares = np.linspace(1 / steps, 1, steps)
    for _ in range(2):
        high = min(seen.high * shares, key=lambda edge: _error(seen, low, edge, levels))
        low = min(seen.low * shares, key=lambda edge: _error(seen, edge, high, levels))
    return float(low), float(high)


def _error(seen: Histogram, low: float, high: float, levels: int) -> float:
    """Sum of squared differences when the range is cut into `levels` steps."""
    step = (high - low) / (levels - 1)
    if step <= 0:
        return float((seen.counts * seen.centers() ** 2).sum())
    zero = np.round(-low / step)
    values = seen.centers()
    kept = (np.clip(np.round(values / step) + zero, 0, levels - 1) - zero) * step
    return float((seen.counts * (values - kept) ** 2).sum())


def entropy(seen: Histogram, *, levels: int = 128, steps: int = 64) -> Range:
    """The clipped range whose distribution, rounded to `levels`, is nearest to the original one (KL divergence)."""
    best = (np.inf, minmax(seen))
    values, counts = seen.centers(), seen.counts.copy()
    counts[BINS // 2] = 0  # zero itself, the peak that ReLU makes, is exact whatever the range
    for edge in np.linspace(1 / steps, 1, steps) * max(-seen.low, seen.high):
        low, high = max(seen.low, -float(edge)), min(seen.high, float(edge))
        inside = (values >= low) & (values <= high)
        if inside.sum() < levels:
            continue
        kept = counts[inside]
        reference = kept.copy()
        reference[0] += counts[values < low].sum()  # what is clipped lands on the edges
        reference[-1] += counts[values > high].sum()
        best = min(best, (_divergence(reference, kept, levels), (low, high)))
    return best[1]


def _divergence(reference: Array, kept: Array, levels: int) -> float:
    """KL(reference || kept, each of its bins spread evenly over the filled fine bins it was made of)."""
    coarse = np.arange(len(kept)) * levels // len(kept)
    filled = kept > 0
    mass = np.bincount(coarse, kept, levels)
    width = np.bincount(coarse, filled, levels)
    spread = np.where(filled, (mass / np.maximum(width, 1))[coarse], 0)
    p, q = reference / reference.sum(), spread / max(spread.sum(), 1e-12)
    here = p > 0
    return float((p[here] * np.log(p[here] / np.maximum(q[here], 1e-12))).sum())


def _inside(seen: Histogram, low: float, high: float) -> Range:
    return max(min(low, 0.0), seen.low), min(max(high, 0.0), seen.high)


OBSERVERS: dict[str, Callable[[Histogram], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}


def named(observer: str | Callable[[Histogram], Range]) -> Callable[[Histogram], Range]:
    """The observer of that name; a function of one's own is taken as it is."""
    if callable(observer):
        return observer
    if observer not in OBSERVERS:
        known = ", ".join(OBSERVERS)
        raise OptionError("observer", f"no {observer!r}; {closest(observer, OBSERVERS)}Known: {known}")
    return OBSERVERS[observer]
