# SPDX-License-Identifier: Apache-2.0
"""A folder of class folders: train/<class>/*, val (or valid, validation)/<class>/*, test/<class>/*, or <class>/* alone.

Classes are the sorted names of the folders. Hidden entries are not looked at; every other file is read by its content,
whatever its extension, and one that is no picture is left out by name.
"""

from __future__ import annotations

import os
from pathlib import Path

from featherweight.data.parts import Files, Listing
from featherweight.doors import image
from featherweight.errors import InputError, closest, shown

CLUTTER = ("Thumbs.db", "desktop.ini", "ehthumbs.db")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
FORMATS = " ".join(sorted(extension[1:] for extension in image.EXTENSIONS))


def folders(root: Path) -> list[str]:
    """Names of the folders in a folder, sorted, hidden ones left out."""
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__MACOSX")))


def contents(root: Path) -> str:
    """A few names, for a message."""
    names = sorted(os.listdir(root))
    some = ", ".join(shown(name, limit=30) for name in names[:6])
    return some + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "nothing"


def nothing_found(root: Path) -> InputError:
    """The error for a folder in which no data set is recognized."""
    text = (
        f"no images found: looked for class folders with {FORMATS} files, below train/ and val/ or alone, "
        f"for *.parquet and for *.csv with path and label; it holds {contents(root)}"
    )
    return InputError(root, "empty", text)


def listing(root: Path) -> Listing:
    """The data set in a folder of class folders."""
    inside = folders(root)
    parts = {part: name for name, part in SPLITS.items() if name in inside}
    doubled = [name for name in inside if name in SPLITS and parts[SPLITS[name]] != name]
    if doubled:
        names = f"{doubled[0]}/ and {parts[SPLITS[doubled[0]]]}/"
        raise InputError(root, "duplicate_name", f"has {names}, which mean the same part; keep one")
    if "train" not in parts and "val" in parts:
        raise InputError(root, "missing", f"has {parts['val']}/ but no train/")
    if "train" not in parts:
        classes = classes_of(root)
        return Listing(root, "folder", classes, {"train": files(root, "", classes)})
    classes = classes_of(root / "train")
    found = {}
    for part, name in parts.items():
        check_same(root / name, classes, folders(root / name))
        found[part] = files(root, name, classes)
    others = [name for name in inside if name not in SPLITS]
    notes = (f"not read: {', '.join(shown(n, limit=40) for n in others[:5])}",) if others else ()
    return Listing(root, "folder", classes, found, notes)


def classes_of(root: Path) -> tuple[str, ...]:
    """The class names: at least two folders, with names that can be written down."""
    names = folders(root)
    if not any(image.scan(root / name) for name in names):
        raise nothing_found(root)
    for name in names:
        if not name.isprintable():  # an undecodable byte is a surrogate, which is not printable
            raise InputError(root / name, "bad_name", "the name of a class folder must be printable UTF-8 text")
    if len(names) < 2:
        raise InputError(root, "missing", f"has one class folder, {names[0]!r}: at least two classes are needed")
    return tuple(names)


def check_same(root: Path, classes: tuple[str, ...], found: list[str]) -> None:
    """Whether a part has the class folders of train, no fewer and no others."""
    for name in found:
        if name not in classes:
            known = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
            text = f"no class {name!r} in train/; {closest(name, classes)}Known: {known}"
            raise InputError(root / name, "unknown_name", text)
    for name in classes:
        if name not in found:
            text = f"has no folder {name!r}, a class of train/; every class needs pictures in every part"
            raise InputError(root, "missing", text)


def files(root: Path, part: str, classes: tuple[str, ...]) -> Files:
    """The pictures of a part; a class folder without files is an error."""
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        pictures = image.scan(root / part / name)
        below = {path.relative_to(root) for path in [*pictures, *others(root / part / name)]}
        visible = [path.as_posix() for path in below if not any(step.startswith(".") for step in path.parts)]
        if not pictures:
            text = f"no images of class {name!r}: looked for {FORMATS}; it holds {contents(root / part / name)}"
            raise InputError(root / part / name, "empty", text)
        names += sorted(visible, key=os.fsencode)
        labels += [label] * len(visible)
    return Files(root, names, labels)


def others(root: Path) -> list[Path]:
    """Files below a folder without a picture's extension, but for what desktops leave behind."""
    found = [Path(place) / name for place, _, names in os.walk(root) for name in names if name not in CLUTTER]
    return [path for path in found if path.suffix.lower() not in image.EXTENSIONS]
