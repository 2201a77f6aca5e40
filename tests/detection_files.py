# SPDX-License-Identifier: Apache-2.0
"""Small detection sets on disk, in the three formats, for the tests."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48
CATEGORIES = ({"id": 1, "name": "cat"}, {"id": 3, "name": "big dog"}, {"id": 90, "name": "牙刷"})
BOXES = ((0, 4.0, 6.0, 20.0, 30.0), (1, 10.0, 10.0, 40.0, 44.0), (2, 30.0, 2.0, 63.0, 20.0))  # label, xyxy


def picture(number: int, *, size: tuple[int, int] = (WIDTH, HEIGHT), form: str = "PNG", **options: Any) -> bytes:
    """A picture that differs from every other number's."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def annotation(number: int, image: int, label: int, xyxy: Sequence[float], **more: Any) -> dict[str, Any]:
    x1, y1, x2, y2 = xyxy
    box = [x1, y1, x2 - x1, y2 - y1]
    known = {"id": number, "image_id": image, "category_id": CATEGORIES[label]["id"], "bbox": box, "iscrowd": 0}
    return {**known, "area": (x2 - x1) * (y2 - y1), **more}


def coco_tree(pictures: Sequence[str], annotations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    images = [{"id": 7 + 2 * i, "file_name": n, "width": WIDTH, "height": HEIGHT} for i, n in enumerate(pictures)]
    return {"images": images, "annotations": list(annotations), "categories": list(CATEGORIES)}


def coco(root: Path, *, parts: Sequence[str] = ("train", "val"), pictures: int = 4) -> Path:
    """annotations/instances_PART2017.json and PART2017/; the last picture of each part has no object."""
    for p, part in enumerate(parts):
        names = [f"{part} {i} é.png" for i in range(pictures)]
        for i, name in enumerate(names):
            put(root / f"{part}2017" / name, picture(100 * p + i))
        rows = [
            annotation(10 * i + k, 7 + 2 * i, label, box)
            for i in range(pictures - 1)
            for k, (label, *box) in enumerate(BOXES)
        ]
        put(root / "annotations" / f"instances_{part}2017.json", json.dumps(coco_tree(names, rows)))
    return root


def yolo_rows(boxes: Sequence[Sequence[float]] = BOXES, *, size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    w, h = size
    lines = [
        f"{int(k)} {(a + c) / 2 / w:.6f} {(b + d) / 2 / h:.6f} {(c - a) / w:.6f} {(d - b) / h:.6f}"
        for k, a, b, c, d in boxes
    ]
    return "\n".join(lines) + "\n"


def yolo(root: Path, *, parts: Sequence[str] = ("train", "val"), pictures: int = 4) -> Path:
    """images/PART, labels/PART and data.yaml."""
    for p, part in enumerate(parts):
        for i in range(pictures):
            put(root / "images" / part / f"pic {i}.png", picture(100 * p + i))
            put(root / "labels" / part / f"pic {i}.txt", yolo_rows() if i < pictures - 1 else "")
    lines = [f"{part}: images/{part}" for part in parts]
    names = [f"  {k}: {category['name']}" for k, category in enumerate(CATEGORIES)]
    put(root / "data.yaml", "\n".join([*lines, "nc: 3", "names:", *names, ""]))
    return root


def voc_page(name: str, boxes: Sequence[Sequence[float]] = BOXES, *, difficult: Sequence[int] = ()) -> str:
    """Counted from 1, as VOC does."""
    rows = [
        f"<object><name>{CATEGORIES[int(k)]['name']}</name><difficult>{int(i in difficult)}</difficult><bndbox>"
        f"<xmin>{a + 1}</xmin><ymin>{b + 1}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for i, (k, a, b, c, d) in enumerate(boxes)
    ]
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{size}{''.join(rows)}</annotation>"


def voc(root: Path, *, parts: Sequence[str] = ("train", "val"), pictures: int = 4) -> Path:
    """Annotations, JPEGImages and ImageSets/Main."""
    for p, part in enumerate(parts):
        stems = [f"{part}_{i}" for i in range(pictures)]
        for i, stem in enumerate(stems):
            put(root / "JPEGImages" / f"{stem}.png", picture(100 * p + i))
            put(root / "Annotations" / f"{stem}.xml", voc_page(f"{stem}.png", BOXES if i < pictures - 1 else ()))
        put(root / "ImageSets" / "Main" / f"{part}.txt", "\n".join(stems) + "\n")
    return root
