# SPDX-License-Identifier: Apache-2.0
"""The detection side of a run: what a recipe says of it, the published settings, its data, task, batches, schedule.

A recipe with `task: object-detection` begins with what the authors of YOLOv7 trained its kind of model with (fact
sheet, section 7); what it says itself stands above that, and config.yaml shows all of it.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import nn

from . import artifact
from .binding import Ratio, Within
from .data import anchors
from .data import detection as detection_data
from .data.detection_augment import DetectionAugment
from .data.detection_batches import DetectionBatches
from .data.scenes import Scenery
from .errors import OptionError
from .models import zoo
from .runtime.nms import Nms
from .runtime.record import RECORD, Record
from .schedules import Ramp, by_epoch, nominal_decay
from .tasks.detection import Detection
from .tasks.detection.detectors import detector_of
from .tasks.detection.loss import Gains
from .tasks.detection.published import PUBLISHED, kind_of

if TYPE_CHECKING:
    from .recipe import ModelSpec, Recipe, Train
    from .work import Work

TASK = "object-detection"
STEPS = (
    "teacher", "baseline", "load", "train", "distill_detection", "aux_heads", "fuse", "quantize", "evaluate", "export",
    "measure", "report",
)  # fmt: skip
Gain = Annotated[float, Within(0.0, 1e6)]


@dataclass(frozen=True)
class Detecting:
    """Options of detection beside those of training."""

    assign: Literal["lead", "plain"] = "lead"  # which cells learn: those the detector itself finds best, or all near by
    reachable: bool = False  # a cell learns only boxes it can make; off, as in the official code, also others
    box: Gain = 0.05  # gains, meant for 640 pixels, 80 classes and three levels, and scaled
    obj: Gain = 0.7
    cls: Gain = 0.3
    focal_gamma: Gain = 0.0
    anchor_ratio: Annotated[float, Within(1.0, 1e6)] = 4.0
    aux_weight: Gain = 0.25
    anchors: Literal["auto", "keep"] = "auto"  # auto: new ones where the model's do not fit the boxes of the data
    multi_scale: Annotated[float, Within(0.0, 0.9)] = 0.0  # training pictures of 1 - x .. 1 + x times the size
    rectangular: bool = True  # evaluation in batches of like shapes, padded as little as possible
    in_memory: bool = False  # keep pictures decoded and resized
    iou: Ratio = 0.65  # of non-maximum suppression in evaluation
    confidence: Ratio = 0.001


def with_published(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's mapping over the published settings for its model."""
    kind = _kind(raw.get("model"))
    known = PUBLISHED[kind]
    train: dict[str, Any] = {
        "epochs": 300, "batch_size": 16, "optimizer": "sgd", "lr": 0.01, "momentum": 0.937, "nesterov": True,
        "weight_decay": 5e-4, "decay": "yolo", "schedule": "yolo", "min_ratio": known.final_lr, "clip": None,
        "nominal_batch": 64, "ema": 0.9999, "ema_updates": 2000, "augment": {"preset": kind},
        "channels_last": True,
    }  # fmt: skip
    gains = {name: getattr(known.gains, name) for name in ("box", "obj", "cls")}
    found = dict(raw)
    for key, published in (("train", train), ("detection", gains)):
        given = raw.get(key) or {}
        found[key] = {**published, **given} if isinstance(given, Mapping) else given
    return found


def task_of_model(name: str) -> str:
    """What a model of the table, of timm's or a folder of ours is for; "" where only its maker knows."""
    if (line := zoo.find(name)) is not None:
        return line.task
    if name.startswith("timm:"):
        return "image-classification"
    path = Path(name) / RECORD
    return Record.from_text(path.read_text(), path).task if path.is_file() else ""


def _kind(model: Any) -> str:
    """Which published settings a model of this name or folder takes."""
    name = model.get("name") if isinstance(model, Mapping) else model
    if not isinstance(name, str):
        return "p5"
    config: Mapping[str, Any] = {}
    if (line := zoo.find(name)) is not None:
        config = line.config
    elif (Path(name) / RECORD).is_file():
        config = (Record.from_text((Path(name) / RECORD).read_text(), Path(name) / RECORD).base or {}).get("config", {})
    own = model.get("config", {}) if isinstance(model, Mapping) else {}
    variant = str({**config, **(own if isinstance(own, Mapping) else {})}.get("variant", ""))
    return kind_of(4 if variant.endswith(("6", "6e")) else 3, tiny="tiny" in variant)


def load(plan: Recipe) -> Scenery:
    """The data set of a recipe."""
    spec = plan.data
    if spec is None:
        raise OptionError("data", "the recipe names none: add `data: digits-det`, a folder, a data.yaml or a COCO file")
    options = dict(spec.options)
    if spec.source in detection_data.BUILT_IN:
        return detection_data.load(spec.source, seed=spec.seed, **options)
    return detection_data.load(spec.source, **{"max_bad": spec.max_bad, **options})


def task_of(plan: Recipe, data: Scenery) -> Detection:
    """How the detectors of a recipe are called, trained and read."""
    own = plan.detection
    gains = Gains(own.box, own.obj, own.cls, plan.train.label_smoothing, own.focal_gamma)
    known: dict[str, Any] = {"anchor_ratio": own.anchor_ratio, "aux_weight": own.aux_weight, "reachable": own.reachable}
    return Detection(
        data.classes,
        gains=gains,
        assign=own.assign,
        nms=Nms.validation(iou=own.iou, confidence=own.confidence),
        **known,
    )


