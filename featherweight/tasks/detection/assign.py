# SPDX-License-Identifier: Apache-2.0
"""Lead-guided assignment: the detector's own predictions choose which candidates are positives, and how many.

Of each image, the rows are its targets and the columns all candidate cells of all levels. A target takes its k cheapest
columns, k being the sum of its best IoUs; a column that several take goes to the cheapest (Ge 2021, 2107.08430; Wang
2022, 2207.02696; fact sheet, section 5.3). All images at once, without gradient, in memory of columns times classes:
with y = sqrt(class * objectness) the cost of a pair is -sum ln(1 - y) + ln(1 - y_t) - ln y_t + 3 (-ln IoU), of which
the first part belongs to the column and the rest is looked up by the target's class. The logarithms are those of the
logits in float32, so no cost is infinite or NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .boxes import iou_matrix, xyxy_of
from .candidates import Cells, distinct, reaches
from .decode import at_least_float32, boxes_at

PAIRS = 2**18  # of targets and columns that are looked at together: 1 MiB per float32 quantity
IOU_WEIGHT = 3.0


@torch.no_grad()
def lead_guided(
    maps: Sequence[Tensor],
    targets: Tensor,
    found: Sequence[Cells],
    anchors: Tensor,
    strides: Sequence[int],
    *,
    top: int = 10,
    duplicates: bool = False,
    official_height: bool = False,
    reachable: bool = False,
) -> list[Cells]:
    """Positives per level. maps: raw lead maps (B, A, H, W, 5 + K); targets (M, 6); found: `candidates` per level.

    top: how many of the best IoUs count for k: 10, and 20 beside auxiliary heads. duplicates: a cell that two targets
    propose is two columns, as in the official code, whose result then depends on their order; off, it is one.
    official_height: the targets' x and w are scaled by the height of the picture, as there; wrong unless it is square.
    reachable: a target takes only cells that can make its box; off, also those that another target proposed and that
    cannot reach it, as in the official code.
    """
    if not duplicates:
        found = [distinct(cells, raw.shape) for cells, raw in zip(found, maps, strict=True)]
    columns = _columns(maps, found, anchors, strides)
    height, width = (int(maps[0].shape[axis]) * strides[0] for axis in (2, 3))
    scale = targets.new_tensor([height if official_height else width, height])
    boxes = xyxy_of(targets[:, 2:6] * scale.repeat(2))
    owner = torch.full_like(columns.image, -1)  # the target of each column, -1: none
    for group in _groups(columns.image, targets[:, 0].long(), len(maps[0])):
        _assign(group, columns, boxes, targets[:, 1].long(), owner, top, reachable)
    won = owner >= 0
    picked = []
    for level, cells in enumerate(found):
        of_level = columns.place[won & (columns.level == level)]
        mine = cells[of_level]
        target = owner[won & (columns.level == level)]
        picked.append(Cells(mine.image, mine.anchor, mine.row, mine.column, target))
    return picked


@dataclass(frozen=True)
class Columns:
    """The candidates of all levels, image by image; n rows."""

    image: Tensor  # (n,)
    level: Tensor
    place: Tensor  # row in the level's candidates
    box: Tensor  # (n, 4) xyxy in pixels
    corner: Tensor  # (n, 2) of the cell, x and y in pixels
    stride: Tensor  # (n, 1)
    anchor: Tensor  # (n, 2) sides in pixels
    raw: Sequence[Tensor]  # of each level's candidates (c, 1 + K): objectness and classes before the sigmoid

    def costs(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """Of the columns `which` (c,): what all pairs share (c,), and by class (K, c) what is added for a target."""
        raw = self.box.new_empty((len(which), self.raw[0].shape[1]), dtype=torch.float32)
        for level, values in enumerate(self.raw):
            mine = self.level[which] == level
            raw[mine] = values[self.place[which[mine]]].float()
        log_y = (F.logsigmoid(raw[:, 1:]) + F.logsigmoid(raw[:, :1])).mul_(0.5).clamp_(max=-1e-37)
        log_not = torch.log(-torch.expm1(log_y))  # ln(1 - y), exact at both ends
        return -log_not.sum(1), (log_not - log_y).t().contiguous()


@dataclass(frozen=True)
class Group:
    """Some images side by side, filled up to the same numbers of columns and of targets."""

    columns: Tensor  # (G, N) row in the columns
    real: Tensor  # (G, N)
    targets: Tensor  # (G, M) row in the targets
    true: Tensor  # (G, M)


def _columns(maps: Sequence[Tensor], found: Sequence[Cells], anchors: Tensor, strides: Sequence[int]) -> Columns:
    """Candidates of all levels with what the detector says there, ordered by image, then level."""
    boxes, corners, sides, raw = [], [], [], []
    for values, cells, own, stride in zip(maps, found, anchors, strides, strict=True):
        said = cells.of(values.detach())  # (c, 5 + K)
        grid = torch.stack((cells.column, cells.row), dim=-1)
        local = at_least_float32(said[:, :4])
        anchor = own.to(local)[cells.anchor]
        boxes.append(xyxy_of(boxes_at(local, anchor, grid, stride)))
        corners.append(grid * stride)
        sides.append(anchor * stride)
        raw.append(said[:, 4:])
    image = torch.cat([cells.image for cells in found])
    level = torch.cat([torch.full_like(cells.image, number) for number, cells in enumerate(found)])
    place = torch.cat([torch.arange(len(cells), device=image.device) for cells in found])
    order = image.argsort(stable=True)
    steps = torch.tensor(list(strides), device=image.device)[level[order]][:, None]
    box, corner, anchor = (torch.cat(parts)[order] for parts in (boxes, corners, sides))
    return Columns(image[order], level[order], place[order], box, corner, steps, anchor, raw)


def _groups(image: Tensor, of_target: Tensor, count: int) -> Iterator[Group]:
    """Images that have columns, few targets first, as many together as PAIRS allows; at least one."""
    columns = torch.bincount(image, minlength=count)
    targets = torch.bincount(of_target, minlength=count)
    starts = [torch.cumsum(numbers, 0) - numbers for numbers in (columns, targets)]
    rows = of_target.argsort(stable=True)
    sizes = torch.stack((columns, targets), dim=1).tolist()
    together: list[int] = []
    widest = most = 0
    for number in sorted((i for i, (n, _) in enumerate(sizes) if n), key=lambda i: sizes[i][1]):
        n, m = sizes[number]
        widest, most = max(widest, n), max(most, m)
        if together and (len(together) + 1) * widest * most > PAIRS:
            yield _group(together, columns, targets, starts, rows)
            together, widest, most = [], n, m
        together.append(number)
    if together:
        yield _group(together, columns, targets, starts, rows)


def _group(images: list[int], columns: Tensor, targets: Tensor, starts: list[Tensor], rows: Tensor) -> Group:
    which = torch.tensor(images, device=columns.device)
    tables = []
    for counts, start in ((columns, starts[0]), (targets, starts[1])):
        places = torch.arange(int(counts[which].max()), device=which.device)
        real = places < counts[which][:, None]
        tables.append(((start[which][:, None] + places) * real, real))
    (column, real), (target, true) = tables
    return Group(column, real, rows[target], true)


def _assign(
    group: Group, columns: Columns, boxes: Tensor, classes: Tensor, owner: Tensor, top: int, reachable: bool
) -> None:
    """Write the targets of a group's columns into `owner`."""
    flat, back = group.columns.unique(return_inverse=True)
    shared, by_class = columns.costs(flat)
    count = torch.zeros_like(group.columns)
    taker = torch.full_like(group.columns, -1)
    best = torch.full_like(group.columns, torch.inf, dtype=columns.box.dtype)
    cheapest = torch.full_like(group.columns, -1)
    slices = max(1, PAIRS // max(1, group.columns.numel()))
    for first in range(0, group.targets.shape[1], slices):
        target, true = group.targets[:, first : first + slices], group.true[:, first : first + slices]
        overlap = iou_matrix(boxes[target], columns.box[group.columns])  # (G, m, N)
        possible = group.real[:, None] & true[..., None]
        if reachable:
            possible = possible & _reached(boxes[target], columns, group.columns)
        overlap *= possible
        k = overlap.topk(min(top, overlap.shape[-1])).values.sum(-1).long().clamp_(min=1)
        cost = by_class[classes[target][..., None], back[:, None]] + shared[back][:, None]
        cost = cost - IOU_WEIGHT * overlap.add_(1e-8).log_()
        cost.masked_fill_(~possible, torch.inf)
        lowest, whose = cost.min(1)  # of targets of equal cost the first
        better = lowest < best
        best = torch.where(better, lowest, best)
        cheapest = torch.where(better, target.gather(1, whose), cheapest)
        image, row, place = _cheapest(cost, k, true)
        count.index_put_((image, place), torch.ones_like(place), accumulate=True)
        taker[image, place] = target[image, row]
    one = torch.where(count > 1, cheapest, taker)
    owner[group.columns[group.real]] = one[group.real]


def _reached(boxes: Tensor, columns: Columns, which: Tensor) -> Tensor:
    """Whether the cells of the columns `which` (G, N) can make the boxes (G, m, 4): (G, m, N)."""
    center, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    offset = (center[:, :, None] - columns.corner[which][:, None]) / columns.stride[which][:, None]
    return reaches(offset, sides[:, :, None] / columns.anchor[which][:, None])


def _cheapest(cost: Tensor, k: Tensor, true: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The k (G, m) cheapest columns of each target of cost (G, m, N), of equals the first: (image, target, column)."""
    most = int(k.max())
    values, places = cost.topk(min(most + 1, cost.shape[-1]), largest=False)
    if values.shape[-1] > 1:
        edge = (k[..., None] - 1).clamp(max=values.shape[-1] - 2)
        tied = values.gather(-1, edge) == values.gather(-1, edge + 1)
        tied = tied[..., 0] & true & (k < cost.shape[-1])
        if bool(tied.any()):
            places[tied] = cost[tied].sort(stable=True).indices[:, : places.shape[-1]]
    taken = (torch.arange(places.shape[-1], device=k.device) < k[..., None]) & true[..., None]
    taken &= values[..., : taken.shape[-1]] < torch.inf  # a target that no cell can reach takes none
    image, row, rank = taken.nonzero(as_tuple=True)
    return image, row, places[image, row, rank]
