# SPDX-License-Identifier: Apache-2.0
"""A repaired copy of a detection set, in COCO's or YOLO's layout: clipped boxes clipped, dropped ones gone.

Pictures are copied byte for byte. The folder must be new. YOLO rows cannot say that an object is a crowd, or has an
outline of several rings: the first are left out, the second become boxes.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from featherweight.data import yolo
from featherweight.data.detection_report import parts_of
from featherweight.data.objects import Objects
from featherweight.data.scenes import Pictures, Scenery, Scenes
from featherweight.doors import read_input
from featherweight.doors import yaml as strict_yaml
from featherweight.errors import OptionError, StorageError, closest, shown
from featherweight.files import publish, publish_json

FORMATS = ("coco", "yolo")
MAX_FILE = 512 << 20


def write(data: Scenery, folder: str | Path, *, layout: str = "coco") -> dict[str, int]:
    """Write the copy; {"pictures", "boxes", "left_out"}. StorageError if the folder is there already."""
    if layout not in FORMATS:
        text = f"no {layout!r}; {closest(layout, FORMATS)}Known: {', '.join(FORMATS)}"
        raise OptionError("layout", text)
    root = Path(folder)
    try:
        root.mkdir(parents=True)
    except OSError as error:
        raise StorageError(f"{shown(root)} cannot be made: choose a folder that is not there yet") from error
    counts = {"pictures": 0, "boxes": 0, "left_out": 0}
    for part, scenes in parts_of(data).items():
        if not isinstance(scenes, Pictures):
            raise OptionError("repair", "is for sets on disk; the built-in ones need none")
        (_coco if layout == "coco" else _yolo)(root, part, scenes, data, counts)
    if layout == "yolo":
        parts = {part: f"images/{part}" for part in parts_of(data)}
        described = {**parts, "nc": len(data.classes), "names": list(data.classes)}
        publish(root / "data.yaml", strict_yaml.write(described).encode("utf-8"))
    return counts


def _copied(scenes: Pictures, i: int, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    publish(target, read_input(scenes.source(i), max_bytes=MAX_FILE))


def _names(scenes: Scenes, part: str) -> list[PurePosixPath]:
    """A name for each picture below the folder of its part, none twice."""
    found: list[PurePosixPath] = []
    taken: set[str] = set()
    for i in range(len(scenes)):
        steps = list(yolo.relative(scenes.names(i)).parts)
        while len(steps) > 1 and steps[0] in ("images", "JPEGImages", part):
            steps.pop(0)
        name = PurePosixPath(*steps)
        while str(name.with_suffix("")).lower() in taken:  # one label file for each, on any disk
            name = name.with_name(f"{name.stem}_{name.suffix.lstrip('.')}{name.suffix}")
        taken.add(str(name.with_suffix("")).lower())
        found.append(name)
    return found


def _coco(root: Path, part: str, scenes: Pictures, data: Scenery, counts: dict[str, int]) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, name in enumerate(_names(scenes, part)):
        _copied(scenes, i, root / part / name)
        height, width = (int(n) for n in scenes.sizes[i])
        images.append({"id": int(scenes.ids[i]), "file_name": str(name), "height": height, "width": width})
        for row in _rows(scenes.objects(i), data.category_ids):
            annotations.append({"id": len(annotations) + 1, "image_id": int(scenes.ids[i]), **row})
    names = zip(data.category_ids, data.classes, strict=True)
    categories = [{"id": number, "name": name} for number, name in names]
    path = root / "annotations" / f"instances_{part}.json"
    path.parent.mkdir(exist_ok=True)
    publish_json(path, {"images": images, "annotations": annotations, "categories": categories})
    counts["pictures"] += len(images)
    counts["boxes"] += len(annotations)


def _rows(objects: Objects, ids: tuple[int, ...]) -> list[dict[str, Any]]:
    outlines = objects.outlines or ((),) * len(objects)
    return [
        {
            "category_id": ids[int(objects.labels[j])],
            "bbox": [round(side, 9) for side in (x1, y1, x2 - x1, y2 - y1)],
            "area": float(objects.areas[j]),
            "iscrowd": int(objects.crowd[j]),
            **({"segmentation": [ring.ravel().tolist() for ring in outlines[j]]} if outlines[j] else {}),
        }
        for j, (x1, y1, x2, y2) in enumerate(objects.boxes.tolist())
    ]


def _yolo(root: Path, part: str, scenes: Pictures, data: Scenery, counts: dict[str, int]) -> None:
    for i, name in enumerate(_names(scenes, part)):
        _copied(scenes, i, root / "images" / part / name)
        objects = scenes.objects(i)
        mine = objects.targets()
        counts["left_out"] += len(objects) - len(mine)
        size = (int(scenes.sizes[i][0]), int(scenes.sizes[i][1]))
        outlines = mine.outlines or ((),) * len(mine)
        rows = zip(mine.labels.tolist(), mine.boxes.tolist(), outlines, strict=True)
        lines = [yolo.line_of(label, box, rings, size) + "\n" for label, box, rings in rows]
        target = root / "labels" / part / name.with_suffix(".txt")
        target.parent.mkdir(parents=True, exist_ok=True)
        publish(target, "".join(lines).encode("ascii"))
        counts["pictures"] += 1
        counts["boxes"] += len(lines)


def results(detections: Any, scenes: Scenes, category_ids: tuple[int, ...]) -> list[dict[str, Any]]:
    """Detections (n, 6) of each picture, in its pixels, as rows of a COCO results file (fact sheet, 10)."""
    found = []
    for i, rows in enumerate(detections):
        for x1, y1, x2, y2, score, label in rows.tolist():
            box = [round(side, 3) for side in (x1, y1, x2 - x1, y2 - y1)]
            row = {"image_id": int(scenes.ids[i]), "category_id": category_ids[int(label)]}
            found.append({**row, "bbox": box, "score": round(score, 5)})
    return found
