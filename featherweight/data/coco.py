# SPDX-License-Identifier: Apache-2.0
"""Detection sets as COCO JSON: one file a part, category ids with or without gaps, crowds, outlines.

Classes are the categories in the order of their ids, so a label is a place in that order and `category_ids` leads back.
Crowd regions are kept: never a target, and ignored by the evaluation. Encoded masks are not decoded, since a box needs
none. What it does not do: keypoints, panoptic files, results files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import numpy as np

from featherweight.data.objects import Findings, Raw, Ring
from featherweight.data.scenes import Part, safe_name
from featherweight.doors import json as strict_json
from featherweight.errors import InputError, shown

KEYS = ("images", "annotations", "categories")
MAX_SIDE = 1 << 20
HUGE = 1e18  # no coordinate is larger
_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # of COCO's 90 category ids
COCO91 = tuple(number for number in range(1, 91) if number not in _UNUSED)  # the ids of its 80 classes, in order


@dataclass(frozen=True)
class Categories:
    """The classes of a file: names in the order of ids, and the ids."""

    names: tuple[str, ...]
    ids: tuple[int, ...]


def read(path: Path, images: Path | None, findings: Findings) -> tuple[Part, Categories]:
    """One file; `images` is the folder of its pictures, looked for where left out."""
    tree = strict_json.read(path, max_bytes=2 << 30, allow_nan=True)
    if isinstance(tree, list):
        raise InputError(path, "bad_schema", "holds a list, as results files do; annotations are an object with images")
    for key in KEYS:
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
            raise InputError(path, "bad_schema", f"has no list '{key}'; COCO files have {', '.join(KEYS)}")
    categories = categories_of(path, tree["categories"], findings)
    names, ids, sizes = _images(path, tree["images"], findings)
    raws = _objects(path, tree["annotations"], dict(zip(ids, names, strict=True)), categories, findings)
    folder = images if images is not None else folder_of(path, [name for name in names if name])
    keep = [i for i, name in enumerate(names) if name]
    part = Part(
        folder,
        [names[i] for i in keep],
        [raws.get(ids[i], []) for i in keep],
        declared=[sizes[i] for i in keep],
        ids=[ids[i] for i in keep],
        sources=(path,),
    )
    return part, categories


def categories_of(path: Path, rows: Sequence[Any], findings: Findings) -> Categories:
    """The classes, sorted by id."""
    found: dict[int, str] = {}
    for row in rows:
        number = row.get("id") if isinstance(row, dict) else None
        name = row.get("name") if isinstance(row, dict) else None
        if not _whole(number) or not isinstance(name, str) or not name.strip():
            raise InputError(path, "bad_schema", f"a category needs a whole id and a name, not {shown(row, limit=80)}")
        if number in found:
            raise InputError(path, "duplicate_id", f"two categories have the id {number}")
        found[int(number)] = name
    if not found:
        raise InputError(path, "bad_schema", "its list 'categories' is empty")
    names = [found[number] for number in sorted(found)]
    for name in {name for name in names if names.count(name) > 1}:
        findings.add(path.name, "duplicate_name", f"two categories are named {shown(name, limit=60)!r}", "kept")
    return Categories(tuple(names), tuple(sorted(found)))


def _images(
    path: Path, rows: Sequence[Any], findings: Findings
) -> tuple[list[str], list[int], list[tuple[int, int] | None]]:
    """Names (empty where one cannot be used), ids and declared sizes (height, width)."""
    names: list[str] = []
    ids: list[int] = []
    sizes: list[tuple[int, int] | None] = []
    seen: set[int] = set()
    for row in rows:
        number = row.get("id") if isinstance(row, dict) else None
        name = row.get("file_name") if isinstance(row, dict) else None
        if not _whole(number) or not isinstance(name, str):
            raise InputError(path, "bad_schema", f"an image needs a whole id and a file_name: {shown(row, limit=80)}")
        if number in seen:
            raise InputError(path, "duplicate_id", f"two images have the id {number}")
        seen.add(int(number))
        name = name.replace("\\", "/")  # as written on Windows
        if not safe_name(name):
            text = f"image {number}: {shown(name, limit=80)!r} must stay below the folder of the pictures"
            findings.add(name, "unsafe_path", text, "skipped")
            name = ""
        names.append(name)
        ids.append(int(number))
        sizes.append(_size(row))
    doubled = {name for name in names if name}
    if len(doubled) < sum(bool(name) for name in names):
        twice = next(name for i, name in enumerate(names) if name and name in names[:i])
        raise InputError(path, "duplicate_name", f"two images have the file {shown(twice, limit=80)!r}")
    return names, ids, sizes


def _size(row: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = row.get("height"), row.get("width")
    if _whole(height) and _whole(width) and 0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE:
        return int(height), int(width)
    return None


def _objects(
    path: Path, rows: Sequence[Any], names: Mapping[int, str], categories: Categories, findings: Findings
) -> dict[int, list[Raw]]:
    """The annotations by image id; those of no image or category are dropped and counted."""
    label = {number: i for i, number in enumerate(categories.ids)}
    found: dict[int, list[Raw]] = {}
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            findings.add(path.name, "bad_row", f"annotation {place} (from 0) is not an object", "dropped")
            continue
        where = f"annotation {row['id']}" if _whole(row.get("id")) else f"annotation {place} (from 0)"
        image, category = row.get("image_id"), row.get("category_id")
        if not _whole(image) or image not in names:
            findings.add(path.name, "unknown_image", f"{where}: no image {shown(image, limit=40)}", "dropped")
        elif not _whole(category) or category not in label:
            text = f"{where}: no category {shown(category, limit=40)}"
            findings.add(path.name, "unknown_category", text, "dropped", picture=names[image])
        else:
            box = _box(row.get("bbox"))
            if box is None:
                text = f"{where}: the box must be four numbers x, y, width, height"
                findings.add(path.name, "bad_box", text, "dropped", picture=names[image])
                continue
            area = row.get("area")
            area = float(area) if _number(area) and 0 <= area < HUGE else None
            crowd = row.get("iscrowd") in (1, True)
            rings = () if crowd else _rings(row.get("segmentation"))
            found.setdefault(int(image), []).append(Raw(where, label[category], box, crowd, area, rings))
    return found


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62


def _box(value: Any) -> tuple[float, float, float, float] | None:
    """xywh -> xyxy; None if these are not four numbers. A negative width stays visible as x2 < x1."""
    if not isinstance(value, list) or len(value) != 4 or not all(_number(n) for n in value):
        return None
    x, y, w, h = (float(n) if abs(n) < HUGE else math.inf for n in value)  # NaN becomes infinity, too
    return x, y, x + w, y + h


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _rings(value: Any) -> tuple[Ring, ...]:
    """Outlines given as lists of x, y; encoded masks are not looked into."""
    if not isinstance(value, list):
        return ()
    rings = []
    for one in value:
        if not isinstance(one, list) or len(one) < 6 or len(one) % 2:
            return ()
        if not all(_number(n) and abs(n) < HUGE for n in one):
            return ()
        rings.append(np.array(one, np.float64).reshape(-1, 2))
    return tuple(rings)


# ---- where things lie ------------------------------------------------------------------------------------------------

PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def files_in(root: Path) -> dict[str, Path]:
    """The annotation file of each part of a folder, by the names people use; empty if there are none."""
    found: dict[str, Path] = {}
    places = [*sorted(root.glob("*.json")), *sorted(root.glob("annotations/*.json"))]
    for path in places:
        stem = path.stem.lower()
        if "keypoint" in stem or "caption" in stem or "panoptic" in stem or "image_info" in stem:
            continue
        stem = stem.removeprefix("instances_").removesuffix("_coco").removesuffix("_annotations").rstrip("0123456789")
        if stem in PARTS:
            if PARTS[stem] in found:
                text = f"and {found[PARTS[stem]].name} both mean {PARTS[stem]}; name the file itself, or keep one"
                raise InputError(path, "duplicate_name", text)
            found[PARTS[stem]] = path
    for name, part in PARTS.items():
        below = root / name / "_annotations.coco.json"
        if part not in found and below.is_file():
            found[part] = below
    return found


def folder_of(path: Path, names: Sequence[str]) -> Path:
    """The folder in which most of the first pictures are: beside the file, images/, or one named as the part."""
    stem = path.stem.removeprefix("instances_")
    base = path.parent.parent if path.parent.name == "annotations" else path.parent
    places = [path.parent, base / "images", base / stem, base / "images" / stem, base]
    places += [base / word for word in (stem.rstrip("0123456789"), "JPEGImages", "data")]
    some = names[:: max(1, len(names) // 20)][:20]
    count = {place: sum((place / PurePosixPath(name)).is_file() for name in some) for place in places}
    return max(places, key=lambda place: count[place])
