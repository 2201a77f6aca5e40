# SPDX-License-Identifier: Apache-2.0
"""COCO's twelve numbers, whole and per class: one function, `evaluate`.

The matching is faster-coco-eval's (Apache-2.0), whose numbers equal those of pycocotools; what it is given, and what is
read out of it, is here. A value that does not exist (no object of that size) is -1, as COCO has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import Diverged, OptionError, missing_extra

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = ("all", "small", "medium", "large")
MOST = (1, 10, 100)  # detections of a picture and class
DECIMALS = 9  # of a width in pixels: x + w - x gives back the w that was read


class Truth(Protocol):
    """What lies in one picture: boxes (n, 4) xyxy, labels (n,), crowd (n,), areas (n,), as `data.objects.Objects`."""

    @property
    def boxes(self) -> NDArray[np.floating]: ...
    @property
    def labels(self) -> NDArray[np.integer]: ...
    @property
    def crowd(self) -> NDArray[np.bool_]: ...
    @property
    def areas(self) -> NDArray[np.floating]: ...


@dataclass(frozen=True, eq=False)
class Scores:
    """The result: `stats` has the twelve numbers by name, the arrays are those of COCO's evaluator.

    precision (10 IoUs, 101 recalls, K, 4 areas, 3 limits), recall (10, K, 4, 3); boxes (K,) without crowds,
    pictures (K,) with such a box.
    """

    stats: Mapping[str, float]
    classes: tuple[str, ...]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    boxes: NDArray[np.int64]
    pictures: NDArray[np.int64]

    def per_class(self) -> dict[str, dict[str, float]]:
        """AP, AP50, AP75, AR100 of each class, and how many pictures and boxes it has."""
        found: dict[str, dict[str, float]] = {}
        for k, name in enumerate(self.classes):
            found[_unique(name, found)] = {
                "AP": _mean(self.precision[:, :, k, 0, 2]),
                "AP50": _mean(self.precision[0, :, k, 0, 2]),
                "AP75": _mean(self.precision[5, :, k, 0, 2]),
                "AR100": _mean(self.recall[:, k, 0, 2]),
                "images": int(self.pictures[k]),
                "boxes": int(self.boxes[k]),
            }
        return found

    def text(self) -> str:
        """The twelve lines as COCO's tools print them."""
        rows = [("AP", "0.50:0.95", "all", 100), ("AP", "0.50", "all", 100), ("AP", "0.75", "all", 100)]
        rows += [("AP", "0.50:0.95", area, 100) for area in AREAS[1:]]
        rows += [("AR", "0.50:0.95", "all", most) for most in MOST]
        rows += [("AR", "0.50:0.95", area, 100) for area in AREAS[1:]]
        title = {"AP": "Average Precision", "AR": "Average Recall"}
        return "\n".join(
            f" {title[kind]:<18} ({kind}) @[ IoU={iou:<9} | area={area:>6} | maxDets={most:>3} ] = {value:0.3f}"
            for (kind, iou, area, most), value in zip(rows, self.stats.values(), strict=True)
        )


def evaluate(
    truth: Sequence[Truth], detections: Sequence[NDArray[np.floating]], *, classes: Sequence[str] | int
) -> Scores:
    """What lies in each picture against its detections (n, 6) [x1, y1, x2, y2, score, class], in the picture's pixels.

    Order matters only between equal scores. classes: names, or how many.
    """
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
    _check(truth, detections, len(names))
    found = _evaluated(_dataset(truth, len(names)), _results(detections), len(truth))
    precision, recall = np.asarray(found["precision"], np.float64), np.asarray(found["recall"], np.float64)
    labels = [np.asarray(one.labels)[~np.asarray(one.crowd, bool)] for one in truth]
    boxes = sum((np.bincount(some, minlength=len(names)) for some in labels), np.zeros(len(names), np.int64))
    pictures = sum((np.bincount(np.unique(some), minlength=len(names)) for some in labels), np.zeros_like(boxes))
    return Scores(_stats(precision, recall), names, precision, recall, boxes, pictures)


