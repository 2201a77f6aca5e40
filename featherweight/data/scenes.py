# SPDX-License-Identifier: Apache-2.0
"""A detection set: pictures with their objects in up to three parts, each file decoded once, bad ones left out by name.

Readers (`coco`, `yolo`, `voc`) give `Part`s of raw rows; here the pictures are verified, the rows settled against the
decoded size, what is odd is counted, and all of it gets a fingerprint of names, bytes and labels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from featherweight.data.objects import Findings, Objects, Raw, Table, settle
from featherweight.data.parts import MAX_FILE, Names, Skipped
from featherweight.doors import image, read_input
from featherweight.errors import InputError

CHUNK = 64
Size = tuple[int, int]  # height, width


class Scenes(Protocol):
    """One part of a detection set: pictures (H, W, 3) uint8, decoded when asked for, and what lies in them."""

    sizes: NDArray[np.int64]  # (N, 2) height and width of the upright pictures
    ids: NDArray[np.int64]  # (N,) what a COCO results file calls them

    def __len__(self) -> int: ...
    def picture(self, i: int) -> NDArray[np.uint8]:
        """Picture i, upright RGB."""
        ...

    def objects(self, i: int) -> Objects:
        """What lies in picture i, crowds included."""
        ...

    def names(self, i: int) -> str:
        """What a report calls picture i."""
        ...

    @property
    def outlined(self) -> bool:
        """Whether there are outlines, which copy-paste and paste-in need."""
        ...


@dataclass(frozen=True)
class Scenery:
    """A whole detection set. The test part is for the very end, once."""

    name: str
    format: str
    classes: tuple[str, ...]
    train: Scenes
    val: Scenes
    test: Scenes | None
    fingerprint: str
    category_ids: tuple[int, ...]  # what COCO files call the classes
    findings: Findings
    skipped: tuple[Skipped, ...] = ()
    note: str = ""


@dataclass
class Part:
    """What a reader found of one part: picture names below a folder, raw objects, sizes as declared, ids."""

    root: Path
    names: list[str]
    raws: list[list[Raw]]
    declared: list[Size | None] | None = None
    ids: list[int] | None = None
    sources: tuple[Path, ...] = ()  # annotation files, for the fingerprint


class Pictures:
    """Pictures in files, with a table of objects."""

    def __init__(
        self, root: Path, names: Names, sizes: NDArray[np.int64], ids: NDArray[np.int64], table: Table
    ) -> None:
        self.root, self._names, self.sizes, self.ids, self.table = root, names, sizes, ids, table

    def __len__(self) -> int:
        return len(self.sizes)

    def names(self, i: int) -> str:
        """Path below the root."""
        return self._names[range(len(self))[i]]

    def source(self, i: int) -> Path:
        """Where picture i lies."""
        return self.root / self.names(i)

    def picture(self, i: int) -> NDArray[np.uint8]:
        """Picture i, upright RGB; InputError if the file is another than at the start."""
        found = image.read(self.source(i))
        if found.shape[:2] != tuple(self.sizes[range(len(self))[i]]):
            raise InputError(
                self.source(i), "changed", "has another size than when the data set was read; load it anew"
            )
        return found

    def objects(self, i: int) -> Objects:
        """What lies in picture i."""
        return self.table[range(len(self))[i]]

    @property
    def outlined(self) -> bool:
        """Whether there are outlines."""
        return self.table.outlined

    def take(self, which: NDArray[np.int64]) -> Pictures:
        """Some of them."""
        names = Names([self._names[int(i)] for i in which])
        return Pictures(self.root, names, self.sizes[which], self.ids[which], self.table.take(which))


def safe_name(name: str) -> bool:
    """Whether a name from a file stays below the folder it is joined to."""
    if not name or "\0" in name or "\\" in name or name.startswith("~") or len(name) > 4096 or "://" in name:
        return False
    steps = PurePosixPath(name)
    return not steps.is_absolute() and ".." not in steps.parts and name[1:2] != ":"


# ---- verifying -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A picture that could be decoded: its upright size and the sha256 of its bytes."""

    size: Size
    digest: bytes


def verified(paths: Sequence[Path]) -> Iterator[Seen | InputError]:
    """Decode every file once, a few at a time, in order."""
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), CHUNK):
            yield from pool.map(_examine, paths[start : start + CHUNK])


def _examine(path: Path) -> Seen | InputError:
    try:
        data = read_input(path, max_bytes=MAX_FILE)
        height, width = image.read(data).shape[:2]
    except InputError as error:
        return InputError(path, error.reason, error.text)
    return Seen((height, width), hashlib.sha256(data).digest())


@dataclass
class Settled:
    """A part whose pictures were all looked at."""

    pictures: Pictures
    digests: list[bytes]


def settled(part: Part, classes: int, findings: Findings) -> Settled:
    """Pictures decoded, rows checked against them; what cannot be used is left out by name."""
    names, sizes, ids, objects, digests = [], [], [], [], []
    looked = verified([part.root / name for name in part.names])
    for i, (name, seen) in enumerate(zip(part.names, looked, strict=True)):
        if isinstance(seen, InputError):
            findings.add(name, seen.reason, seen.text, "skipped")
            continue
        declared = part.declared[i] if part.declared else None
        if declared is not None and declared != seen.size:
            _disagrees(name, declared, seen.size, findings)
        found = settle(part.raws[i], name=name, size=seen.size, classes=classes, findings=findings)
        if findings.on_bad == "skip" and name in findings.tainted:
            findings.left_out[name] = ("bad_row", "something is wrong with its annotation, and on_bad=skip")
            continue
        names.append(name)
        sizes.append(seen.size)
        ids.append(part.ids[i] if part.ids else i)
        objects.append(found)
        digests.append(seen.digest)
    frame = np.array(sizes, np.int64).reshape(-1, 2)
    pictures = Pictures(part.root, Names(names), frame, np.array(ids, np.int64), Table.of(objects))
    return Settled(pictures, digests)


def _disagrees(name: str, declared: Size, size: Size, findings: Findings) -> None:
    """The picture's own size counts; boxes are checked against it."""
    swapped = ": the sides are swapped, as by an EXIF orientation" if declared == size[::-1] else ""
    text = f"is {size[1]} x {size[0]} pixels, its annotation says {declared[1]} x {declared[0]}{swapped}"
    findings.add(name, "size_mismatch", text, "repaired")


def fingerprint(classes: Sequence[str], parts: dict[str, Settled]) -> str:
    """sha256 over classes and, per part, every name, digest and object."""
    total = hashlib.sha256(json.dumps([1, *classes]).encode("ascii"))
    for part in sorted(parts):
        one = parts[part]
        total.update(part.encode("ascii"))
        for i, digest in enumerate(one.digests):
            name = os.fsencode(one.pictures.names(i))
            total.update(b"%d " % len(name) + name + digest)
        for field in Table.FIELDS:
            total.update(np.ascontiguousarray(one.pictures.table.arrays[field]).tobytes())
    return total.hexdigest()


def held_out(digests: Sequence[bytes], share: float) -> NDArray[np.bool_]:
    """Which pictures (N,) are split off: a share of them, first by hash; equal files stay together."""
    order = sorted(set(digests))
    taken = set(order[: min(len(order) - 1, max(1, round(share * len(order))))])
    return np.array([digest in taken for digest in digests], bool)
