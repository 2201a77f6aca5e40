# SPDX-License-Identifier: Apache-2.0
"""Which cells and anchors of each level a target proposes: what all assignments choose from (fact sheet, section 5.1).

A target proposes an anchor whose sides differ from its own by less than a factor of 4, in the cell of its center and in
neighbors near it: two of them with a reach of 0.5 (fine), four with a reach of 1 (coarse).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CENTER, LARGEST = (-0.5, 1.5), 4.0  # where in cells, and how large in anchors, a cell's box can be (`decode`)
DIRECTIONS = ((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1))  # center, left, up, right, down: what is taken off the center


@dataclass(frozen=True)
class Cells:
    """Cells of one level, one a row: each field is (n,) int64; `target` is a row of the targets."""

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, which: Tensor) -> Cells:
        """Those rows, by number or mask."""
        return Cells(*(getattr(self, name)[which] for name in FIELDS))

    def of(self, values: Tensor) -> Tensor:
        """What a map (B, A, H, W, ...) says there: (n, ...)."""
        return values[self.image, self.anchor, self.row, self.column]

    def key(self, shape: Sequence[int]) -> Tensor:
        """A number per place (image, anchor, row, column) of a map (B, A, H, W, ...): its flat index."""
        _, anchors, rows, columns = shape[:4]
        return ((self.image * anchors + self.anchor) * rows + self.row) * columns + self.column


FIELDS = ("image", "anchor", "row", "column", "target")


@torch.no_grad()
def candidates(
    targets: Tensor,
    anchors: Tensor,
    shapes: Sequence[Sequence[int]],
    *,
    reach: float = 0.5,
    ratio: float = 4.0,
    duplicates: bool = False,
    reachable: bool = False,
) -> list[Cells]:
    """Per level what targets (M, 6) propose; anchors (L, A, 2) in stride units, shapes (H, W) of the levels.

    duplicates: keep a cell that the same target proposes twice, as a center on the border of a cell does; off, the
    first one stays. reachable: leave out cells that cannot make the target's box, as some at a reach of 1 cannot.
    Rows: all centers, anchor by anchor, then all to the left, above, to the right, below.
    """
    found = []
    for own, (rows, columns) in zip(anchors, shapes, strict=True):
        size = targets.new_tensor([columns, rows])
        middle, sides = targets[:, 2:4] * size, targets[:, 4:6] * size  # (M, 2) in units of the grid
        factor = sides[None] / own.to(targets)[:, None]  # (A, M, 2)
        fits = torch.maximum(factor, 1 / factor).amax(-1) < ratio
        anchor, target = fits.nonzero(as_tuple=True)  # anchor by anchor
        center = middle[target]
        rest = size - center
        near = [(value % 1 < reach) & (value > 1) for value in (center, rest)]
        masks = (torch.ones_like(anchor, dtype=torch.bool), near[0][:, 0], near[0][:, 1], near[1][:, 0], near[1][:, 1])
        parts = []
        for mask, direction in zip(masks, DIRECTIONS, strict=True):
            cell = (center[mask] - reach * center.new_tensor(direction)).long()
            column, row = cell[:, 0].clamp(0, columns - 1), cell[:, 1].clamp(0, rows - 1)
            mine = target[mask]
            parts.append((targets[mine, 0].long(), anchor[mask], row, column, mine))
        cells = Cells(*(torch.cat(field) for field in zip(*parts, strict=True)))
        if reachable:
            corner = torch.stack((cells.column, cells.row), dim=-1)
            cells = cells[reaches(middle[cells.target] - corner, factor[cells.anchor, cells.target])]
        found.append(cells if duplicates else _once(cells, targets, (0, len(own), rows, columns)))
    return found


def reaches(offset: Tensor, factor: Tensor) -> Tensor:
    """Whether a cell can make a box: center (..., 2) from the cell's corner in cells, sides (..., 2) in anchors.

    A sigmoid reaches no end of its range, so neither does the box.
    """
    low, high = CENTER
    return ((offset > low) & (offset < high) & (factor < LARGEST)).all(-1)


def distinct(cells: Cells, shape: Sequence[int]) -> Cells:
    """Each place once, in the order of the map; which target proposed it is that of its first row."""
    return cells[_first_of(cells.key(shape))]


def _once(cells: Cells, targets: Tensor, shape: Sequence[int]) -> Cells:
    """Each place once per target, in the order given."""
    return cells[_first_of(cells.key(shape) * max(len(targets), 1) + cells.target).sort().values]


def _first_of(keys: Tensor) -> Tensor:
    """Where each value stands first, in the order of the values."""
    order = keys.argsort(stable=True)
    ordered = keys[order]
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return order[new]
