# SPDX-License-Identifier: Apache-2.0
"""What a detector's page shows of its answers: AP by class, who is taken for whom, pictures with their boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .deploy import exported
from .deploy_detection import objects
from .report import Box, Scene
from .work import Work


def shown(work: Work, found: Mapping[str, Any], last: int, samples: int) -> dict[str, Any]:
    """The fields of a report that are of answers: those of the first stage and of the last that stayed."""
    base, small = found["rows"][0], found["rows"][last]
    return {
        "confusion_base": _table(base),
        "confusion_small": _table(small),
        "per_class": _per_class(base["classes"], small["classes"]),
        "scenes": _scenes(work, found["part"], last, _order(base["right"], small["right"])[:samples]),
    }


def _table(row: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(line) for line in row["confusion"])


def _per_class(base: Mapping[str, Any], small: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """AP in percent of each class that lies in a picture."""
    return tuple(
        {"name": name, "n": mine["boxes"], "base": 100 * mine["AP"], "small": 100 * small[name]["AP"]}
        for name, mine in base.items()
        if mine["boxes"]
    )


def _order(base: Sequence[int], small: Sequence[int]) -> list[int]:
    """Pictures in which most objects are lost first, then those with most gained, then the others."""
    change = [after - before for before, after in zip(base, small, strict=True)]
    return sorted(range(len(change)), key=lambda i: (0 if change[i] < 0 else 1 if change[i] else 2, -abs(change[i])))


def _scenes(work: Work, part: str, last: int, which: Sequence[int]) -> tuple[Scene, ...]:
    """Those pictures with what lies in them, and what the first and the last stage's files find."""
    pictures, names = getattr(work.data, part), work.data.classes
    files = [(work.at(stage), stage, exported(work, stage)) for stage in (work.stages[0], work.stages[last])]
    found = [objects(seen, stage, path, which, part) for seen, stage, path in files]
    scenes = []
    for i, base, small in zip(which, *found, strict=True):
        height, width = pictures.picture(i).shape[:2]
        there = pictures.objects(i)
        truth = [Box(names[k], tuple(box)) for box, k in zip(there.boxes.tolist(), there.labels.tolist(), strict=True)]
        boxes = (_boxes(rows, names) for rows in (base, small))
        scenes.append(Scene(pictures.picture(i), width, height, tuple(truth), *boxes))
    return tuple(scenes)


def _boxes(rows: NDArray[np.float64], names: Sequence[str]) -> tuple[Box, ...]:
    return tuple(Box(names[int(row[5])], tuple(row[:4]), round(row[4], 4)) for row in rows.tolist())
