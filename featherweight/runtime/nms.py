# SPDX-License-Identifier: Apache-2.0
"""From a detector's predictions to its detections: candidates by score, then non-maximum suppression, in NumPy.

Greedy in the order of scores, per class unless `agnostic`, with plain comparisons of class numbers instead of shifted
boxes, in float64; equal scores keep the order of the predictions. So the same predictions give the same detections on
every machine, whatever the sizes of boxes and the number of classes, and no time limit drops a picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import InputError, OptionError

PREDICTIONS, DETECTIONS = "predictions", "detections"  # outputs of exported detectors, without and with suppression
THRESHOLDS = ("confidence", "iou")  # inputs of those with suppression, one number each
BLOCK = 256  # candidates compared with each other at a time


@dataclass(frozen=True)
class Nms:
    """Predictions (N, 5 + K) [xc, yc, w, h, objectness, classes] -> detections (n, 6) [x1, y1, x2, y2, score, class].

    The score is objectness times class; of a model with one class the objectness alone, since its class output is never
    trained. The defaults are those of inference; `Nms.validation()` has those of evaluation (fact sheet, 9).
    """

    confidence: float = 0.25  # a candidate's objectness and score are above it
    iou: float = 0.45  # what overlaps a kept box by more is dropped
    multi_label: bool = False  # a candidate for each class above `confidence`, not for the best one only
    agnostic: bool = False  # boxes of different classes suppress each other
    classes: tuple[int, ...] | None = None  # only these
    max_candidates: int = 30000  # the best scores go on to suppression
    max_kept: int = 300

    def __post_init__(self) -> None:
        for name in ("confidence", "iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"nms.{name}", f"must be 0..1, not {getattr(self, name)!r}")
        for name in ("max_candidates", "max_kept"):
            if getattr(self, name) < 1:
                raise OptionError(f"nms.{name}", f"must be 1 or more, not {getattr(self, name)!r}")

    @classmethod
    def validation(cls, *, iou: float = 0.65, confidence: float = 0.001) -> Nms:
        """As COCO numbers are made: every candidate counts, several classes for one box."""
        return cls(confidence, iou, multi_label=True)

    def __call__(self, predictions: NDArray[np.floating]) -> NDArray[np.float64]:
        """The detections of one picture, best first."""
        if predictions.ndim != 2 or predictions.shape[1] < 6:
            raise InputError("predictions", "bad_shape", f"must be (N, 5 + K), not {predictions.shape}")
        rows = predictions[predictions[:, 4] > self.confidence]  # NaN is above nothing
        rows = rows[np.isfinite(rows[:, :4]).all(1)]
        which, labels, scores = self._candidates(rows)
        order = _best(scores, self.max_candidates)
        which = which[order]
        center, half = rows[which, :2], rows[which, 2:4] / 2
        boxes = np.concatenate([center - half, center + half], axis=1)
        return self.suppress(boxes, scores[order], labels[order])

    def batch(self, predictions: Sequence[NDArray[np.floating]] | NDArray[np.floating]) -> list[NDArray[np.float64]]:
        """The same for each picture of a batch (B, N, 5 + K)."""
        return [self(one) for one in predictions]

    def suppress(
        self, boxes: NDArray[np.floating], scores: NDArray[np.floating], labels: NDArray[np.integer]
    ) -> NDArray[np.float64]:
        """Suppression alone: boxes (n, 4) xyxy, scores (n,), labels (n,) -> detections, best first."""
        order = _best(scores, self.max_candidates)
        boxes = np.asarray(boxes, np.float64)[order]
        groups = np.zeros(len(order), np.int64) if self.agnostic else np.asarray(labels, np.int64)[order]
        kept = greedy(boxes, groups, iou=self.iou, most=self.max_kept)
        columns = (np.asarray(scores, np.float64)[order[kept]], np.asarray(labels, np.float64)[order[kept]])
        return np.concatenate([boxes[kept], np.stack(columns, axis=1)], axis=1)

    def _candidates(
        self, rows: NDArray[np.floating]
    ) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.floating]]:
        """Row, class and score of what is worth looking at."""
        scores = rows[:, 4:5] if rows.shape[1] == 6 else rows[:, 5:] * rows[:, 4:5]
        if self.multi_label:
            which, labels = np.divmod(np.flatnonzero(scores > self.confidence), scores.shape[1])
        else:
            labels = scores.argmax(1)
            which = np.flatnonzero(scores[np.arange(len(rows)), labels] > self.confidence)
            labels = labels[which]
        if self.classes is not None:
            wanted = np.isin(labels, self.classes)
            which, labels = which[wanted], labels[wanted]
        return which, labels.astype(np.int64), scores[which, labels]


def by_image(rows: NDArray[np.floating], images: int) -> list[NDArray[np.float64]]:
    """A file's rows (n, 7) [image, x1, y1, x2, y2, class, score] -> detections (n, 6) of each image, score first."""
    return [rows[rows[:, 0] == image][:, [1, 2, 3, 4, 6, 5]].astype(np.float64) for image in range(images)]


