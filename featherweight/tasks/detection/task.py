# SPDX-License-Identifier: Apache-2.0
"""Object detection with anchors: how a detector is called, its loss, its boxes, how good they are.

A batch is {"image": (B, 3, H, W) in 0..1, "targets": (M, 6)}, rows [image, class, xc, yc, w, h], the last four as
fractions of the batch's picture. A detector answers with one raw map (B, A, H, W, 5 + K) per level, and has a `head`
with `anchors` (L, A, 2) in stride units and `strides`; in training it may put auxiliary maps aside, as `aside.aux`.
The model decides the loss: where there are auxiliary maps, they are trained coarse, the lead maps fine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featherweight.data.objects import Objects
from featherweight.errors import Diverged, OptionError, closest
from featherweight.modes import evaluating
from featherweight.runtime.letterbox import Placement
from featherweight.runtime.nms import Nms
from featherweight.scores import coco

from .assign import lead_guided
from .boxes import xyxy_of
from .candidates import Cells, candidates
from .decode import decode
from .detectors import detector_of
from .loss import Gains, terms

ASSIGNMENTS = ("lead", "plain")
FINE, COARSE = 0.5, 1.0  # reach of candidates
TOP, TOP_WITH_AUX = 10, 20  # best IoUs that count for dynamic k


class Maps(tuple[Tensor, ...]):
    """The raw maps of all levels, with what is needed to read them."""

    anchors: Tensor  # (L, A, 2) in units of the strides
    strides: tuple[int, ...]
    aux: tuple[Tensor, ...]  # raw maps of auxiliary heads, () without

    @classmethod
    def of(cls, maps: Iterable[Tensor], anchors: Tensor, strides: Iterable[int], aux: Iterable[Tensor] = ()) -> Maps:
        """Raises OptionError where the numbers of levels differ."""
        found = cls(maps)
        found.anchors, found.strides, found.aux = anchors, tuple(int(s) for s in strides), tuple(aux)
        counts = {len(found), len(anchors), len(found.strides), *([len(found.aux)] if found.aux else [])}
        if len(counts) != 1:
            text = f"{len(found)} maps, {len(found.aux)} auxiliary ones, anchors for {len(anchors)} levels"
            raise OptionError("anchors", f"{text}, {len(found.strides)} strides: these must be the same number")
        return found

    @property
    def num_classes(self) -> int:
        return int(self[0].shape[-1]) - 5

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return int(self[0].shape[2]) * self.strides[0], int(self[0].shape[3]) * self.strides[0]

    def decoded(self) -> Tensor:
        """(B, N, 5 + K): cxcywh in pixels, objectness, class probabilities."""
        return decode(self, self.anchors, self.strides)


class Detection:
    """How a detector is called, trained and read."""

    def __init__(
        self,
        classes: Sequence[str] | int = (),
        *,
        gains: Gains | None = None,
        assign: str = "lead",
        anchor_ratio: float = 4.0,
        aux_weight: float = 0.25,
        image_size: float | None = None,
        duplicates: bool = False,
        official_height: bool = False,
        reachable: bool = False,
        nms: Nms | None = None,
    ) -> None:
        """classes: their names, or how many. gains: as published for 640 pixels, 80 classes, 3 levels; they are scaled.

        assign: "lead", by what the detector predicts, or "plain", every candidate. anchor_ratio: the largest factor
        between the sides of a target and an anchor. aux_weight: of the auxiliary heads' terms. image_size: what gains
        are scaled by; each batch's own unless given. duplicates, official_height: as the official code (`assign`).
        reachable: cells that cannot make a target's box do not learn it. nms: of evaluation.
        """
        if assign not in ASSIGNMENTS:
            text = f"no {assign!r}; {closest(assign, ASSIGNMENTS)}Known: {', '.join(ASSIGNMENTS)}"
            raise OptionError("assign", text)
        for name, value, low in (("anchor_ratio", anchor_ratio, 1.0), ("aux_weight", aux_weight, 0.0)):
            if not low <= value < math.inf:
                raise OptionError(name, f"{value!r} is not a number of {low:g} or more")
        self.classes = tuple(str(i) for i in range(classes)) if isinstance(classes, int) else tuple(classes)
        self.gains, self.assign, self.anchor_ratio, self.aux_weight = gains or Gains(), assign, anchor_ratio, aux_weight
        self.image_size, self.duplicates, self.official_height = image_size, duplicates, official_height
        self.reachable, self.nms = reachable, nms or Nms.validation()

    @property
    def num_classes(self) -> int | None:
        """None when the task was made without classes."""
        return len(self.classes) or None

    def forward(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Maps:
        """The raw maps; in training with those of auxiliary heads. Pictures of uint8 are divided by 255."""
        inner = detector_of(model)
        head = inner.head
        image = batch["image"].to(head.anchors.device)
        maps = model(image if image.is_floating_point() else image.float() / 255)
        aside = getattr(inner, "aside", None)
        aux = aside.take("aux") if inner.training and aside is not None and "aux" in aside else ()
        return Maps.of(maps, head.anchors, head.strides, aux)

    def loss(self, output: Maps, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{"box", "obj", "cls"} and, with auxiliary heads, {"aux_box", "aux_obj", "aux_cls"}."""
        targets = batch["targets"].to(output[0].device)
        _check(targets, output)
        height, width = output.size
        size = self.image_size or math.sqrt(height * width)
        gains = self.gains.scaled(levels=len(output), classes=output.num_classes, size=size)
        top = TOP_WITH_AUX if output.aux else TOP
        fine = self.positives(output, targets, reach=FINE, top=top)
        found = terms(output, targets, fine, output.anchors, gains=gains)
        if output.aux:
            coarse = self.positives(output, targets, reach=COARSE, top=top)
            aux = terms(output.aux, targets, coarse, output.anchors, gains=gains)
            found |= {f"aux_{name}": self.aux_weight * term for name, term in aux.items()}
        return found

    def decode(self, output: Maps, *, nms: Nms | None = None) -> list[list[dict[str, Any]]]:
        """Per picture [{"label", "score", "box": xyxy in pixels of the input}, ...], best first."""
        found = (nms or Nms()).batch(output.decoded().detach().cpu().numpy())
        return [
            [{"label": self.label(int(row[5])), "score": float(row[4]), "box": row[:4].tolist()} for row in rows]
            for rows in found
        ]

    def label(self, number: int) -> str:
        """The name of a class."""
        return self.classes[number] if self.classes else str(number)

    def predictions(
        self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]], *, nms: Nms | None = None
    ) -> tuple[list[NDArray[np.float64]], list[Objects]]:
        """Of each picture, in its own pixels, the detections (n, 6) [x1, y1, x2, y2, score, class] and what lies in it.

        What lies there is that of the `scenes` of the batches, crowds and all, or else what the targets say. The
        model's training mode is put back. Diverged where a prediction is not finite.
        """
        wanted, scenes = nms or self.nms, getattr(batches, "scenes", None)
        found: list[NDArray[np.float64]] = []
        truth: list[Objects] = []
        with torch.inference_mode(), evaluating(model):
            for batch in batches:
                decoded = self.forward(model, batch).decoded()
                if not bool(torch.isfinite(decoded).all()):
                    raise Diverged("evaluation: predictions are not finite")
                rows = wanted.batch(decoded.cpu().numpy())
                for number, (placement, detections) in enumerate(zip(_placements(batch), rows, strict=True)):
                    found.append(placement.detections(detections))
                    own = batch["targets"][batch["targets"][:, 0] == number]
                    known = scenes.objects(int(batch["index"][number])) if scenes is not None else None
                    truth.append(known if known is not None else _objects(own, placement))
        if not found:
            raise OptionError("data", "nothing to evaluate on: there are no batches")
        return found, truth

    def scores(
        self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]], *, nms: Nms | None = None
    ) -> coco.Scores:
        """COCO's evaluation, whole and per class."""
        found, truth = self.predictions(model, batches, nms=nms)
        return coco.evaluate(truth, found, classes=self.classes or int(detector_of(model).head.num_classes))

    def evaluate(
        self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]], *, nms: Nms | None = None
    ) -> dict[str, Any]:
        """COCO's twelve numbers by name, AP first, as fractions of 1; -1 where nothing of that kind exists."""
        return dict(self.scores(model, batches, nms=nms).stats)

    def positives(self, output: Maps, targets: Tensor, *, reach: float = FINE, top: int = TOP) -> list[Cells]:
        """Which cells of each level are trained to find which target, by the lead maps."""
        shapes = [raw.shape[2:4] for raw in output]
        both: dict[str, Any] = {"duplicates": self.duplicates, "reachable": self.reachable}
        found = candidates(targets, output.anchors, shapes, reach=reach, ratio=self.anchor_ratio, **both)
        if self.assign == "plain":
            return found
        known: dict[str, Any] = {"top": top, "official_height": self.official_height, **both}
        return lead_guided(output, targets, found, output.anchors, output.strides, **known)


