# SPDX-License-Identifier: Apache-2.0
"""How good a detector is on a detection set, in torch, ONNX Runtime or OpenVINO alike: COCO's twelve numbers."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import OptionError, shown
from featherweight.runners import Runner
from featherweight.runtime.nms import Nms

if TYPE_CHECKING:
    from featherweight.data.objects import Objects
    from featherweight.data.scenes import Scenery, Scenes

TASK = "object-detection"
MOST = 300  # detections of a picture that go to the evaluation, which looks at 100 of each class


def val(
    runner: Runner,
    data: str | os.PathLike[str] | Scenery,
    *,
    part: str = "val",
    batch_size: int = 32,
    limit: int | None = None,
    max_bad: float = 0.01,
    seed: int = 0,
    iou: float = 0.65,
    confidence: float = 0.001,
) -> dict[str, Any]:
    """COCO's numbers by name and as `text`, some of them `per_class`, n pictures, and how it was run.

    iou, confidence: of the suppression before the evaluation. OptionError where the data has classes that the model
    does not know.
    """
    from featherweight.data import detection
    from featherweight.scores import coco
    from featherweight.verbs.accuracy import class_places

    options: dict[str, Any] = {"seed": seed} if data in detection.BUILT_IN else {"max_bad": max_bad}
    found = detection.load(os.fspath(data), **options) if isinstance(data, (str, os.PathLike)) else data
    scenes: Scenes | None = getattr(found, part)
    if scenes is None:
        raise OptionError("part", f"{shown(found.name)} has no {part} part")
    names = runner.classes or found.classes
    places = class_places(names, found.classes)
    began = time.perf_counter()
    nms = Nms.validation(iou=iou, confidence=confidence)
    rows, truth = predictions(runner, scenes, replace(nms, max_kept=MOST), places, batch_size=batch_size, limit=limit)
    seconds = time.perf_counter() - began
    scores = coco.evaluate(truth, rows, classes=names)
    how = {"backend": runner.backend, "dtype": runner.dtype, "threads": runner.threads}
    how |= {"iou": iou, "confidence": confidence, "images_per_s": len(rows) / max(seconds, 1e-9)}
    told = {"data": found.name, "part": part, "n": len(rows), "text": scores.text(), "per_class": scores.per_class()}
    return {**told, **scores.stats, **how}


def predictions(
    runner: Runner,
    scenes: Scenes,
    nms: Nms,
    places: NDArray[np.int64],
    *,
    batch_size: int,
    limit: int | None = None,
) -> tuple[list[NDArray[np.float64]], list[Objects]]:
    """Of `limit` evenly spaced pictures the detections (n, 6) in their own pixels, and what lies in them."""
    count = min(len(scenes), limit or len(scenes))
    if not count:
        raise OptionError("data", "this part has no pictures")
    chosen = (np.arange(count) * len(scenes) // count).tolist()
    rows: list[NDArray[np.float64]] = []
    truth: list[Objects] = []
    for start in range(0, count, batch_size):
        some = chosen[start : start + batch_size]
        pictures = [scenes.picture(i) for i in some]
        detected = runner.detect(np.stack([runner.preprocess(picture) for picture in pictures]), nms)
        for i, picture, found in zip(some, pictures, detected, strict=True):
            rows.append(runner.preprocess.place(*picture.shape[:2]).detections(found))
            known = scenes.objects(i)
            truth.append(replace(known, labels=places[known.labels]))
    return rows, truth
