# SPDX-License-Identifier: Apache-2.0
"""Tables of pictures: what CSV and parquet have in common, and CSV files of paths.

A CSV has a column path, image or file, relative to the CSV, a column `label` and optionally `split`. A file named
train*, val* or test* is that part. `parquet.py` has the other kind.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from featherweight.data.parts import PARTS, Files, Listing
from featherweight.doors import door, read_input, text_of
from featherweight.errors import InputError, closest, shown

MAX_CSV = 256 << 20  # bytes
PATH_COLUMNS = ("path", "image", "file")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}


def part_of(path: Path) -> str | None:
    """train, val, test or None by the first word of a file's name, else by its folder."""
    for name in (path.name, path.parent.name):
        word = re.split(r"[^a-z]", name.lower(), maxsplit=1)[0]
        if word in SPLITS:
            return SPLITS[word]
    return None


def by_part(root: Path, paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Files grouped by part, each group in the order of names; files without a part are train if there is no other."""
    groups: dict[str, list[Path]] = {}
    unknown = []
    for path in sorted(paths, key=os.fsencode):
        part = part_of(path.relative_to(root)) if path != root else "train"
        groups.setdefault(part, []).append(path) if part else unknown.append(path)
    if unknown and groups:
        text = f"is neither train, val nor test by its name, unlike {groups[min(groups)][0].name}"
        raise InputError(unknown[0], "unknown_name", text)
    if unknown:
        groups["train"] = unknown
    if "train" not in groups:
        raise InputError(root, "missing", f"has {min(groups)} but no train part")
    return groups


# ---- labels ----------------------------------------------------------------------------------------------------------


def class_names(labels: set[str]) -> tuple[str, ...]:
    """Sorted: by value if all are whole numbers, else as text."""
    numbers = all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label), label) if numbers else (0, label)))


def numbered(where: object, labels: Sequence[str], classes: tuple[str, ...], rows: Sequence[str]) -> list[int]:
    """Names -> numbers; a name that train has not is an error that says in which row."""
    number = {name: i for i, name in enumerate(classes)}
    for label, row in zip(labels, rows, strict=True):
        if label not in number:
            known = ", ".join(shown(name, limit=40) for name in classes[:8]) + (", ..." if len(classes) > 8 else "")
            text = f"{row}: unknown label {shown(label, limit=60)!r}; {closest(label, classes)}Known: {known}"
            raise InputError(where, "unknown_name", text)
    return [number[label] for label in labels]


# ---- CSV -------------------------------------------------------------------------------------------------------------


def csv_listing(root: Path, paths: Sequence[Path]) -> Listing:
    """The data set in one CSV (with or without a column `split`) or several, one per part."""
    names: dict[str, list[str]] = {}
    labels: dict[str, list[str]] = {}
    places: dict[str, list[str]] = {}
    base = root if root.is_dir() else root.parent
    seen: dict[str, str] = {}
    for part, group in by_part(root, paths).items():
        for path in group:
            for line, row in csv_rows(path):
                where, place = row_part(path, line, row, part), f"{shown(path.name, limit=60)} line {line}"
                name = relative(path, line, row["path"], base)
                if name in seen:
                    raise InputError(path, "duplicate_name", f"line {line}: {shown(name)} is already in {seen[name]}")
                seen[name] = place
                names.setdefault(where, []).append(name)
                labels.setdefault(where, []).append(row["label"])
                places.setdefault(where, []).append(place)
    if "train" not in names:
        raise InputError(root, "empty", "has no rows of the train part" if names else "has no rows")
    classes = class_names(set(labels["train"]))
    parts = {}
    for part in (part for part in PARTS if part in names):
        parts[part] = Files(base, names[part], numbered(root, labels[part], classes, places[part]))
    return Listing(root, "csv", classes, parts)


def csv_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Line number and {"path", "label", "split"?} of each row."""
    text = text_of(read_input(path, max_bytes=MAX_CSV), path)
    with door(path, "bad_row", "is not a CSV file"):
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [name.strip().lower() for name in next(reader, [])]
        columns = csv_columns(path, header)
        found = []
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(path, "bad_row", f"line {reader.line_num}: {len(row)} fields, not {len(header)}")
            values = {key: row[place].strip() for key, place in columns.items()}
            for key in ("path", "label"):
                if not values[key]:
                    raise InputError(path, "bad_row", f"line {reader.line_num}: no {key}")
            found.append((reader.line_num, values))
    return found


def is_listing(path: Path) -> bool:
    """Whether a CSV's first line names a path and a label."""
    with path.open("rb") as file:
        line = file.readline(65536).decode("utf-8-sig", "replace").lower()
    names = [name.strip().strip('"') for name in line.split(",")]
    return "label" in names and any(name in names for name in PATH_COLUMNS)


def csv_columns(path: Path, header: list[str]) -> dict[str, int]:
    """Which column is the path, the label, the split."""
    pictures = [name for name in PATH_COLUMNS if name in header]
    if len(pictures) != 1 or header.count("label") != 1 or header.count(pictures[0]) != 1:
        text = f"needs a first line with one of {', '.join(PATH_COLUMNS)}, and label; it has {', '.join(header[:8])}"
        raise InputError(path, "missing_key", text)
    columns = {"path": header.index(pictures[0]), "label": header.index("label")}
    return {**columns, "split": header.index("split")} if "split" in header else columns


def row_part(path: Path, line: int, row: Mapping[str, str], part: str) -> str:
    """The part a row belongs to."""
    if "split" not in row:
        return part
    if row["split"].lower() not in SPLITS:
        text = f"line {line}: no part {row['split']!r}; {closest(row['split'], SPLITS)}Known: {', '.join(SPLITS)}"
        raise InputError(path, "unknown_name", text)
    return SPLITS[row["split"].lower()]


def relative(path: Path, line: int, name: str, base: Path) -> str:
    """A row's path relative to `base`; it must stay below the folder of its CSV."""
    steps = PurePosixPath(name.replace("\\", "/"))
    if steps.is_absolute() or ".." in steps.parts or re.match(r"[A-Za-z]:|[A-Za-z]+://", name) or "\0" in name:
        text = f"line {line}: {shown(name, limit=100)!r} must be relative to the CSV file and stay below its folder"
        raise InputError(path, "unsafe_path", text)
    return (path.parent.relative_to(base) / steps).as_posix()