def _placements(batch: Mapping[str, Tensor]) -> list[Placement]:
    """Where each picture lies in the input; without "shape" the input is the picture."""
    net = batch["image"].shape[-2:]
    if "shape" not in batch:
        return [Placement((net[0], net[1]), (net[0], net[1]), (1.0, 1.0), (0.0, 0.0)) for _ in batch["image"]]
    pairs = zip(batch["shape"].cpu().numpy(), batch["size"].tolist(), strict=True)
    return [Placement.from_row(row, (size[0], size[1])) for row, size in pairs]


def _objects(targets: Tensor, placement: Placement) -> Objects:
    """Targets of one picture as objects in its own pixels."""
    sides = torch.tensor([placement.net[1], placement.net[0]] * 2)
    boxes = xyxy_of(targets[:, 2:6].cpu() * sides).numpy()
    return Objects.of(placement.back(boxes), targets[:, 1].cpu().numpy().astype(np.int64))


def _check(targets: Tensor, output: Maps) -> None:
    """OptionError for targets that are none of this batch or of no class that the detector knows."""
    if targets.ndim != 2 or targets.shape[1] != 6:
        raise OptionError("targets", f"must be rows [image, class, xc, yc, w, h], not of shape {tuple(targets.shape)}")
    if not len(targets):
        return
    low, high = (getattr(targets[:, :2], name)(0) for name in ("amin", "amax"))
    (image_low, class_low), (image, class_) = low.tolist(), high.tolist()
    if not (image_low >= 0 and image < len(output[0])):
        raise OptionError("targets", f"name images {image_low:g}..{image:g} of a batch of {len(output[0])}")
    if not (class_low >= 0 and class_ < output.num_classes):
        text = f"classes {class_low:g}..{class_:g}, the detector has {output.num_classes}: 0..{output.num_classes - 1}"
        raise OptionError("targets", f"have {text}")
