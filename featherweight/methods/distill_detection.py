# SPDX-License-Identifier: Apache-2.0
"""A larger detector teaches a smaller one: what it answers, cell by cell, and the maps its head reads.

Answers are learned where the teacher sees an object: its objectness everywhere, its boxes and classes in proportion to
it (Mehta & Ozturk 2018, 1805.06361), boxes by CIoU in pixels, so that the anchors may differ. Maps are compared by the
correlation of their channels (Cao 2022, PKD, 2207.02039), through a 1x1 convolution that is gone from the finished
model. Levels are matched by stride; both must have as many anchors and the same classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import OptionError
from ..modes import evaluating
from ..surgery import Aside
from ..tasks.detection.boxes import ciou, xyxy_of
from ..tasks.detection.decode import at_least_float32, boxes_at
from ..tasks.detection.detectors import detector_of
from ..tasks.detection.loss import Gains
from ..tasks.detection.task import Maps
from ..train import Method, Pass
from .listening import hear, with_listener, without

NAME = "distill_adapters"
SEEN = 0.02  # objectness from which on the teacher's box and classes are listened to


@dataclass(frozen=True)
class DistillDetection(Method):
    """Adds distill_obj, distill_box, distill_cls and distill_maps to the task's own terms.

    outputs, features: how much answers and maps count; 0 leaves them out, both 0 is plain training. gains: of the three
    terms of the answers, scaled as the task's.
    """

    teacher: nn.Module
    outputs: float = 1.0
    features: float = 0.1
    gains: Gains = field(default_factory=Gains)

    def __post_init__(self) -> None:
        detector_of(self.teacher)
        for name in ("outputs", "features"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise OptionError(name, f"{getattr(self, name)!r} is not a number of 0 or more")

    def prepare(self, model: nn.Module) -> nn.Module:
        """A copy with an adapter for each level that both have. OptionError for a teacher that does not fit."""
        heads: list[Any] = [detector_of(m).head for m in (model, self.teacher)]
        mine, theirs = heads
        _check(mine, theirs)
        if not self.features:
            return model
        levels = _levels(mine.strides, theirs.strides)
        widths = [_widths(m) for m in (model, self.teacher)]
        adapters = Adapters([widths[0][s] for s, _ in levels], [widths[1][t] for _, t in levels], levels)
        new = with_listener(model, NAME, adapters)
        hear(detector_of(new).head, adapters.keep, inputs=True)
        return new

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        if not (self.outputs or self.features):
            return terms
        heard: list[Sequence[Tensor]] = []
        hook = detector_of(self.teacher).head.register_forward_pre_hook(lambda _module, args: heard.append(args[0]))
        try:
            taught: Maps = run.call(self.teacher)
        finally:
            hook.remove()
        found = dict(terms)
        if self.outputs:
            found |= self._answers(run.output, taught)
        if self.features:
            adapters: Adapters = getattr(detector_of(run.model), NAME)
            found["distill_maps"] = self.features * adapters(heard[-1])
        return found

    def finish(self, model: nn.Module) -> nn.Module:
        return without(model, NAME) if hasattr(model, NAME) else model

    def _answers(self, mine: Maps, theirs: Maps) -> dict[str, Tensor]:
        """Objectness everywhere; boxes and classes weighted by the teacher's objectness."""
        levels = _levels(mine.strides, theirs.strides)
        height, width = mine.size
        size = (height * width) ** 0.5
        gains = self.gains.scaled(levels=len(levels), classes=mine.num_classes, size=size)
        parts = [_level(mine, theirs, *level) for level in levels]
        obj = torch.stack([weight * p[0] for weight, p in zip(gains.balance_of(len(parts)), parts, strict=True)]).sum()
        box, cls = (torch.stack([part[n] for part in parts]).sum() for n in (1, 2))
        found = {"distill_obj": gains.obj * obj, "distill_box": gains.box * box, "distill_cls": gains.cls * cls}
        return {name: self.outputs * term for name, term in found.items()}