def _stats(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> dict[str, float]:
    values = [_mean(precision[:, :, :, 0, 2]), _mean(precision[0, :, :, 0, 2]), _mean(precision[5, :, :, 0, 2])]
    values += [_mean(precision[:, :, :, area, 2]) for area in (1, 2, 3)]
    values += [_mean(recall[:, :, 0, most]) for most in (0, 1, 2)]
    values += [_mean(recall[:, :, area, 2]) for area in (1, 2, 3)]
    return dict(zip(NAMES, values, strict=True))


def _mean(values: NDArray[np.float64]) -> float:
    """Over what exists; -1 if nothing does."""
    there = values[values > -1]
    return float(there.mean()) if there.size else -1.0


def _unique(name: str, taken: Mapping[str, Any]) -> str:
    """Two classes of one name keep a row each."""
    number = 2
    found = name
    while found in taken:
        found, number = f"{name} ({number})", number + 1
    return found


def _check(truth: Sequence[Truth], detections: Sequence[NDArray[np.floating]], classes: int) -> None:
    if len(truth) != len(detections):
        raise OptionError("detections", f"are of {len(detections)} pictures, the truth is of {len(truth)}")
    if not truth:
        raise OptionError("data", "nothing to evaluate on: there are no pictures")
    for i, (one, rows) in enumerate(zip(truth, detections, strict=True)):
        if rows.ndim != 2 or rows.shape[1] != 6:
            raise OptionError("detections", f"of picture {i} must be (n, 6), not {rows.shape}")
        if not np.isfinite(rows).all():
            raise Diverged(f"evaluation: a detection of picture {i} is not finite")
        labels = np.concatenate([np.asarray(one.labels, np.float64), rows[:, 5]])
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise OptionError("classes", f"there are {classes}, but picture {i} has class {labels.max():g}")


def _dataset(truth: Sequence[Truth], classes: int) -> dict[str, Any]:
    """Truth as the evaluator's library takes it: plain dictionaries."""
    annotations: list[dict[str, Any]] = []
    for i, one in enumerate(truth):
        columns = (_xywh(one.boxes), one.labels, one.crowd, one.areas)
        for box, label, crowd, area in zip(*(np.asarray(column).tolist() for column in columns), strict=True):
            annotations.append({
                "id": len(annotations) + 1, "image_id": i + 1, "category_id": label + 1, "bbox": box, "area": area,
                "iscrowd": int(crowd), "ignore": int(crowd),
            })  # fmt: skip
    return {
        "images": [{"id": i + 1} for i in range(len(truth))],
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": str(k)} for k in range(classes)],
    }


def _results(detections: Sequence[NDArray[np.floating]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for i, rows in enumerate(detections):
        boxes = _xywh(rows[:, :4])
        for box, score, label in zip(boxes.tolist(), rows[:, 4].tolist(), rows[:, 5].tolist(), strict=True):
            found.append({
                "id": len(found) + 1, "image_id": i + 1, "category_id": int(label) + 1, "bbox": box, "score": score,
                "area": box[2] * box[3], "iscrowd": 0,
            })  # fmt: skip
    return found


def _xywh(boxes: NDArray[np.floating]) -> NDArray[np.float64]:
    found = np.array(boxes, np.float64).reshape(-1, 4)
    found[:, 2:] = np.round(found[:, 2:] - found[:, :2], DECIMALS)
    return found


def _evaluated(dataset: dict[str, Any], results: list[dict[str, Any]], pictures: int) -> dict[str, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise missing_extra("COCO evaluation", "faster-coco-eval", "detection") from error
    theirs = COCO(dataset)
    ours = COCO({**dataset, "annotations": results})
    evaluator = COCOeval_faster(theirs, ours, "bbox", print_function=lambda *_: None)
    evaluator.params.imgIds = list(range(1, pictures + 1))
    evaluator.evaluate()
    evaluator.accumulate()
    return dict(evaluator.eval)
