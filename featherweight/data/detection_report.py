# SPDX-License-Identifier: Apache-2.0
"""What a detection set holds and what is odd in it, as plain values: for `data check`, its sheet and the report.

Odd is more than wrong: boxes that are nearly the same, tiny, thin or as large as the picture are counted and named,
too, though nothing is done about them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from featherweight.data.objects import Objects
from featherweight.data.scenes import Scenery, Scenes
from featherweight.errors import clean, shown
from featherweight.runtime.nms import overlaps

TWIN = 0.9  # IoU of two boxes of a class from which on one of them is probably there twice
TINY, THIN, WHOLE = 3.0, 20.0, 0.98  # pixels; sides' ratio; share of the picture
SIZES = {"small": 32.0**2, "medium": 96.0**2}  # COCO's bounds of areas
EXAMPLES = 20  # of each kind that are named

ODD = {
    "twin": f"two boxes of one class overlap by more than {TWIN:g}",
    "tiny": f"a side is below {TINY:g} pixels",
    "thin": f"one side is more than {THIN:g} times the other",
    "whole": f"the box covers more than {WHOLE:.0%} of the picture",
}


@dataclass(frozen=True)
class Oddity:
    """One odd picture: part, number in the part, name, kind, how many boxes of it."""

    part: str
    index: int
    name: str
    kind: str
    boxes: int


def parts_of(data: Scenery) -> dict[str, Scenes]:
    """The parts there are."""
    found = {"train": data.train, "val": data.val, "test": data.test}
    return {name: part for name, part in found.items() if part is not None}


def oddities(data: Scenery) -> list[Oddity]:
    """Every picture with an odd box, in order."""
    found = []
    for part, scenes in parts_of(data).items():
        for i in range(len(scenes)):
            size = (int(scenes.sizes[i][0]), int(scenes.sizes[i][1]))
            for kind, count in odd_boxes(scenes.objects(i).targets(), size):
                found.append(Oddity(part, i, scenes.names(i), kind, count))
    return found


def odd_boxes(objects: Objects, size: tuple[int, int]) -> Iterator[tuple[str, int]]:
    """Kinds of odd boxes in a picture (height, width), with their number."""
    if not len(objects):
        return
    wide, high = (objects.boxes[:, 2:] - objects.boxes[:, :2]).T
    twins = np.triu(overlaps(objects.boxes, objects.boxes) > TWIN, 1)
    twins &= objects.labels[:, None] == objects.labels
    counts = {
        "twin": int(twins.any(0).sum()),
        "tiny": int((np.minimum(wide, high) < TINY).sum()),
        "thin": int((np.maximum(wide, high) > THIN * np.minimum(wide, high)).sum()),
        "whole": int((wide * high > WHOLE * size[0] * size[1]).sum()),
    }
    yield from ((kind, count) for kind, count in counts.items() if count)


def describe(data: Scenery) -> dict[str, Any]:
    """Format, counts, classes, sizes, what was repaired, dropped or skipped, what is odd. Plain values."""
    parts = parts_of(data)
    tables = {name: _part(scenes, len(data.classes)) for name, scenes in parts.items()}
    odd = oddities(data)
    findings = data.findings
    return {
        "name": shown(data.name),
        "format": data.format,
        "fingerprint": data.fingerprint,
        "note": clean(data.note),
        "classes": {
            name if data.classes.count(name) == 1 else f"{name} ({k})": {
                part: {"images": table["images"][k], "boxes": table["boxes"][k]} for part, table in tables.items()
            }
            for k, name in enumerate(data.classes)
        },
        "category_ids": list(data.category_ids),
        "parts": {name: table["summary"] for name, table in tables.items()},
        "findings": [
            {"reason": reason, "done": done, "count": count, "examples": _examples(data, reason, done)}
            for (reason, done), count in sorted(findings.counts.items())
        ],
        "odd": [
            {
                "kind": kind,
                "what": what,
                "pictures": sum(one.kind == kind for one in odd),
                "boxes": sum(one.boxes for one in odd if one.kind == kind),
                "examples": [shown(one.name) for one in odd if one.kind == kind][:EXAMPLES],
            }
            for kind, what in ODD.items()
        ],
        "skipped": [{"path": shown(s.path), "reason": s.reason, "text": clean(s.text)} for s in data.skipped],
    }


def _examples(data: Scenery, reason: str, done: str) -> list[dict[str, str]]:
    found = [one for one in data.findings.examples if (one.reason, one.done) == (reason, done)]
    return [{"path": shown(one.path), "text": clean(one.text)} for one in found[:EXAMPLES]]


def _part(scenes: Scenes, classes: int) -> dict[str, Any]:
    """Pictures and boxes of each class, and what the part is like."""
    images, boxes = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    areas, counts, crowds, outlined = [], [], 0, 0
    for i in range(len(scenes)):
        objects = scenes.objects(i)
        crowds += int(objects.crowd.sum())
        mine = objects.targets()
        outlined += sum(bool(outline) for outline in mine.outlines)
        boxes += np.bincount(mine.labels, minlength=classes)
        images += np.bincount(np.unique(mine.labels), minlength=classes)
        areas.append(mine.areas)
        counts.append(len(mine))
    every = np.concatenate([*areas, np.zeros(0)])
    return {"images": images.tolist(), "boxes": boxes.tolist(), "summary": {
        "images": len(scenes),
        "boxes": int(boxes.sum()),
        "crowds": crowds,
        "outlines": outlined,
        "background": int(sum(count == 0 for count in counts)),
        "boxes_per_image": {"mean": float(np.mean(counts)), "most": int(np.max(counts))},
        "sizes": _sizes(every),
        "height": _span(scenes.sizes[:, 0]),
        "width": _span(scenes.sizes[:, 1]),
    }}  # fmt: skip


def _sizes(areas: np.ndarray) -> dict[str, int]:
    """How many boxes are small, medium and large, as COCO counts them."""
    small, medium = (int((areas < bound).sum()) for bound in SIZES.values())
    return {"small": small, "medium": medium - small, "large": len(areas) - medium}


def _span(values: np.ndarray) -> Mapping[str, int]:
    return {"least": int(values.min()), "most": int(values.max())}
