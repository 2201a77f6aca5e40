# SPDX-License-Identifier: Apache-2.0
"""The YOLOv7 loss of one set of maps and its positives: CIoU of boxes, objectness of all cells, classes of positives.

Everything is computed in float32 or finer. Each term is a mean, times its gain (fact sheet, section 6). Not here: which
cells are positive (`candidates`, `assign`), the sum of a batch (`fit` with `reduction="sum"`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from featherweight.errors import OptionError

from .boxes import ciou, xyxy_of
from .candidates import Cells
from .decode import at_least_float32, local_boxes

BALANCE = {3: (4.0, 1.0, 0.4)}  # of the objectness of the levels; other numbers of levels share one list
BALANCE_OTHERS = (4.0, 1.0, 0.25, 0.06, 0.02)
FOCAL_ALPHA = 0.25
NUMBERS = ("box", "obj", "cls", "focal_gamma", "cls_weight", "obj_weight")


@dataclass(frozen=True)
class Gains:
    """How much each term counts, and the options of the terms."""

    box: float = 0.05
    obj: float = 0.7
    cls: float = 0.3
    label_smoothing: float = 0.0  # share of the class target that is spread
    focal_gamma: float = 0.0  # of a focal loss in the place of cross-entropy (Lin 2017, 1708.02002); 0: none
    cls_weight: float = 1.0  # of positive class targets
    obj_weight: float = 1.0  # of positive objectness targets
    overlap_share: float = 1.0  # how much of a positive's objectness is its CIoU, the rest is 1
    balance: tuple[float, ...] = ()  # of the levels' objectness; the published ones unless given

    def __post_init__(self) -> None:
        numbers = {"balance": min(self.balance, default=0.0), **{name: getattr(self, name) for name in NUMBERS}}
        for name, value in numbers.items():
            if not 0 <= value < float("inf"):
                raise OptionError(f"loss.{name}", f"{value!r} is not a number of 0 or more")
        for name in ("label_smoothing", "overlap_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"loss.{name}", f"{getattr(self, name)!r} is not in 0..1")

    def scaled(self, *, levels: int, classes: int, size: float) -> Gains:
        """For so many levels and classes and square inputs of `size` pixels; the gains are meant for 3, 80 and 640."""
        share = 3 / levels
        changed = {"box": self.box * share, "cls": self.cls * classes / 80 * share}
        return Gains(**{**vars(self), **changed, "obj": self.obj * (size / 640) ** 2 * share})

    def balance_of(self, levels: int) -> tuple[float, ...]:
        """One number per level."""
        found = self.balance or BALANCE.get(levels, BALANCE_OTHERS[:levels])
        if len(found) < levels:
            raise OptionError("loss.balance", f"has {len(found)} numbers for {levels} levels")
        return found[:levels]


def terms(
    maps: Sequence[Tensor], targets: Tensor, positives: Sequence[Cells], anchors: Tensor, *, gains: Gains
) -> dict[str, Tensor]:
    """{"box", "obj", "cls"} of maps (B, A, H, W, 5 + K), targets (M, 6), positives per level, anchors in strides."""
    zero = at_least_float32(maps[0].new_zeros(()))
    box, obj, cls = zero, zero, zero
    for raw, cells, own, weight in zip(maps, positives, anchors, gains.balance_of(len(maps)), strict=True):
        objectness = at_least_float32(raw[..., 4])  # (B, A, H, W)
        wanted = objectness.new_zeros(objectness.shape)
        if len(cells):
            said = at_least_float32(cells.of(raw))  # (P, 5 + K)
            overlap = _overlaps(said, targets, cells, own.to(said), raw.shape)
            box = box + (1 - overlap).mean()
            share = gains.overlap_share
            value = (1 - share) + share * overlap.detach().clamp(min=0)
            _write_last(wanted, cells, value.to(wanted.dtype))
            if said.shape[1] > 6:  # the output of a single class is not trained
                cls = cls + _classes(said[:, 5:], targets[cells.target, 1].long(), gains)
        obj = obj + weight * _bce(objectness, wanted, gains.obj_weight, gains.focal_gamma)
    return {"box": box * gains.box, "obj": obj * gains.obj, "cls": cls * gains.cls}


def _overlaps(said: Tensor, targets: Tensor, cells: Cells, anchors: Tensor, shape: Sequence[int]) -> Tensor:
    """CIoU of each positive's box with its target's (P,), in units of the grid, from the cell's corner."""
    size = said.new_tensor([shape[3], shape[2]])
    wanted = targets[cells.target, 2:6].to(said) * size.repeat(2)
    wanted[:, :2] -= torch.stack((cells.column, cells.row), dim=-1)
    return ciou(xyxy_of(local_boxes(said[:, :4], anchors[cells.anchor])), xyxy_of(wanted))


def _write_last(map_: Tensor, cells: Cells, values: Tensor) -> None:
    """Write values where the cells are; of several at one place the last, on any device."""
    keys = cells.key(map_.shape)
    order = keys.argsort(stable=True)
    ordered = keys[order]
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    map_.view(-1)[ordered[last]] = values[order[last]]


def _classes(logits: Tensor, classes: Tensor, gains: Gains) -> Tensor:
    wanted = torch.full_like(logits, 0.5 * gains.label_smoothing)
    wanted[torch.arange(len(classes), device=logits.device), classes] = 1 - 0.5 * gains.label_smoothing
    return _bce(logits, wanted, gains.cls_weight, gains.focal_gamma)


def _bce(logits: Tensor, wanted: Tensor, weight: float, gamma: float) -> Tensor:
    """Mean cross-entropy of logits; with gamma the focal form."""
    positive = None if weight == 1.0 else logits.new_tensor(weight)
    if gamma == 0:
        return F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=positive)
    loss = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=positive, reduction="none")
    share = logits.sigmoid()
    missed = wanted * (1 - share) + (1 - wanted) * share
    balance = wanted * FOCAL_ALPHA + (1 - wanted) * (1 - FOCAL_ALPHA)
    return (loss * balance * missed**gamma).mean()
