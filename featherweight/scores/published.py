# SPDX-License-Identifier: Apache-2.0
"""Average precision as YOLOv7's own logs print it, for comparing with them (fact sheet, 10). COCO's is `scores.coco`.

It differs from COCO's: a detection may match only the object it overlaps most, one matching serves all thresholds,
crowds and areas are not known, and the area below the curve is a trapezoid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featherweight.runtime.nms import overlaps
from featherweight.scores.coco import THRESHOLDS, Truth

EPS = 1e-16
GRID = np.linspace(0, 1, 1000)  # confidences at which precision and recall are looked at


@dataclass(frozen=True, eq=False)
class Curves:
    """For each class that has objects: precision, recall and F1 at the confidence of the best mean F1, AP (k, 10)."""

    classes: NDArray[np.int64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    average_precision: NDArray[np.float64]


def matched(truth: Truth, rows: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which detections (n, 6), best first, are right at each of the ten thresholds: (n, 10)."""
    right = np.zeros((len(rows), len(THRESHOLDS)), bool)
    for label in np.unique(np.asarray(truth.labels)):
        there = np.asarray(truth.boxes, np.float64)[np.asarray(truth.labels) == label]
        mine = np.flatnonzero(rows[:, 5] == label)
        if not len(mine):
            continue
        pairs = overlaps(np.asarray(rows[mine, :4], np.float64), there)
        best, taken = pairs.argmax(1), set()
        for i, which in zip(range(len(mine)), best.tolist(), strict=True):
            if pairs[i, which] > THRESHOLDS[0] and which not in taken:
                taken.add(which)
                right[mine[i]] = pairs[i, which] > THRESHOLDS
    return right


def curves(
    right: NDArray[np.bool_],
    scores: NDArray[np.floating],
    labels: NDArray[np.integer],
    targets: NDArray[np.integer],
    *,
    ramp: bool = False,
) -> Curves:
    """Detections of all pictures (right (n, 10), scores (n,), labels (n,)) against the classes of all objects (m,).

    ramp: let the curve fall to 0 at recall 1, which raises the result (there called the v5 metric).
    """
    order = np.argsort(-scores, kind="stable")
    right, scores, labels = right[order], scores[order], labels[order]
    classes, counts = np.unique(targets, return_counts=True)
    average = np.zeros((len(classes), right.shape[1]))
    precision, recall = np.zeros((len(classes), len(GRID))), np.zeros((len(classes), len(GRID)))
    for k, (label, count) in enumerate(zip(classes, counts, strict=True)):
        mine = labels == label
        if not mine.any():
            continue
        hits, misses = right[mine].cumsum(0), (~right[mine]).cumsum(0)
        r, p = hits / (count + EPS), hits / (hits + misses)
        recall[k] = np.interp(-GRID, -scores[mine], r[:, 0], left=0)
        precision[k] = np.interp(-GRID, -scores[mine], p[:, 0], left=1)
        for j in range(right.shape[1]):
            average[k, j] = area(r[:, j], p[:, j], ramp=ramp)
    f1 = 2 * precision * recall / (precision + recall + EPS)
    best = int(f1.mean(0).argmax()) if len(classes) else 0
    return Curves(classes, precision[:, best], recall[:, best], f1[:, best], average)


def area(recall: NDArray[np.float64], precision: NDArray[np.float64], *, ramp: bool) -> float:
    """Below the falling envelope of the curve, at 101 recalls."""
    ends = 1.0 if ramp else recall[-1] + 0.01
    r, p = np.concatenate([[0.0], recall, [ends]]), np.concatenate([[1.0], precision, [0.0]])
    envelope = np.maximum.accumulate(p[::-1])[::-1]
    at = np.linspace(0, 1, 101)
    return float(np.trapezoid(np.interp(at, r, envelope), at))


def evaluate(truth: Sequence[Truth], detections: Sequence[NDArray[np.floating]], *, ramp: bool = False) -> Curves:
    """The numbers of a log for what lies in each picture and its detections (n, 6)."""
    ordered = [rows[np.argsort(-rows[:, 4], kind="stable")] for rows in detections]
    right = [matched(one, rows) for one, rows in zip(truth, ordered, strict=True)]
    every = np.concatenate(ordered) if ordered else np.zeros((0, 6))
    targets = np.concatenate([np.asarray(one.labels) for one in truth])
    return curves(np.concatenate(right), every[:, 4], every[:, 5].astype(np.int64), targets, ramp=ramp)


def fitness(ap50: float, ap: float) -> float:
    """What the authors choose their best checkpoint by."""
    return 0.1 * ap50 + 0.9 * ap
