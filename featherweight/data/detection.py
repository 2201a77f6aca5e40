# SPDX-License-Identifier: Apache-2.0
"""Detection sets: COCO JSON, YOLO text with a data.yaml, Pascal VOC or the built-in digits-det, found out by itself.

What a batch for a detector is (made by `data.detection_batches`, read by the detection task):
  image    (B, 3, H, W) float32 0..1, or uint8 0..255 with as_uint8
  targets  (M, 6) float32 rows [image in the batch, class, xc, yc, w, h], the last four shares of the batch's picture
  size     (B, 2) int64 height and width of each picture as it was read
  shape    (B, 6) float32 gain x, gain y, pad left, pad top, net height, net width: `runtime.letterbox.Placement.row`
  index    (B,) int64 which picture of the part it is (the first tile's, where several were mixed)
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featherweight.data import coco, detection_cache, voc, yolo
from featherweight.data.objects import Findings
from featherweight.data.parts import Skipped, TooManyBad
from featherweight.data.scenes import Part, Scenery, Scenes, Settled, fingerprint, held_out, settled
from featherweight.errors import InputError, OptionError, closest, shown

BUILT_IN = ("digits-det",)
ORDER = ("train", "val", "test")


def load(source: str | Path, *, seed: int = 0, **options: Any) -> Scenery:
    """The set behind a built-in name or a path; the options are those of `load_digits` or `load_files`."""
    if isinstance(source, str) and source in BUILT_IN:
        _known("data.digits-det", load_digits, options)
        return load_digits(seed=seed, **options)
    _known("data", load_files, options)
    return load_files(Path(source), **options)


def _known(where: str, build: Any, options: Mapping[str, Any]) -> None:
    known = [name for name, p in inspect.signature(build).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise OptionError(where, f"no {name!r} here; {closest(name, known)}Known: {', '.join(known)}")


def load_digits(*, seed: int = 0, n_train: int = 1200, n_val: int = 240, n_test: int = 240, size: int = 96) -> Scenery:
    """1 to 4 handwritten digits on photographs, with tight boxes; needs no file. The parts share no digit and photo."""
    from featherweight.data import digits_detection

    return digits_detection.load(seed=seed, counts={"train": n_train, "val": n_val, "test": n_test}, size=size)


def load_files(
    root: Path,
    *,
    on_bad: str = "repair",
    max_bad: float = 0.01,
    val_share: float = 0.2,
    images: str | Path | None = None,
    one_based: bool = True,
    cache: str | Path | None = None,
) -> Scenery:
    """A set on disk; every picture is decoded once and every row checked.

    on_bad: "repair" clips boxes, drops what cannot be used and counts both; "skip" leaves out every picture with such a
    row; "refuse" stops at the first. max_bad: largest share of pictures that cannot be used. images: the folder of the
    pictures of COCO files, where it is not found. one_based: how VOC boxes count. cache: a folder that
    remembers what was verified, under a hash of all of it.
    """
    for name, value in (("max_bad", max_bad), ("val_share", val_share)):
        if not 0 <= value <= 1:
            raise OptionError(f"data.{name}", f"must be 0..1, not {value!r}")
    findings = Findings(on_bad)
    kind, parts, classes, ids = read_parts(root, findings, images=images, one_based=one_based)
    done: dict[str, Settled] = {}
    for name in (name for name in ORDER if name in parts):
        done[name] = detection_cache.settled(parts[name], len(classes), findings, cache, settle=settled)
    skipped = [Skipped(path, *why) for path, why in sorted(findings.left_out.items())]
    _check_share(root, skipped, sum(len(part.digests) for part in done.values()), max_bad)
    notes = []
    if "val" not in done:
        notes.append(_split(done, val_share))
    for name, part in done.items():
        if not len(part.pictures):
            raise InputError(root, "empty", f"no usable picture in the {name} part")
    notes += _notes(done, classes)
    mark = fingerprint(classes, done)
    test: Scenes | None = done["test"].pictures if "test" in done else None
    found = Scenery(
        root.resolve().stem, kind, classes, done["train"].pictures, done["val"].pictures, test, mark, ids, findings
    )
    return replace(found, skipped=tuple(skipped), note="; ".join(notes))


def read_parts(
    root: Path, findings: Findings, *, images: str | Path | None = None, one_based: bool = True
) -> tuple[str, dict[str, Part], tuple[str, ...], tuple[int, ...]]:
    """Which format this is, its parts before any picture is looked at, the classes and their ids."""
    folder = Path(images) if images is not None else None
    if root.is_file() and root.suffix.lower() == ".json":
        return _coco({"train": root}, folder, findings)
    if root.is_file() and root.suffix.lower() in (".yaml", ".yml"):
        parts, classes = yolo.read(root, findings)
        return "yolo", parts, classes, tuple(range(len(classes)))
    if root.is_file():
        raise InputError(root, "unsupported_format", "a detection set is a folder, a COCO .json or a data.yaml")
    if not root.is_dir():
        text = f"no such file or folder; {closest(str(root), BUILT_IN)}Built in: {', '.join(BUILT_IN)}"
        raise InputError(root, "missing", text)
    if (path := yolo.described(root)) is not None:
        parts, classes = yolo.read(path, findings)
        return "yolo", parts, classes, tuple(range(len(classes)))
    if files := coco.files_in(root):
        if "train" not in files:
            raise InputError(root, "missing", f"has {min(files)} but no train part; name one file to use it alone")
        return _coco(files, folder, findings)
    if voc.is_set(root):
        parts, classes = voc.read(root, findings, one_based=one_based)
        return "voc", parts, classes, tuple(range(len(classes)))
    text = "no detection set: looked for data.yaml, annotations/instances_*.json, train.json and Annotations/*.xml"
    raise InputError(root, "empty", text)


def is_detection(root: Path) -> bool:
    """Whether a path looks like a detection set, by names alone."""
    if str(root) in BUILT_IN:
        return True
    if root.is_file():
        return root.suffix.lower() in (".json", ".yaml", ".yml")
    if not root.is_dir():
        return False
    try:
        return yolo.described(root) is not None or bool(coco.files_in(root)) or voc.is_set(root)
    except InputError:
        return True


def _coco(
    files: Mapping[str, Path], folder: Path | None, findings: Findings
) -> tuple[str, dict[str, Part], tuple[str, ...], tuple[int, ...]]:
    parts: dict[str, Part] = {}
    first: coco.Categories | None = None
    for name in (name for name in ORDER if name in files):
        parts[name], categories = coco.read(files[name], folder, findings)
        if first is not None and categories != first:
            text = f"its categories differ from those of {files['train'].name}; ids and names must be the same"
            raise InputError(files[name], "bad_schema", text)
        first = categories
    if first is None:
        raise InputError("data", "missing", "there is no annotation file")
    return "coco", parts, first.names, first.ids


def _check_share(root: Path, skipped: list[Skipped], used: int, max_bad: float) -> None:
    total = used + len(skipped)
    if len(skipped) <= max_bad * total:
        return
    some = ", ".join(f"{shown(one.path, limit=60)} ({one.reason})" for one in skipped[:5])
    more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    text = f"{len(skipped)} of {total} pictures cannot be used, more than max_bad={max_bad:g} allows: {some}{more}"
    error = TooManyBad(root, "corrupt", text)
    error.skipped = tuple(skipped)
    raise error


def _split(done: dict[str, Settled], share: float) -> str:
    """Take a validation part out of train."""
    train = done["train"]
    away = held_out(train.digests, share)
    for name, which in (("val", np.flatnonzero(away)), ("train", np.flatnonzero(~away))):
        done[name] = Settled(train.pictures.take(which), [train.digests[i] for i in which])
    return f"no validation part: {share:.0%} split off train by a hash of the bytes"


def _notes(done: Mapping[str, Settled], classes: tuple[str, ...]) -> list[str]:
    """What a user should know: pictures in two parts, classes without an object."""
    notes = []
    known = set(done["train"].digests)
    for name, part in done.items():
        both = sum(digest in known for digest in part.digests) if name != "train" else 0
        if both:
            notes.append(f"{both} of {len(part.digests)} {name} pictures are in train, too")
        table = part.pictures.table
        there = set(np.unique(table.arrays["labels"][~table.arrays["crowd"].astype(bool)]).tolist())
        lacking = [label for k, label in enumerate(classes) if k not in there]
        if lacking:
            some = ", ".join(shown(label, limit=40) for label in lacking[:5]) + (", ..." if len(lacking) > 5 else "")
            notes.append(f"{name} has no object of {len(lacking)} of {len(classes)} classes: {some}")
    return notes
