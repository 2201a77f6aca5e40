# SPDX-License-Identifier: Apache-2.0
"""Detection sets as Pascal VOC: an XML file beside or apart from each picture, parts as lists or as folders.

Boxes count pixels from 1 to the width, both ends inside, as VOC defines it, so xmin 1 is the left edge;
`one_based=False` is for tools that wrote plain coordinates. Classes are the sorted names that occur in the training
part. Objects marked difficult are kept as crowds: never a target, not counted by the evaluation.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featherweight.data.objects import Findings, Raw
from featherweight.data.scenes import Part, Size, safe_name
from featherweight.doors import image, read_input, text_of, xml
from featherweight.errors import InputError, closest, shown

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Page:
    """One annotation file: the picture it names, its declared size, and rows of (where, class name, box, difficult)."""

    path: Path
    filename: str
    size: Size | None
    rows: tuple[tuple[str, str, tuple[float, float, float, float], bool], ...]


def page(path: Path, findings: Findings, *, one_based: bool) -> Page:
    """Read one annotation file; a row that cannot be used is dropped and counted."""
    root = xml.read(path)
    if root.name != "annotation":
        raise InputError(path, "bad_schema", f"its root is <{shown(root.name, limit=40)}>, not <annotation>")
    size: Size | None = None
    frame = root.first("size")
    if frame is not None:
        sides = [xml.number(frame, side, path) for side in ("height", "width")]
        if all(side is not None and math.isfinite(side) and 0 < side < 1 << 20 for side in sides):
            size = (int(sides[0] or 0), int(sides[1] or 0))
    rows = []
    for element in root.all("object"):
        where = f"line {element.line}"
        name, box = element.word("name"), element.first("bndbox")
        if not name or box is None:
            findings.add(path.name, "bad_row", f"{where}: an object needs a <name> and a <bndbox>", "dropped")
            continue
        try:
            sides = [xml.number(box, side, path) for side in SIDES]
        except InputError as error:
            findings.add(path.name, "bad_box", error.text, "dropped")
            continue
        if any(side is None for side in sides):
            findings.add(path.name, "bad_box", f"{where}: a box needs {', '.join(SIDES)}", "dropped")
            continue
        x1, y1, x2, y2 = (math.nan if side is None else side for side in sides)
        shift = 1.0 if one_based else 0.0
        corners = (x1 - shift, y1 - shift, x2, y2)
        rows.append((where, name, corners, element.word("difficult") in ("1", "true", "True")))
    return Page(path, (root.word("filename") or "").strip(), size, tuple(rows))


def is_set(root: Path) -> bool:
    """Whether a folder looks like VOC: Annotations/*.xml, or parts or pictures with XML files beside them."""
    places = [root / "Annotations", *(root / name for name in SPLITS), root]
    return any(next(place.glob("*.xml"), None) is not None for place in places if place.is_dir())


def read(root: Path, findings: Findings, *, one_based: bool = True) -> tuple[dict[str, Part], tuple[str, ...]]:
    """The parts of a folder, and the class names."""
    files = _files(root)
    if not files:
        raise InputError(root, "empty", "has no XML file in Annotations/, in train/ or beside its pictures")
    pages: dict[str, list[Page]] = {}
    for part, paths in files.items():
        pages[part] = []
        for path in paths:
            try:
                pages[part].append(page(path, findings, one_based=one_based))
            except InputError as error:
                findings.add(path.name, error.reason, error.text, "skipped")
    classes = tuple(sorted({row[1] for one in pages["train"] for row in one.rows}))
    if not classes:
        raise InputError(root, "empty", "no object in the training part")
    return {part: _part(root, some, classes, findings) for part, some in pages.items()}, classes


def _files(root: Path) -> dict[str, list[Path]]:
    """The annotation files of each part."""
    every = sorted((root / "Annotations").glob("*.xml")) if (root / "Annotations").is_dir() else []
    if every:
        lists = root / "ImageSets" / "Main"
        listed = [(part, _listed(lists / f"{name}.txt", root)) for name, part in SPLITS.items()]
        found = {part: paths for part, paths in listed if paths}
        if "train" not in found and (lists / "trainval.txt").is_file():
            found["train"] = _listed(lists / "trainval.txt", root)
            found.pop("val", None)
        return found if "train" in found else {"train": every}
    parts: dict[str, list[Path]] = {}
    for name, part in SPLITS.items():
        if (root / name).is_dir() and (below := sorted((root / name).glob("**/*.xml"))):
            parts[part] = parts.get(part, []) + below
    if parts:
        return parts if "train" in parts else {}
    beside = sorted(root.glob("*.xml"))
    return {"train": beside} if beside else {}


def _listed(path: Path, root: Path) -> list[Path]:
    """The annotation files that a list names, one stem a line."""
    if not path.is_file() or path.stat().st_size == 0:
        return []
    stems = [
        line.split()[0] for line in text_of(read_input(path, max_bytes=64 << 20), path).splitlines() if line.strip()
    ]
    for stem in stems:
        if not safe_name(stem):
            raise InputError(path, "unsafe_path", f"{shown(stem, limit=80)!r} must be the name of a picture")
    return [root / "Annotations" / f"{stem}.xml" for stem in dict.fromkeys(stems)]


def _part(root: Path, pages: Sequence[Page], classes: tuple[str, ...], findings: Findings) -> Part:
    """Pictures with their rows; a class that train has not is an error that names it."""
    number = {name: i for i, name in enumerate(classes)}
    names, raws, sizes = [], [], []
    for one in pages:
        name = Path(os.path.relpath(_picture(root, one), root)).as_posix()
        found = []
        for where, word, box, difficult in one.rows:
            if word not in number:
                text = f"{where}: no class {shown(word, limit=60)!r} in train; {closest(word, classes)}"
                findings.add(name, "unknown_category", text, "dropped")
                continue
            found.append(Raw(f"{one.path.name} {where}", number[word], box, crowd=difficult))
        names.append(name)
        raws.append(found)
        sizes.append(one.size)
    return Part(root, names, raws, declared=sizes, sources=tuple(one.path for one in pages))


def _picture(root: Path, one: Page) -> Path:
    """The picture of an annotation: of the file's own name beside it or in JPEGImages, else the one it names."""
    places = [one.path.parent, root / "JPEGImages", root / "images", root]
    stems = [one.path.stem]
    name = one.filename.replace("\\", "/").rpartition("/")[2]
    if safe_name(name):
        for place in places:
            if (place / name).is_file() and Path(name).stem == one.path.stem:
                return place / name
        stems.append(name)
    for place in places:
        for extension in sorted(image.EXTENSIONS):
            for form in (extension, extension.upper()):
                if (place / f"{one.path.stem}{form}").is_file():
                    return place / f"{one.path.stem}{form}"
    named = [place / name for place in places if safe_name(name) and (place / name).is_file()]
    return named[0] if named else places[1] / f"{one.path.stem}.jpg"
