# SPDX-License-Identifier: Apache-2.0
"""What a detector does wrong: the confusion of classes, and how much AP50 each kind of error costs.

The kinds are those of TIDE (Bolya 2020, 2008.08115): a wrong class in the right place, a poor place, both, a second
detection of one object, background, and objects missed. The cost of a kind is what AP50 would gain if an oracle mended
only that kind; the costs do not add up to what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featherweight.scores.coco import Truth
from featherweight.scores.curves import precision_at
from featherweight.scores.matching import IGNORED, RIGHT, WRONG, Pairs, overlap_of, pair

KINDS = ("class", "place", "both", "double", "background", "missed")
NEAR = 0.1  # IoU from which on a detection has to do with an object


@dataclass(frozen=True, eq=False)
class Errors:
    """AP50 as it is, what it would gain from mending each kind, and how often each occurs."""

    ap50: float
    gains: dict[str, float]
    counts: dict[str, int]


def split(truth: Sequence[Truth], detections: Sequence[NDArray[np.floating]], *, classes: int) -> Errors:
    """The errors at IoU 0.5 of detections (n, 6) of each picture."""
    ordered = [rows[np.argsort(-rows[:, 4], kind="stable")] for rows in detections]
    pairs = pair(truth, ordered, classes=classes)
    kinds = np.full(len(pairs.status), -1)
    meant = np.full(len(pairs.status), -1)  # the object a class or place error is about
    ends = np.cumsum([0, *(len(rows) for rows in ordered)])
    explained: list[set[int]] = []
    for i, (one, rows) in enumerate(zip(truth, ordered, strict=True)):
        where = slice(ends[i], ends[i + 1])
        kinds[where], meant[where] = _kinds(one, rows, pairs.status[where])
        told = (kinds[where] == 0) | (kinds[where] == 1)
        explained.append(set(meant[where][told].tolist()))
    missed = _missed(truth, pairs, explained, classes)
    counts = {kind: int((kinds == k).sum()) for k, kind in enumerate(KINDS[:5])}
    counts["missed"] = int(missed.sum())
    ap50 = _ap50(pairs.status, pairs.label, pairs.score, pairs.objects)
    gains = {KINDS[k]: _mended(k, pairs, kinds, meant, truth) - ap50 for k in range(5)}
    gains["missed"] = _ap50(pairs.status, pairs.label, pairs.score, pairs.objects - missed) - ap50
    return Errors(ap50, gains, counts)


def _kinds(
    one: Truth, rows: NDArray[np.floating], status: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each detection of a picture its kind of error (-1: none), and the object it is about (-1: none)."""
    kinds, meant = np.full(len(rows), -1), np.full(len(rows), -1)
    there = np.flatnonzero(~np.asarray(one.crowd, bool))
    labels = np.asarray(one.labels)[there]
    shared = overlap_of(rows[:, :4], one, there)
    for i in np.flatnonzero(status == WRONG):
        same = np.where(labels == rows[i, 5], shared[i], 0.0) if len(there) else np.zeros(1)
        other = np.where(labels != rows[i, 5], shared[i], 0.0) if len(there) else np.zeros(1)
        best, astray = same.max(), other.max()
        if NEAR <= best < 0.5:
            kinds[i], meant[i] = 1, there[same.argmax()]
        elif astray >= 0.5:
            kinds[i], meant[i] = 0, there[other.argmax()]
        elif best >= 0.5:
            kinds[i] = 3
        else:
            kinds[i] = 4 if max(best, astray) < NEAR else 2
    return kinds, meant


def _missed(truth: Sequence[Truth], pairs: Pairs, explained: Sequence[set[int]], classes: int) -> NDArray[np.int64]:
    """How many objects of each class (K,) nothing stands for, rightly or by a wrong class or a poor place."""
    found = np.zeros(classes, np.int64)
    right = pairs.status == RIGHT
    for i, one in enumerate(truth):
        seen = explained[i] | set(pairs.stands_for[right & (pairs.picture == i)].tolist())
        for j in np.flatnonzero(~np.asarray(one.crowd, bool)).tolist():
            found[int(one.labels[j])] += j not in seen
    return found


def _mended(
    kind: int, pairs: Pairs, kinds: NDArray[np.int64], meant: NDArray[np.int64], truth: Sequence[Truth]
) -> float:
    """AP50 with one kind of error mended: a class or place error becomes right if its object is free, else goes."""
    status, label = pairs.status.copy(), pairs.label.copy()
    taken = set(zip(pairs.picture[status == RIGHT].tolist(), pairs.stands_for[status == RIGHT].tolist(), strict=True))
    mine = np.flatnonzero(kinds == kind)
    for i in mine[np.argsort(-pairs.score[mine], kind="stable")].tolist():
        place = (int(pairs.picture[i]), int(meant[i]))
        if kind in (0, 1) and place not in taken:
            taken.add(place)
            status[i], label[i] = RIGHT, int(truth[place[0]].labels[place[1]])
        else:
            status[i] = IGNORED
    return _ap50(status, label, pairs.score, pairs.objects)


def _ap50(
    status: NDArray[np.int64], label: NDArray[np.int64], score: NDArray[np.float64], objects: NDArray[np.int64]
) -> float:
    """The mean over classes with objects of COCO's AP at one IoU; -1 without any."""
    found = []
    for k in np.flatnonzero(objects > 0):
        mine = (label == k) & (status != IGNORED)
        order = np.argsort(-score[mine], kind="stable")
        found.append(precision_at(status[mine][order] == RIGHT, int(objects[k])).mean())
    return float(np.mean(found)) if found else -1.0


def confusion(
    truth: Sequence[Truth],
    detections: Sequence[NDArray[np.floating]],
    *,
    classes: int,
    confidence: float = 0.25,
    iou: float = 0.5,
) -> NDArray[np.int64]:
    """Counts (K + 1, K + 1): row the true class, column the detected one; the last of each is background.

    Detections above `confidence` and objects are paired by overlap, whatever their classes; over a crowd none counts.
    """
    table = np.zeros((classes + 1, classes + 1), np.int64)
    for one, rows in zip(truth, detections, strict=True):
        rows = rows[rows[:, 4] > confidence]
        crowd = np.asarray(one.crowd, bool)
        there = np.flatnonzero(~crowd)
        labels, found = np.asarray(one.labels)[there], rows[:, 5].astype(np.int64)
        shared = overlap_of(rows[:, :4], one, there)
        free_rows, free_there = np.ones(len(rows), bool), np.ones(len(there), bool)
        for place in np.argsort(-shared, axis=None, kind="stable") if shared.size else ():
            i, j = divmod(int(place), len(there))
            if shared[i, j] < iou:
                break
            if free_rows[i] and free_there[j]:
                free_rows[i] = free_there[j] = False
                table[labels[j], found[i]] += 1
        if crowd.any():
            free_rows &= overlap_of(rows[:, :4], one, np.flatnonzero(crowd)).max(1) < iou
        table[:classes, classes] += np.bincount(labels[free_there], minlength=classes)
        table[classes, :classes] += np.bincount(found[free_rows], minlength=classes)
    return table
