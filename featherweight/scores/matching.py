# SPDX-License-Identifier: Apache-2.0
"""Which detection stands for which object, at one threshold: the pairing behind curves, confusion and kinds of errors.

As COCO does it: by score, each detection takes the best still free object of its class; a crowd takes any number and
makes them not count. The twelve numbers are not made here but in `coco`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featherweight.runtime.nms import overlaps
from featherweight.scores.coco import Truth

RIGHT, WRONG, IGNORED = 1, 0, -1
MOST = 100  # detections of a picture and class


@dataclass(frozen=True, eq=False)
class Pairs:
    """All detections of a set, best first within a picture: picture, score and class of each, whether it is RIGHT,
    WRONG or IGNORED, and the object of its picture it stands for (-1: none). `objects` (K,) counts what is to find."""

    picture: NDArray[np.int64]
    score: NDArray[np.float64]
    label: NDArray[np.int64]
    status: NDArray[np.int64]
    stands_for: NDArray[np.int64]
    objects: NDArray[np.int64]


def pair(
    truth: Sequence[Truth], detections: Sequence[NDArray[np.floating]], *, classes: int, iou: float = 0.5
) -> Pairs:
    """Pair the detections (n, 6) of each picture with what lies in it."""
    columns: list[list[NDArray[np.generic]]] = [[], [], [], [], []]
    objects = np.zeros(classes, np.int64)
    for i, (one, rows) in enumerate(zip(truth, detections, strict=True)):
        rows = rows[np.argsort(-rows[:, 4], kind="stable")]
        labels = np.asarray(one.labels)
        objects += np.bincount(labels[~np.asarray(one.crowd, bool)], minlength=classes)
        status, taken = np.full(len(rows), WRONG, np.int64), np.full(len(rows), -1, np.int64)
        for label in np.unique(rows[:, 5]):
            mine = np.flatnonzero(rows[:, 5] == label)
            status[mine[MOST:]] = IGNORED
            there = np.flatnonzero(labels == label)
            if len(there):
                _take(one, rows, mine[:MOST], there, iou, status, taken)
        for column, values in zip(
            columns, (np.full(len(rows), i), rows[:, 4], rows[:, 5].astype(np.int64), status, taken), strict=True
        ):
            column.append(values)
    picture, score, label, status, taken = (np.concatenate(column) for column in columns)
    return Pairs(picture.astype(np.int64), score.astype(np.float64), label, status, taken, objects)


def _take(
    one: Truth,
    rows: NDArray[np.floating],
    mine: NDArray[np.intp],
    there: NDArray[np.intp],
    iou: float,
    status: NDArray[np.int64],
    taken: NDArray[np.int64],
) -> None:
    """Detections `mine`, best first, of one class against the objects `there` of that class."""
    shared = overlap_of(rows[mine, :4], one, there)
    crowd = np.asarray(one.crowd, bool)[there]
    free = np.ones(len(there), bool)
    for place, i in enumerate(mine.tolist()):
        usable = np.where(free & ~crowd, shared[place], -1.0)
        best = len(usable) - 1 - int(usable[::-1].argmax())  # of equal ones the last, as COCO's loop ends
        if usable[best] >= iou:
            status[i], taken[i], free[best] = RIGHT, there[best], False
        elif crowd.any() and shared[place][crowd].max() >= iou:
            status[i] = IGNORED


def overlap_of(boxes: NDArray[np.floating], one: Truth, there: NDArray[np.intp]) -> NDArray[np.float64]:
    """Overlap (n, m) of detections with objects `there`; with a crowd it is the share of the detection inside."""
    found, objects = np.asarray(boxes, np.float64), np.asarray(one.boxes, np.float64)[there]
    shared = overlaps(found, objects)
    for j in np.flatnonzero(np.asarray(one.crowd, bool)[there]):
        wide = np.minimum(found[:, 2], objects[j, 2]) - np.maximum(found[:, 0], objects[j, 0])
        high = np.minimum(found[:, 3], objects[j, 3]) - np.maximum(found[:, 1], objects[j, 1])
        areas = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
        shared[:, j] = np.maximum(wide, 0) * np.maximum(high, 0) / np.maximum(areas, 1e-12)
    return shared
