# SPDX-License-Identifier: Apache-2.0
"""Curves of a detector at one IoU: precision and recall by confidence, F1, and the confidence that balances them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featherweight.scores.coco import RECALLS, Truth
from featherweight.scores.matching import IGNORED, RIGHT, Pairs, pair

STEPS = 101  # confidences of a curve: 0, 0.01 .. 1


@dataclass(frozen=True, eq=False)
class ClassCurves:
    """For each class k: precision, recall and F1 (K, 101) of keeping what scores at least each of `confidences`, and
    the falling precision (K, 101) at recalls 0, 0.01 .. 1. NaN for a class without objects."""

    confidences: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    precision_at_recall: NDArray[np.float64]

    @property
    def best_confidence(self) -> float:
        """Where the mean F1 of the classes is highest."""
        there = ~np.isnan(self.f1[:, 0])
        return float(self.confidences[self.f1[there].mean(0).argmax()]) if there.any() else 0.0


def curves(
    truth: Sequence[Truth], detections: Sequence[NDArray[np.floating]], *, classes: int, iou: float = 0.5
) -> ClassCurves:
    """Of what lies in each picture and its detections (n, 6)."""
    return curves_of(pair(truth, detections, classes=classes, iou=iou))


def curves_of(pairs: Pairs) -> ClassCurves:
    """Of detections already paired."""
    count, at = len(pairs.objects), np.linspace(0, 1, STEPS)
    precision, recall, falling = (np.full((count, STEPS), np.nan) for _ in range(3))
    for k in np.flatnonzero(pairs.objects):
        mine = (pairs.label == k) & (pairs.status != IGNORED)
        order = np.argsort(-pairs.score[mine], kind="stable")
        score, right = pairs.score[mine][order], pairs.status[mine][order] == RIGHT
        hits = np.concatenate([[0], right.cumsum()])
        kept = np.searchsorted(-score, -at, side="right")  # how many score at least so much
        precision[k] = np.where(kept > 0, hits[kept] / np.maximum(kept, 1), 1.0)
        recall[k] = hits[kept] / pairs.objects[k]
        falling[k] = precision_at(right, int(pairs.objects[k]))
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    f1[np.isnan(precision)] = np.nan
    return ClassCurves(at, precision, recall, f1, falling)


def precision_at(right: NDArray[np.bool_], objects: int) -> NDArray[np.float64]:
    """Detections of a class, best first, and how many objects there are -> COCO's precision at 101 recalls."""
    found = np.zeros(len(RECALLS))
    if not len(right) or not objects:
        return found
    hits = right.cumsum()
    envelope = np.maximum.accumulate((hits / np.arange(1, len(right) + 1))[::-1])[::-1]
    places = np.searchsorted(hits / objects, RECALLS, side="left")
    found[places < len(right)] = envelope[places[places < len(right)]]
    return found
