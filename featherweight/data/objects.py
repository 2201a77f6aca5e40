# SPDX-License-Identifier: Apache-2.0
"""What lies where in the pictures of a detection set: boxes, classes, crowds, outlines, and the way they are checked.

Every object that a reader found goes through `settle` once, with the size of the picture as it was decoded (upright).
What is odd is counted and named in `Findings`; what is done about it is the user's choice: repaired, the picture left
out, or the whole set refused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import InputError, OptionError, closest

ON_BAD = ("repair", "skip", "refuse")
EXAMPLES = 1000  # findings of one reason kept by name; all are counted
SLACK = 0.05  # pixels a box may stick out by rounding
SMALL = 1e-6  # pixels: boxes that differ by less are the same box

Ring = NDArray[np.float64]  # (k, 2) corners of one outline


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one picture: boxes (n, 4) xyxy in pixels of the upright picture, labels (n,), crowd (n,),
    areas (n,) as COCO counts them, and for each the rings of its outline (none where it has only a box)."""

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    outlines: tuple[tuple[Ring, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.boxes)

    def targets(self) -> Objects:
        """Those to train on: without crowds, which are neither object nor background."""
        keep = np.flatnonzero(~self.crowd)
        outlines = tuple(self.outlines[i] for i in keep) if self.outlines else ()
        return Objects(self.boxes[keep], self.labels[keep], self.crowd[keep], self.areas[keep], outlines)

    @classmethod
    def of(cls, boxes: NDArray[np.floating], labels: NDArray[np.integer]) -> Objects:
        """Plain boxes."""
        found = np.asarray(boxes, np.float64).reshape(-1, 4)
        areas = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
        return cls(found, np.asarray(labels, np.int64), np.zeros(len(found), bool), areas)


@dataclass(frozen=True)
class Raw:
    """An object as it stands in a file: `where` names the row; `scale` is 1, or "share" for shares of the sides."""

    where: str
    label: int
    box: tuple[float, float, float, float]  # xyxy
    crowd: bool = False
    area: float | None = None
    rings: tuple[Ring, ...] = ()
    share: bool = False


@dataclass(frozen=True)
class Finding:
    """Something odd: in which file, why, in words, and what was done about it."""

    path: str
    reason: str
    text: str
    done: str  # "dropped", "repaired", "kept" (an object, a picture), "skipped" (a picture)


@dataclass
class Findings:
    """What is odd in a set, counted by (reason, what was done), with examples by name."""

    on_bad: str = "repair"
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[Finding] = field(default_factory=list)
    tainted: set[str] = field(default_factory=set)  # pictures with a problem, for on_bad="skip"
    left_out: dict[str, tuple[str, str]] = field(default_factory=dict)  # picture or file -> reason, text; all of them

    def __post_init__(self) -> None:
        if self.on_bad not in ON_BAD:
            text = f"no {self.on_bad!r}; {closest(str(self.on_bad), ON_BAD)}Known: {', '.join(ON_BAD)}"
            raise OptionError("on_bad", text)

    def add(self, path: str, reason: str, text: str, done: str, *, picture: str | None = None) -> None:
        """Count one; with on_bad="refuse" it is raised. `picture` is the one that on_bad="skip" leaves out."""
        if self.on_bad == "refuse" and done != "kept":
            raise InputError(path, reason, text)
        if done in ("dropped", "repaired"):
            self.tainted.add(picture if picture is not None else path)
        if done == "skipped":
            self.left_out[path] = (reason, text)
        if self.counts[reason, done] < EXAMPLES:
            self.examples.append(Finding(path, reason, text, done))
        self.counts[reason, done] += 1

    def total(self, *done: str) -> int:
        """How many findings ended like that."""
        return sum(count for (_, what), count in self.counts.items() if what in done)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Every reason that came up, sorted."""
        return tuple(sorted({reason for reason, _ in self.counts}))


def settle(raws: Sequence[Raw], *, name: str, size: tuple[int, int], classes: int, findings: Findings) -> Objects:
    """The objects of a picture of `size` (height, width), checked and repaired; `name` is for messages."""
    height, width = size
    kept: list[Raw] = []
    boxes: list[tuple[float, float, float, float]] = []
    seen: set[tuple[object, ...]] = set()
    for raw in raws:
        scale = (width, height) if raw.share else (1.0, 1.0)
        box = _checked(raw, name, scale, (width, height), classes, findings)
        if box is None:
            continue
        key = (raw.label, raw.crowd, *(round(side / SMALL) for side in box))
        if key in seen:
            findings.add(name, "duplicate_box", f"{raw.where}: the same box of the same class again", "dropped")
            continue
        seen.add(key)
        kept.append(raw)
        boxes.append(box)
    found = np.array(boxes, np.float64).reshape(-1, 4)
    areas = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
    given = np.array([math.nan if raw.area is None else raw.area for raw in kept])
    outlines = tuple(_outline(raw, name, (width, height), findings) for raw in kept)
    return Objects(
        found,
        np.array([raw.label for raw in kept], np.int64),
        np.array([raw.crowd for raw in kept], bool),
        np.where(np.isfinite(given) & (given >= 0), given, areas) if len(kept) else areas,
        outlines if any(outlines) else (),
    )


def _checked(
    raw: Raw, name: str, scale: tuple[float, float], size: tuple[int, int], classes: int, findings: Findings
) -> tuple[float, float, float, float] | None:
    """The box in pixels inside the picture, or None with a finding."""
    if not 0 <= raw.label < classes:
        text = f"{raw.where}: class {raw.label}, but there are {classes} (0..{classes - 1})"
        findings.add(name, "bad_class", text, "dropped")
        return None
    if not all(math.isfinite(side) for side in raw.box):
        findings.add(name, "bad_box", f"{raw.where}: a number of the box is not finite", "dropped")
        return None
    x1, y1, x2, y2 = (side * scale[i % 2] for i, side in enumerate(raw.box))
    if not (x2 > x1 and y2 > y1):
        text = f"{raw.where}: the box has no area ({x2 - x1:g} x {y2 - y1:g} pixels)"
        findings.add(name, "bad_box", text, "dropped")
        return None
    inside = (max(0.0, x1), max(0.0, y1), min(float(size[0]), x2), min(float(size[1]), y2))
    if not (inside[2] > inside[0] and inside[3] > inside[1]):
        text = f"{raw.where}: the box lies outside the picture of {size[0]} x {size[1]}"
        findings.add(name, "bad_box", text, "dropped")
        return None
    out = max(abs(a - b) for a, b in zip(inside, (x1, y1, x2, y2), strict=True))
    if out > SLACK:
        text = f"{raw.where}: the box sticks out of the picture of {size[0]} x {size[1]} by {out:g} pixels"
        findings.add(name, "clipped", text, "repaired")
    return inside


def _outline(raw: Raw, name: str, size: tuple[int, int], findings: Findings) -> tuple[Ring, ...]:
    """The rings in pixels, each clipped into the picture; none if one of them cannot be used."""
    rings = []
    for ring in raw.rings:
        points = ring * np.array(size, np.float64) if raw.share else ring
        if len(points) < 3 or not np.isfinite(points).all():
            findings.add(name, "bad_mask", f"{raw.where}: its outline has no area; the box is kept", "kept")
            return ()
        rings.append(points.clip(0, size))
    return tuple(rings)


class Table:
    """The objects of many pictures in a few flat arrays, so that a large set stays small and can be stored."""

    FIELDS = ("ends", "boxes", "labels", "crowd", "areas", "ring_ends", "point_ends", "points")

    def __init__(self, arrays: dict[str, NDArray[np.generic]]) -> None:
        self.arrays = arrays
        self.ends: NDArray[np.int64] = np.asarray(arrays["ends"], np.int64)

    @classmethod
    def of(cls, pictures: Sequence[Objects]) -> Table:
        """All of these."""
        rings = [outline for one in pictures for outline in (one.outlines or ((),) * len(one))]
        points = [ring for outline in rings for ring in outline]
        blank = Objects.of(np.zeros((0, 4)), np.zeros(0, np.int64))
        some = list(pictures) or [blank]
        return cls(
            {
                "ends": np.cumsum([0, *(len(one) for one in pictures)], dtype=np.int64),
                "boxes": np.concatenate([one.boxes for one in some]),
                "labels": np.concatenate([one.labels for one in some]),
                "crowd": np.concatenate([one.crowd for one in some]),
                "areas": np.concatenate([one.areas for one in some]),
                "ring_ends": np.cumsum([0, *(len(outline) for outline in rings)], dtype=np.int64),
                "point_ends": np.cumsum([0, *(len(ring) for ring in points)], dtype=np.int64),
                "points": np.concatenate([*points, np.zeros((0, 2))]),
            }
        )

    def __len__(self) -> int:
        return len(self.ends) - 1

    @property
    def outlined(self) -> bool:
        """Whether any object has an outline."""
        return len(self.arrays["points"]) > 0

    def __getitem__(self, i: int) -> Objects:
        start, stop = (int(end) for end in self.ends[i : i + 2])
        fields = {name: self.arrays[name][start:stop] for name in ("boxes", "labels", "crowd", "areas")}
        outlines: tuple[tuple[Ring, ...], ...] = ()
        if self.outlined:
            outlines = tuple(self._rings(j) for j in range(start, stop))
        return Objects(**fields, outlines=outlines)  # type: ignore[arg-type]

    def _rings(self, j: int) -> tuple[Ring, ...]:
        first, last = (int(end) for end in self.arrays["ring_ends"][j : j + 2])
        ends = [int(end) for end in self.arrays["point_ends"][first : last + 1]]
        points: NDArray[np.float64] = self.arrays["points"]  # type: ignore[assignment]
        return tuple(points[a:b] for a, b in pairwise(ends))

    def take(self, which: NDArray[np.int64]) -> Table:
        """The objects of some of the pictures."""
        return Table.of([self[int(i)] for i in which])