def _best(scores: NDArray[np.floating], most: int) -> NDArray[np.intp]:
    """The indices of the highest scores, highest first; of equal ones the earlier."""
    if len(scores) > 4 * most:
        edge = np.partition(scores, len(scores) - most)[len(scores) - most]
        near = np.flatnonzero(scores >= edge)
        return near[np.argsort(-scores[near], kind="stable")[:most]]
    return np.argsort(-scores, kind="stable")[:most]


def thresholds(nms: Nms, inputs: Iterable[str]) -> dict[str, NDArray[np.float32]]:
    """What a file with suppression in its graph is told besides the pictures; {} for inputs that are none of these."""
    wanted = set(inputs)
    return {name: np.array([getattr(nms, name)], np.float32) for name in THRESHOLDS if name in wanted}


def greedy(boxes: NDArray[np.float64], groups: NDArray[np.int64], *, iou: float, most: int) -> NDArray[np.intp]:
    """Indices of the boxes (n, 4), best first, that no better kept box of their group overlaps by more than `iou`."""
    kept: NDArray[np.intp] = np.zeros(0, np.intp)
    for start in range(0, len(boxes), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(boxes)))
        if len(kept):
            block = block[~_covered(boxes, groups, block, kept, iou).any(1)]
        covers = _covered(boxes, groups, block, block, iou)
        free = np.ones(len(block), bool)
        for i in np.flatnonzero(covers.sum(1) > 1):  # the rest covers nothing but itself
            if free[i]:
                free[i + 1 :] &= ~covers[i, i + 1 :]
        kept = np.concatenate([kept, block[free]])
        if len(kept) >= most:
            break
    return kept[:most]


def _covered(
    boxes: NDArray[np.float64], groups: NDArray[np.int64], ones: NDArray[np.intp], others: NDArray[np.intp], iou: float
) -> NDArray[np.bool_]:
    """Which pairs (n, m) are of one group and overlap by more than `iou`."""
    covered: NDArray[np.bool_] = overlaps(boxes[ones], boxes[others]) > iou
    covered &= groups[ones][:, None] == groups[others]
    return covered


def overlaps(ones: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes xyxy (n, 4) and (m, 4): (n, m); 0 where a box has no area."""
    wide = np.minimum(ones[:, None, 2], others[:, 2]) - np.maximum(ones[:, None, 0], others[:, 0])
    high = np.minimum(ones[:, None, 3], others[:, 3]) - np.maximum(ones[:, None, 1], others[:, 1])
    shared = np.maximum(wide, 0) * np.maximum(high, 0)
    areas = [np.maximum(b[:, 2] - b[:, 0], 0) * np.maximum(b[:, 3] - b[:, 1], 0) for b in (ones, others)]
    total = areas[0][:, None] + areas[1] - shared
    return np.divide(shared, total, out=np.zeros_like(shared), where=total > 0)
