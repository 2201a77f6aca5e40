# SPDX-License-Identifier: Apache-2.0
"""How good a detector is on a detection set, in torch, ONNX Runtime or OpenVINO alike: COCO's twelve numbers."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featherweight.errors import OptionError, shown
from featherweight.runners import Runner
from featherweight.runners_detection import predictions
from featherweight.runtime.nms import Nms

if TYPE_CHECKING:
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
    wanted = replace(nms, max_kept=MOST)
    rows, truth = predictions(runner, scenes, wanted, batch_size=batch_size, limit=limit, places=places)
    seconds = time.perf_counter() - began
    scores = coco.evaluate(truth, rows, classes=names)
    how = {"backend": runner.backend, "dtype": runner.dtype, "threads": runner.threads}
    how |= {"iou": iou, "confidence": confidence, "images_per_s": len(rows) / max(seconds, 1e-9)}
    told = {"data": found.name, "part": part, "n": len(rows), "text": scores.text(), "per_class": scores.per_class()}
    return {**told, **scores.stats, **how}
