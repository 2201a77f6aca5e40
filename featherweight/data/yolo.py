# SPDX-License-Identifier: Apache-2.0
"""Detection sets as YOLO text: a data.yaml with names and parts, and beside each picture's folder one of label files.

A row is `class xc yc w h` or `class x1 y1 x2 y2 ...` in shares of the sides; each row is read for itself, so boxes and
outlines may be mixed. A picture without a label file, or with an empty one, is background. A data.yaml is data: a
`download` in it is refused, not run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from featherweight.data.objects import Findings, Raw, Ring
from featherweight.data.scenes import Part, safe_name
from featherweight.doors import image, read_input, text_of
from featherweight.doors import yaml as strict_yaml
from featherweight.errors import InputError, closest, shown

PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
KEYS = ("path", "train", "val", "valid", "validation", "test", "names", "nc")
REMARKS = ("author", "authors", "channels", "date", "description", "license", "project", "roboflow", "url", "version")
MAX_LABELS = 16 << 20  # bytes of one label file
MAX_CLASS = 1 << 31
BEYOND = 0.1  # how far beyond 0..1 a box may reach and still be one in shares
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf|infinity)", re.IGNORECASE | re.ASCII)


def description(path: Path, findings: Findings) -> tuple[tuple[str, ...], Mapping[str, list[str]], Path]:
    """A data.yaml: the class names, the entries of each part, and the folder they are relative to."""
    tree = strict_yaml.read(path)
    for key in tree:
        if key not in KEYS and key not in REMARKS:
            hint = "nothing is run or downloaded for a data set; " if key == "download" else closest(str(key), KEYS)
            text = f"no key {shown(key, limit=40)!r} here; {hint}Known: {', '.join(KEYS)}"
            raise InputError(path, "unknown_key", text)
    names = names_of(path, tree, findings)
    base = path.parent
    if tree.get("path") is not None:
        if not isinstance(tree["path"], str):
            raise InputError(path, "bad_schema", "'path' must be the name of a folder")
        base = path.parent / tree["path"]
        base = base if base.is_dir() else path.parent
    parts: dict[str, list[str]] = {}
    for key, part in PARTS.items():
        entries = tree.get(key)
        if entries is None or entries == "":
            continue
        entries = entries if isinstance(entries, list) else [entries]
        if not entries or not all(isinstance(entry, str) and entry for entry in entries):
            raise InputError(path, "bad_schema", f"'{key}' must be a folder, a list file, or several of them")
        if part in parts:
            raise InputError(path, "bad_schema", f"'{key}' and another key both mean {part}; keep one")
        parts[part] = entries
    if "train" not in parts:
        raise InputError(path, "bad_schema", "has no 'train'; it names the folder of the training pictures")
    return names, parts, base


def names_of(path: Path, tree: Mapping[Any, Any], findings: Findings) -> tuple[str, ...]:
    """The class names: a list, or numbers 0, 1, 2 ... with names."""
    names = tree.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            lacks = next(i for i in range(len(names) + 1) if i not in names)
            raise InputError(path, "bad_schema", f"'names' must be numbered 0..{len(names) - 1}; {lacks} is missing")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InputError(path, "bad_schema", "needs 'names': a list of class names, or 0: name, 1: name ...")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            text = f"'names' holds {shown(name, limit=40)}, which is no text; put names such as 'no' or 1 in quotes"
            raise InputError(path, "bad_schema", text)
    count = tree.get("nc")
    if count is not None and count != len(names):
        raise InputError(path, "bad_schema", f"'nc' is {shown(count, limit=40)}, but there are {len(names)} names")
    for name in sorted({name for name in names if names.count(name) > 1}):
        findings.add(path.name, "duplicate_name", f"two classes are named {shown(name, limit=60)!r}", "kept")
    return tuple(names)


def read(path: Path, findings: Findings) -> tuple[dict[str, Part], tuple[str, ...]]:
    """The parts behind a data.yaml, and the class names."""
    names, entries, base = description(path, findings)
    root = Path(os.path.commonpath([base.resolve(), path.parent.resolve()]))
    found: dict[str, Part] = {}
    for part, some in entries.items():
        pictures: list[Path] = []
        for entry in some:
            pictures += _pictures(path, entry, base, findings)
        if not pictures and part == "train":
            raise InputError(path, "empty", f"no pictures in {', '.join(shown(one, limit=60) for one in some)}")
        if pictures:
            found[part] = part_of(root, list(dict.fromkeys(pictures)), len(names), findings)
    rows = sum(len(raws) for part in found.values() for raws in part.raws)
    if not rows:
        looked = labels_of(found["train"].root / found["train"].names[0])
        raise InputError(path, "empty", f"no label file has a row; looked for {shown(looked)} and so on")
    return found, names


def _pictures(path: Path, entry: str, base: Path, findings: Findings) -> list[Path]:
    """The pictures of one entry: a folder, a list of files, or one file."""
    places = [base / entry, path.parent / entry]
    if entry.startswith("../"):  # written for a folder one level below, as some exports are
        places += [base / entry.removeprefix("../"), path.parent / entry.removeprefix("../")]
    place = next((one for one in places if one.exists()), None)
    if place is None:
        raise InputError(path, "missing", f"{shown(entry, limit=100)!r} does not exist below {shown(base)}")
    place = place.resolve()
    if place.is_dir():
        return image.scan(place)
    if place.suffix.lower() != ".txt":
        return [place]
    lines = text_of(read_input(place, max_bytes=256 << 20), place).splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        name = line.strip().replace("\\", "/").removeprefix("./")
        if name and not safe_name(name):
            text = f"line {number}: {shown(name, limit=80)!r} must stay below the folder of the list"
            findings.add(place.name, "unsafe_path", text, "skipped")
        elif name:
            below = place.parent / name
            found.append(below if below.exists() or not (base / name).exists() else (base / name).resolve())
    return found


def labels_of(picture: Path) -> Path:
    """The label file of a picture: the last folder named images becomes labels, else it lies beside the picture."""
    steps = list(picture.parts)
    for i in range(len(steps) - 2, -1, -1):
        if steps[i] == "images":
            other = Path(*steps[:i], "labels", *steps[i + 1 :]).with_suffix(".txt")
            beside = picture.with_suffix(".txt")
            return beside if not other.exists() and beside.exists() else other
    return picture.with_suffix(".txt")


def part_of(root: Path, pictures: Sequence[Path], classes: int, findings: Findings) -> Part:
    """These pictures with their rows; a missing label file is counted and means background."""
    names: list[str] = []
    raws: list[list[Raw]] = []
    for picture in pictures:
        name = Path(os.path.relpath(picture, root)).as_posix()
        labels = labels_of(picture)
        found: list[Raw] = []
        if not labels.exists():
            findings.add(name, "missing", f"no label file {shown(labels.name)}: taken as background", "kept")
        else:
            try:
                found = rows(labels, classes, findings, name=name)
            except InputError as error:  # what lies in the picture cannot be known: it is not background
                findings.add(name, error.reason, f"its labels {shown(labels.name)}: {error.text}", "skipped")
                continue
        names.append(name)
        raws.append(found)
    return Part(root, names, raws)


def rows(path: Path, classes: int, findings: Findings, *, name: str | None = None) -> list[Raw]:
    """The rows of one label file; what cannot be used is dropped by its line number."""
    if path.stat().st_size == 0:
        return []
    text = text_of(read_input(path, max_bytes=MAX_LABELS), path)
    name = path.name if name is None else name
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"{path.name} line {number}"
        problem, raw = _row(fields, where, classes)
        if raw is None:
            findings.add(name, problem, f"{where}: {_WHY[problem]}, not {shown(line, limit=60)!r}", "dropped")
        else:
            found.append(raw)
    return found


_WHY = {
    "bad_row": "a row is `class xc yc w h` or `class x1 y1 x2 y2 x3 y3 ...` with blanks between plain numbers",
    "bad_class": "the class must be a whole number of those in names, counted from 0",
    "bad_box": "the numbers must be finite shares of the sides, 0..1",
}


def _row(fields: list[str], where: str, classes: int) -> tuple[str, Raw | None]:
    """A row, or what is wrong with it."""
    polygon = len(fields) >= 7 and len(fields) % 2 == 1
    if (len(fields) != 5 and not polygon) or not all(map(NUMBER.fullmatch, fields)):
        return "bad_row", None
    number = float(fields[0])
    if not (number == number and abs(number) < MAX_CLASS and number == int(number) and 0 <= number < classes):
        return "bad_class", None
    values = np.array(fields[1:], np.float64)
    if not np.isfinite(values).all():
        return "bad_box", None
    label = int(number)
    if polygon:
        ring: Ring = values.reshape(-1, 2)
        if ring.min() < -BEYOND or ring.max() > 1 + BEYOND:
            return "bad_box", None
        (x1, y1), (x2, y2) = ring.min(0).tolist(), ring.max(0).tolist()
        return "", Raw(where, label, (x1, y1, x2, y2), rings=(ring,), share=True)
    xc, yc, w, h = values.tolist()
    if abs(xc - 0.5) > 0.5 + BEYOND or abs(yc - 0.5) > 0.5 + BEYOND or max(w, h) > 1 + 2 * BEYOND:
        return "bad_box", None
    return "", Raw(where, label, (xc - w / 2, yc - h / 2, xc + w / 2, yc + h / 2), share=True)


# ---- writing ---------------------------------------------------------------------------------------------------------


def line_of(label: int, box: Sequence[float], rings: Sequence[Ring], size: tuple[int, int]) -> str:
    """One row; the outline if there is exactly one ring, else the box."""
    height, width = size
    if len(rings) == 1:
        shares = (rings[0] / (width, height)).ravel()
    else:
        x1, y1, x2, y2 = box
        shares = np.array([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height])
    return " ".join([str(label), *(f"{share:.9g}" for share in shares)])


def described(root: Path) -> Path | None:
    """The data.yaml of a folder, if it has one."""
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (root / name).is_file():
            return root / name
    return None


def relative(name: str) -> PurePosixPath:
    """A picture's name without what would lead outside."""
    return PurePosixPath(*(step for step in PurePosixPath(name).parts if step not in ("..", "/", "\\")))
