# SPDX-License-Identifier: Apache-2.0
"""How sure an average precision is, by the jackknife over groups of pictures (Quenouille 1956, Tukey 1958).

AP is no mean over pictures, so it has no interval of its own. It is worked out anew without each of 20 groups of
pictures; how much these values differ tells how much another set of pictures would change it. Values of two models on
the same pictures can be subtracted, group by group, which gives the interval of their difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featherweight.scores import coco
from featherweight.scores.coco import Truth

GROUPS = 20
STUDENT = 2.093  # two-sided 95 % of Student's t with GROUPS - 1 degrees of freedom


def left_out(
    truth: Sequence[Truth], detections: Sequence[NDArray[np.floating]], *, classes: Sequence[str] | int
) -> list[float]:
    """AP without each group of pictures, every 20th one a group; [] for fewer pictures than groups."""
    if len(truth) < GROUPS:
        return []
    found = []
    for group in range(GROUPS):
        kept = [i for i in range(len(truth)) if i % GROUPS != group]
        scores = coco.evaluate([truth[i] for i in kept], [detections[i] for i in kept], classes=classes)
        found.append(scores.stats["AP"])
    return found


def half_width(values: Sequence[float]) -> float | None:
    """Half the 95 % interval of what `values` are of, each without one of the groups; None where there are none."""
    if not values:
        return None
    mean = sum(values) / len(values)
    return STUDENT * math.sqrt((len(values) - 1) / len(values) * sum((value - mean) ** 2 for value in values))
