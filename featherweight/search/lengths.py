# SPDX-License-Identifier: Apache-2.0
"""How long a search trains its points: by what a picture takes, what a point takes besides, and the time there is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from featherweight import recipe as recipes
from featherweight.search.space import TRAINS, split

ETA = 3  # a rung trains so many times as long as the one below
EXPLORE = 0.5  # share of the time for new points; the rest is for the longest training of the best
LONGER = 3  # the longest training is so many times as long as that of the recipe itself
SHARE = 3  # and no longer than this part of the time
GAIN = 1.5  # a further training of a point is at least so many times as long as the one it had
FASTER = 4  # than the start: no training of a point is, also if it went on where it was stopped
SURE = 0.95  # of the time that is left, which a last training is planned for
OVERHEAD_SECONDS = 5.0  # of a point beside its training, before one was done


def own_length(base: recipes.Recipe, images: int) -> int:
    """Pictures that the recipe trains its searched steps on; of two trainings where it has none."""
    prefix, _ = split(base)
    usual = base.train.epochs, base.train.images or images
    found = 0
    for step in base.steps[len(prefix) :]:
        if step.name in TRAINS:
            options = step.options
            found += (options.get("epochs") or usual[0]) * (options.get("images") or usual[1])
    return found or 2 * usual[0] * usual[1]


def longest(base: recipes.Recipe, images: int, *, seconds: float, per_image: float) -> int:
    """Pictures of the longest training: longer than the recipe's, or what the time allows. images: there are."""
    affordable = int(seconds / SHARE / per_image)
    return max(2 * base.train.batch_size, min(LONGER * own_length(base, images), affordable))


def rungs_of(full: int, batch: int, per_image: float) -> list[int]:
    """Training pictures at each rung, the longest last: `ETA` times less each, three at most.

    None is so short that it takes less time than a point takes beside its training: it would cost as much as a
    longer one and say less. Nor is one shorter than two batches.
    """
    least, found = max(2 * batch, OVERHEAD_SECONDS / per_image), [full]
    while len(found) < 3 and found[0] // ETA >= least:
        found.insert(0, found[0] // ETA)
    return found


@dataclass
class Clock:
    """How long a search may go on, and what its points take."""

    seconds: float
    images: Sequence[int]  # of each rung
    per_image: float  # seconds of training, measured before
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def rate(self, results: Sequence[Mapping[str, Any]]) -> float:
        """Seconds of training for each picture, by what was trained so far."""
        seen = sum(int(r["images"]) for r in results)
        if not seen:
            return self.per_image
        return max(sum(float(r["training_s"]) for r in results) / seen, self.per_image / FASTER)

    def beside(self, results: Sequence[Mapping[str, Any]]) -> float:
        """Seconds of a point beside its training: export, answers, race."""
        spent = [float(r["seconds"]) - float(r["training_s"]) for r in results]
        return max(0.0, sum(spent) / len(spent)) if spent else OVERHEAD_SECONDS

    def takes(self, rung: int, results: Sequence[Mapping[str, Any]]) -> float:
        """Seconds of a point at this rung."""
        return self.beside(results) + self.images[rung] * self.rate(results)

    def finishing(self, results: Sequence[Mapping[str, Any]], *, now: bool = False) -> int | None:
        """Pictures of a last training of the best point; None while there is time for new points, 0: no time left.

        now: new points are of no use.
        """
        early = not now and self.left > max((1 - EXPLORE) * self.seconds, self.takes(-1, results))
        if early or not results:
            return None
        room = int((SURE * self.left - self.beside(results)) / self.rate(results))
        return min(self.images[-1], room) if room >= self.images[0] else 0
