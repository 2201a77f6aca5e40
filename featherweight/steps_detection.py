# SPDX-License-Identifier: Apache-2.0
"""The steps that only detectors have; like those of `steps`."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from torch import nn

from . import detection_plots, outlines
from .beginning import start
from .binding import Within
from .composition import FLOATS, LOOKS, MODEL, NORM_LAYERS, NORMS, TEACHER, Effect, composes
from .errors import OptionError
from .fitting import trained
from .methods.aux_heads import AuxHeads
from .methods.distill_detection import DistillDetection
from .methods.fuse import fuse as merged
from .recipe import Count, Epochs, Rate
from .scores import coco
from .tasks.detection.detectors import detector_of
from .tasks.detection.loss import Gains
from .work import Work, current, finished_stage

Weight = Annotated[float, Within(0.0, 1e6)]


@composes(Effect())
def aux_heads(work: Work, *, at: Sequence[str] = ()) -> Work:
    """Auxiliary heads in every training that follows, at the modules named, or where the model says."""
    return dataclasses.replace(work, methods=(*work.methods, AuxHeads(tuple(at))))


@composes(Effect(needs={TEACHER: "", FLOATS: "training moves them"}, gives=(MODEL, NORMS)))
def distill_detection(
    work: Work,
    *,
    outputs: Weight = 1.0,
    features: Weight = 0.1,
    restart: bool = True,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """The detector taught by a larger one; with `restart` from where the first training began, with the same seed."""
    if work.teacher is None:
        raise OptionError("distill_detection", "there is no teacher yet: put a step `teacher` before it")
    gains = Gains(work.recipe.detection.box, work.recipe.detection.obj, work.recipe.detection.cls)
    method = DistillDetection(work.teacher, outputs=outputs, features=features, gains=gains)
    begin = work.origin if restart and work.origin is not None else work.model
    if begin is None:
        begin = _first(work)
    method.prepare(begin)  # a teacher that does not fit is said now
    stride = max(detector_of(work.teacher).head.strides)
    if any(side % stride for side in work.preprocess.size):
        text = f"{work.preprocess.size} is no multiple of the teacher's largest stride, {stride}"
        raise OptionError("image_size", text)
    model = work.once("model", lambda: trained(work, begin, (*work.methods, method), epochs, images, lr))
    after = dataclasses.replace(work, origin=work.origin or begin, methods=(*work.methods, method))
    return finished_stage(after, "distillation", model)


FOLDS = {NORM_LAYERS: "they are folded into the convolutions"}


@composes(
    Effect(needs={MODEL: "", FLOATS: "", NORMS: "they are folded into the convolutions"}, breaks=FOLDS),
    marks={"merge_parts": Effect(breaks=FOLDS)},
    outline=outlines.fused,
)
def fuse(work: Work) -> Work:
    """The form for deployment: what training made of several parts becomes one, compared with the model."""
    before = current(work)
    return finished_stage(work, "fused", work.once("model", lambda: merged(copy.deepcopy(before).eval())))


@composes(LOOKS)
def evaluate(work: Work, *, part: Literal["val", "test"] = "val", images: Count | None = None) -> Work:
    """COCO's twelve numbers of the model, whole and by class, as evaluation.json; curves and errors in figures/."""
    model = current(work)
    seen = work.batches(part, limit=images)

    def measured() -> dict[str, Any]:
        found, truth = work.task.predictions(copy.deepcopy(model).eval(), seen)
        scores = coco.evaluate(truth, found, classes=work.task.classes)
        detection_plots.write(truth, found, work.place / "figures", classes=work.task.classes)
        counts = {"part": part, "images": seen.samples_per_epoch, "size": list(work.preprocess.size)}
        nms = {"iou": work.task.nms.iou, "confidence": work.task.nms.confidence}
        return {**counts, "nms": nms, "stats": dict(scores.stats), "classes": scores.per_class()}

    found = work.once_data("evaluation", measured)
    stats = found["stats"]
    work.tell({"event": "evaluation", "step_name": work.step, **found})
    text = f"{part}: AP {100 * stats['AP']:.1f}, AP50 {100 * stats['AP50']:.1f}, AP75 {100 * stats['AP75']:.1f}"
    work.tell({"event": "note", "text": f"{text}, AR100 {100 * stats['AR100']:.1f} on {found['images']} images"})
    return dataclasses.replace(work, results={**work.results, "evaluation": found})


def _first(work: Work) -> nn.Module:
    if work.recipe.model is None:
        raise OptionError("model", "the recipe names none; add `model: yolov7_tiny`")
    return start(work.recipe.model, work)
