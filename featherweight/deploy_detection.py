# SPDX-License-Identifier: Apache-2.0
"""A run's detectors as files, each compared with its model on validation pictures, and how good they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .data.objects import Objects
from .data.scenes import Scenes
from .detecting import TASK
from .export import detector, openvino
from .export.check import Exported, describe
from .runners import Runner, open_runner
from .runners_detection import predictions
from .runtime.nms import Nms
from .runtime.preprocess import Preprocess
from .scores import coco, errors, jackknife, matching
from .surgery import edits_of
from .work import Stage, Work

AT_ONCE = 8  # pictures
SHOWN = Nms()  # as detections are shown, not as they are counted


def spaced(scenes: Scenes, limit: int) -> Iterator[NDArray[np.uint8]]:
    """At most so many pictures of a part, evenly spaced."""
    count = min(limit, len(scenes))
    return (scenes.picture(i * len(scenes) // count) for i in range(count))


def prepared(pictures: Iterable[NDArray[np.uint8]], preprocess: Preprocess) -> Tensor:
    """Pictures as the deployed model gets them, (n, 3, H, W)."""
    return torch.from_numpy(np.stack([preprocess(picture) for picture in pictures]))


def described(model: nn.Module, classes: Sequence[str], preprocess: Preprocess) -> dict[str, str]:
    """What a detector's file says of itself."""
    kinds = [{"kind": kind} for kind in dict.fromkeys(edit.kind for edit in edits_of(model))]
    return describe(task=TASK, classes=classes, preprocess=preprocess, compression=kinds)


def write(work: Work, stage: Stage, path: Path, images: int, *, form: str = "decoded") -> Exported:
    """Export a stage's detector as .onnx; it must answer so many validation pictures as the model does."""
    work = work.at(stage)
    about = {**described(stage.model, work.data.classes, work.preprocess), "license": "Apache-2.0"}
    seen = prepared(spaced(work.data.val, images), work.preprocess)
    return detector.export(stage.model, path, seen, form=form, metadata=about)


def write_openvino(work: Work, stage: Stage, onnx_file: Path, path: Path, images: int, *, form: str) -> Exported:
    """The same file for OpenVINO."""
    seen = prepared(spaced(work.data.val, images), work.at(stage).preprocess)
    return openvino.export_detector(onnx_file, path, model=stage.model, images=seen, form=detector.Form(form))


def example(work: Work, stage: Stage) -> Tensor:
    """One picture of the validation part as the deployed model gets it, (1, 3, H, W)."""
    return prepared(spaced(work.data.val, 1), work.at(stage).preprocess)


def accuracy(work: Work, stage: Stage, part: str, models: Mapping[str, nn.Module | Path]) -> dict[str, Any]:
    """COCO's numbers of a stage in each runtime of `models`, and of the first more: by class, by picture, confusion.

    Pictures are letterboxed to the input's size as `pipeline` does it, so numbers may differ a little from those of
    `evaluate`, whose batches are rectangular.
    """
    scenes, classes = getattr(work.data, part), work.data.classes
    found: dict[str, Any] = {"accuracy": {}, "dtype": {}}
    for runtime, model in models.items():
        scores, rows, truth, runner = _scores(work.at(stage), scenes, model, runtime)
        outside = jackknife.left_out(truth, rows, classes=classes)
        if "left_out" not in found:
            found |= {"left_out": outside, "classes": scores.per_class(), **_found(truth, rows, len(classes))}
        figures = {name: scores.stats[name] for name in ("AP", "AP50", "AP75", "AR100")}
        interval = _interval(figures["AP"], jackknife.half_width(outside))
        found["accuracy"][runtime] = {**figures, "interval": interval, "n": len(rows)}
        found["dtype"][runtime] = runner.dtype
    return found


def evaluate_file(work: Work, path: Path, part: str, backend: str) -> dict[str, float]:
    """COCO's twelve numbers of an exported file on a part of the data."""
    return dict(_scores(work, getattr(work.data, part), path, backend)[0].stats)


def gain(row: Mapping[str, Any], before: Mapping[str, Any], runtime: str) -> str:
    """Points of AP over the step before; within noise where other pictures might have said the opposite."""
    new, old = (what["accuracy"][runtime]["AP"] for what in (row, before))
    pairs = zip(row["left_out"], before["left_out"], strict=True)
    noise = jackknife.half_width([a - b for a, b in pairs])
    words = ", within noise" if noise is not None and abs(new - old) <= noise else ""
    return f"{100 * (new - old):+.1f} points of AP over the step before{words}"


def objects(work: Work, stage: Stage, path: Path, which: Sequence[int], part: str) -> list[NDArray[np.float64]]:
    """What an exported file finds in some pictures of a part, as it would be shown: (n, 6) in pixels of each."""
    scenes, runner = getattr(work.data, part), open_runner(path, backend="onnxruntime")
    found = []
    for i in which:
        picture = scenes.picture(i)
        (rows,) = runner.detect(runner.preprocess(picture)[None], SHOWN)
        found.append(runner.preprocess.place(*picture.shape[:2]).detections(rows))
    return found


def _scores(
    work: Work, scenes: Scenes, model: nn.Module | Path, runtime: str
) -> tuple[coco.Scores, list[NDArray[np.float64]], list[Objects], Runner]:
    """A model or file evaluated: COCO's numbers, detections and truth of each picture, and who ran it."""
    known: dict[str, Any] = {"classes": work.data.classes, "preprocess": work.preprocess}
    runner = open_runner(model, **known) if isinstance(model, nn.Module) else open_runner(model, backend=runtime)
    rows, truth = predictions(runner, scenes, work.task.nms, batch_size=AT_ONCE)
    return coco.evaluate(truth, rows, classes=work.data.classes), rows, truth, runner


def _found(truth: Sequence[Objects], rows: Sequence[NDArray[np.float64]], classes: int) -> dict[str, Any]:
    """Who is taken for whom at the confidence that is shown, background last; objects found in each picture."""
    sure = [one[one[:, 4] > SHOWN.confidence] for one in rows]
    table = errors.confusion(truth, sure, classes=classes, confidence=SHOWN.confidence)
    pairs = matching.pair(truth, sure, classes=classes)
    right = np.bincount(pairs.picture[pairs.status == matching.RIGHT], minlength=len(truth))
    return {"confusion": table.tolist(), "right": right.tolist()}


def _interval(value: float, half: float | None) -> list[float] | None:
    return None if half is None else [max(0.0, value - half), min(1.0, value + half)]