class Adapters(nn.Module):
    """1x1 convolutions from the student's maps to the teacher's widths, and how little they correlate."""

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], levels: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 1) for i, o in zip(inputs, outputs, strict=True))
        self.aside = Aside()

    def keep(self, module: nn.Module, args: Any) -> None:
        """Remember what the student's head reads."""
        if self.training:
            self.aside.maps = args[0]

    def forward(self, taught: Sequence[Tensor]) -> Tensor:
        """The teacher's maps -> mean squared difference to the student's, each channel normed."""
        mine = self.aside.take("maps")
        found = []
        for conv, (own, other) in zip(self.convs, self.levels, strict=True):
            difference = _normed(conv(mine[own])) - _normed(taught[other])
            found.append(difference.square().mean() / 2)
        return torch.stack(found).mean()


def _normed(x: Tensor) -> Tensor:
    """(B, C, H, W) -> mean 0, deviation 1 in each channel."""
    x = at_least_float32(x)
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
    return (x - mean) * torch.rsqrt(variance + 1e-6)


def _level(mine: Maps, theirs: Maps, own: int, other: int) -> tuple[Tensor, Tensor, Tensor]:
    """Objectness, boxes, classes of one level of both."""
    said, taught = at_least_float32(mine[own]), at_least_float32(theirs[other]).detach()
    objectness = taught[..., 4].sigmoid()
    obj = F.binary_cross_entropy_with_logits(said[..., 4], objectness)
    image, anchor, row, column = (objectness > SEEN).nonzero(as_tuple=True)
    if not len(image):
        return obj, obj.new_zeros(()), obj.new_zeros(())
    weight = objectness[image, anchor, row, column]
    weight = weight / weight.sum()
    cells, boxes = torch.stack((column, row), dim=-1), []
    for raw, maps, level in ((said, mine, own), (taught, theirs, other)):
        anchors = maps.anchors[level].to(raw)[anchor]
        boxes.append(xyxy_of(boxes_at(raw[image, anchor, row, column, :4], anchors, cells, 1)))
    box = (weight * (1 - ciou(boxes[0], boxes[1]))).sum()
    logits, wanted = (raw[image, anchor, row, column, 5:] for raw in (said, taught))
    if logits.shape[1] == 1:
        return obj, box, obj.new_zeros(())
    each = F.binary_cross_entropy_with_logits(logits, wanted.sigmoid(), reduction="none").mean(1)
    return obj, box, (weight * each).sum()


def _levels(mine: Sequence[int], theirs: Sequence[int]) -> list[tuple[int, int]]:
    """(own level, teacher's level) of the strides that both have."""
    return [(own, list(theirs).index(stride)) for own, stride in enumerate(mine) if stride in theirs]


def _check(mine: Any, theirs: Any) -> None:
    if not _levels(mine.strides, theirs.strides):
        raise OptionError("teacher", f"has strides {theirs.strides}, the student {mine.strides}: none in common")
    for name, values in {
        "classes": (mine.num_classes, theirs.num_classes),
        "anchors a level": (mine.anchors.shape[1], theirs.anchors.shape[1]),
    }.items():
        if values[0] != values[1]:
            raise OptionError("teacher", f"has {values[1]} {name}, the student {values[0]}; both need the same")


def _widths(model: nn.Module) -> list[int]:
    """Channels of the maps that the model's head reads."""
    seen: list[list[int]] = []
    head: Any = detector_of(model).head
    hook = head.register_forward_pre_hook(lambda _module, args: seen.append([x.shape[1] for x in args[0]]))
    like, side = next(model.parameters()), max(head.strides)
    try:
        with torch.no_grad(), evaluating(model):
            model(torch.zeros(1, 3, side, side, device=like.device, dtype=like.dtype))
    finally:
        hook.remove()
    return seen[-1]