def sized(work: Work) -> Detection:
    """The task with gains for the size of training, whatever size a batch is drawn at."""
    found = copy.copy(work.task)
    height, width = work.preprocess.size
    found.image_size = math.sqrt(height * width)
    return found  # type: ignore[no-any-return]


def batches_of(
    work: Work, part: str, *, limit: int | None = None, augment: Any = None, size: int | None = None
) -> DetectionBatches:
    """Batches of a part of the data: the training part shuffled and, where asked, augmented."""
    scenes, plan = getattr(work.data, part), work.recipe
    if scenes is None:
        raise OptionError("data", f"has no {part} part, which this step needs")
    training = part == "train"
    stride = max(detector_of(work.model).head.strides) if work.model is not None else _stride(plan.model)
    return DetectionBatches(
        scenes,
        size=work.preprocess.size,
        batch_size=size or plan.train.batch_size,
        seed=plan.seed,
        shuffle=training,
        augment=augment or None,
        limit=limit,
        workers=plan.train.workers,
        stride=stride,
        rectangular=plan.detection.rectangular and not training,
        multi_scale=plan.detection.multi_scale if training and augment else 0.0,
        in_memory=plan.detection.in_memory,
    )


def _stride(spec: ModelSpec | None) -> int:
    """The largest stride of a model by its name."""
    return 64 if spec is not None and _kind({"name": spec.name, "config": spec.config}) == "p6" else 32


def augmentation(plan: Train) -> DetectionAugment | None:
    """The recipe's augmentation."""
    return DetectionAugment.of(plan.augment) if plan.augment else None


def with_anchors(work: Work, model: nn.Module) -> nn.Module:
    """A copy whose anchors fit the boxes of the training part, where the model's do not; it is told."""
    head = detector_of(model).head
    if work.recipe.detection.anchors == "keep" or not hasattr(head, "set_anchors"):
        return model
    sides = anchors.sides_of(work.data.train, work.preprocess.size)
    pixels = (head.anchors * head.anchors.new_tensor(head.strides)[:, None, None]).double().cpu().numpy()
    own = anchors.fit_of(sides, pixels.reshape(-1, 2), threshold=work.recipe.detection.anchor_ratio)
    said = f"{100 * own.best_possible_recall:.1f} % of the boxes have a usable anchor"
    if own.enough:
        work.tell({"event": "note", "text": f"anchors: {said}; kept"})
        return model
    try:
        known: dict[str, Any] = {"threshold": work.recipe.detection.anchor_ratio, "seed": work.recipe.seed}
        found = anchors.fitted(sides, pixels.shape[0] * pixels.shape[1], **known)
    except OptionError as error:
        work.tell({"event": "note", "text": f"anchors: {said}; kept, because {error.text}"})
        return model
    new = anchors.fit_of(sides, found, threshold=work.recipe.detection.anchor_ratio)
    if new.best_possible_recall <= own.best_possible_recall:
        work.tell({"event": "note", "text": f"anchors: {said}; none better were found"})
        return model
    text = f"anchors: {said}, {100 * new.best_possible_recall:.1f} % with new ones, which are used"
    work.tell({"event": "note", "text": text})
    changed = copy.deepcopy(model)
    detector_of(changed).head.set_anchors(torch.from_numpy(anchors.levels(found, len(pixels))).float())
    return changed


def schedule_of(plan: Train, steps: int, world: int) -> Any:
    """The schedule of YOLO's recipes for so many steps an epoch."""
    return by_epoch(
        epochs=plan.epochs,
        steps_per_epoch=steps,
        batch_size=plan.batch_size * world,
        lr=plan.lr,
        nominal_batch=plan.nominal_batch or plan.batch_size * world,
        final=plan.min_ratio,
        linear=plan.schedule == "yolo_linear",
        momentum=plan.momentum,
        warmup_epochs=plan.warmup_epochs,
        warmup_steps=plan.warmup_steps,
        warmup_share=plan.warmup_share,
        warmup_bias_lr=plan.warmup_bias_lr,
        warmup_momentum=plan.warmup_momentum,
    )


def decay_of(plan: Train, world: int) -> float:
    """The weight decay for the batch that is really made."""
    if plan.nominal_batch is None:
        return plan.weight_decay
    return nominal_decay(plan.weight_decay, batch_size=plan.batch_size * world, nominal_batch=plan.nominal_batch)


def average_of(plan: Train) -> float | Ramp | None:
    """The moving average of the weights."""
    return plan.ema if plan.ema is None or plan.ema_updates is None else Ramp(plan.ema, plan.ema_updates)


def frozen(model: nn.Module, layers: int) -> dict[str, float]:
    """Name patterns of the first layers of a detector, which are not trained at all."""
    from .optim import FOR_EVER

    count = len(getattr(model, "model", ()))
    if layers >= max(count, 1):
        raise OptionError("train.freeze", f"{layers} layers leave nothing to train: there are {count}")
    names = {name.rsplit(".", 1)[0] for name, _ in model.named_parameters()}
    wanted = {f"model.{n}" for n in range(layers)}
    return {f"{start}.*": FOR_EVER for start in wanted if any(f"{name}.".startswith(f"{start}.") for name in names)}


def classes_of(model: nn.Module) -> int:
    """How many classes a detector knows."""
    return int(detector_of(model).head.num_classes)


def with_form(spec: ModelSpec) -> ModelSpec:
    """A model of the table is trained in its training form."""
    line = zoo.find(spec.name)
    if line is None or line.family != "yolov7" or artifact.is_artifact(spec.name):
        return spec
    return dataclasses.replace(spec, config={"form": "training", **spec.config})
