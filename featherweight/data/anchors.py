# SPDX-License-Identifier: Apache-2.0
"""Anchors that fit a data set: a metric that says whether new ones are needed, k-means and evolution that find them.

A box fits an anchor by the smaller of the two ratios of their sides; above 1 / 4 the loss can use the pair (fact sheet,
sections 5 and 9). Everything is deterministic in the seed. Sides are (width, height) in pixels at the training size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featherweight.data.scenes import Scenes
from featherweight.errors import OptionError

Sides = NDArray[np.float64]  # (n, 2)
ENOUGH = 0.98  # share of boxes with a usable anchor; below it new anchors are worth having
MIN_SIDE = 2.0  # pixels: smaller boxes are not fitted to
STARTS, ROUNDS = 8, 30  # of k-means


@dataclass(frozen=True)
class Fit:
    """How well anchors fit: the share of boxes with a usable anchor, usable anchors a box, and the mean best ratio."""

    best_possible_recall: float
    anchors_above_threshold: float
    fitness: float

    @property
    def enough(self) -> bool:
        """Whether these anchors will do."""
        return self.best_possible_recall >= ENOUGH


def fit_of(sides: Sides, anchors: Sides, *, threshold: float = 4.0) -> Fit:
    """How anchors (k, 2) fit boxes (n, 2)."""
    if not len(sides):
        raise OptionError("data", "has no boxes to fit anchors to")
    ratios = _ratios(sides, anchors)
    best, usable = ratios.max(1), ratios > 1 / threshold
    return Fit(float((best > 1 / threshold).mean()), float(usable.sum(1).mean()), _fitness(sides, anchors, threshold))


def _ratios(sides: Sides, anchors: Sides) -> NDArray[np.float64]:
    r = sides[:, None] / anchors
    found: NDArray[np.float64] = np.minimum(r, 1 / r).min(2)
    return found


def _fitness(sides: Sides, anchors: Sides, threshold: float) -> float:
    best = _ratios(sides, anchors).max(1)
    return float(np.where(best > 1 / threshold, best, 0).mean())


def sides_of(scenes: Scenes, size: int | tuple[int, int]) -> Sides:
    """Widths and heights (n, 2) of all targets of a part, in pixels at the training size."""
    wanted = (size, size) if isinstance(size, int) else size
    found = []
    for i in range(len(scenes)):
        boxes = scenes.objects(i).targets().boxes
        gain = min(wanted[0] / int(scenes.sizes[i][0]), wanted[1] / int(scenes.sizes[i][1]))
        found.append((boxes[:, 2:] - boxes[:, :2]) * gain)
    return np.concatenate(found) if found else np.zeros((0, 2))


def fitted(sides: Sides, count: int = 9, *, threshold: float = 4.0, generations: int = 1000, seed: int = 0) -> Sides:
    """`count` anchors (count, 2), smallest first: the best of several k-means, then evolved for `generations`."""
    usable = sides[(sides >= MIN_SIDE).all(1)]
    if len(np.unique(usable, axis=0)) < count:
        raise OptionError("anchors", f"{count} anchors need as many different boxes; there are {len(usable)} usable")
    rng = np.random.default_rng(seed)
    starts = [kmeans(usable, count, rng) for _ in range(STARTS)]
    best = max(starts, key=lambda anchors: _fitness(sides, anchors, threshold))
    evolved = _evolved(sides, best, threshold, generations, rng)
    return evolved[np.argsort(evolved.prod(1), kind="stable")]


def kmeans(sides: Sides, count: int, rng: np.random.Generator) -> Sides:
    """Centers (count, 2) of k-means on the logarithms of the sides, since anchors fit by ratios (Lloyd 1982; seeding:
    Arthur 2007)."""
    points = np.log(sides)
    centers = points[rng.integers(len(points))][None]
    while len(centers) < count:
        distance = ((points[:, None] - centers) ** 2).sum(2).min(1)
        centers = np.concatenate([centers, points[rng.choice(len(points), p=distance / distance.sum())][None]])
    for _ in range(ROUNDS):
        nearest = ((points[:, None] - centers) ** 2).sum(2).argmin(1)
        means = [points[nearest == k].mean(0) if (nearest == k).any() else centers[k] for k in range(count)]
        moved = np.stack(means)
        if np.array_equal(moved, centers):
            break
        centers = moved
    found: Sides = np.exp(centers)
    return found


def _evolved(sides: Sides, anchors: Sides, threshold: float, generations: int, rng: np.random.Generator) -> Sides:
    """Random factors on the anchors, kept where the fit gets better."""
    best, score = anchors, _fitness(sides, anchors, threshold)
    for _ in range(generations):
        factors = np.ones_like(best)
        while (factors == 1).all():
            noise = rng.random() * rng.standard_normal(best.shape) * 0.1
            factors = np.where(rng.random(best.shape) < 0.9, 1 + noise, 1.0).clip(0.3, 3.0)
        tried = np.maximum(best * factors, MIN_SIDE)
        found = _fitness(sides, tried, threshold)
        if found > score:
            best, score = tried, found
    return best


def levels(anchors: Sides, count: int) -> NDArray[np.float64]:
    """Anchors (L * A, 2), smallest first, as (L, A, 2) for the levels of a head from the finest on."""
    if len(anchors) % count:
        raise OptionError("anchors", f"{len(anchors)} anchors cannot be shared evenly by {count} levels")
    order = np.argsort(anchors.prod(1), kind="stable")
    return anchors[order].reshape(count, -1, 2)
