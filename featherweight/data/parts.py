# SPDX-License-Identifier: Apache-2.0
"""What a data set is, and the way from a list of files to one: every file decoded once, bad ones left out by name.

Order, split and fingerprint depend on names and bytes only, never on where the data lies or how a disk lists it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from featherweight.doors import image, read_input
from featherweight.errors import InputError, shown

PARTS = ("train", "val", "test")
CHUNK = 64  # files verified between two looks at the result
MAX_FILE = 512 << 20  # bytes of one picture


class Images(Protocol):
    """One part of a data set: pictures (H, W, 3) uint8 with their labels, decoded when asked for."""

    labels: NDArray[np.int64]

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> tuple[NDArray[np.uint8], int]: ...
    def names(self, i: int) -> str:
        """What a report calls picture i."""
        ...


class Stored(Images, Protocol):
    """Images that lie in files."""

    def source(self, i: int) -> Path | bytes:
        """What the image reader is given for picture i."""
        ...

    def take(self, which: NDArray[np.int64]) -> Stored:
        """Some of them."""
        ...


@dataclass(frozen=True)
class Skipped:
    """A file that is left out: its name inside the data set, a reason code, and a few words."""

    path: str
    reason: str
    text: str = ""


@dataclass(frozen=True)
class Data:
    """A data set in up to three parts. The test part is for the very end, once."""

    name: str
    format: str
    classes: tuple[str, ...]
    train: Images
    val: Images
    test: Images | None
    fingerprint: str  # sha256 of everything that the pictures and labels depend on
    skipped: tuple[Skipped, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Listing:
    """What a reader found, before any picture is decoded; without "val", that part is split off "train"."""

    root: Path
    format: str
    classes: tuple[str, ...]
    parts: Mapping[str, Stored]
    notes: tuple[str, ...] = ()


class TooManyBad(InputError):
    """More files cannot be read than `max_bad` allows; `skipped` is the whole list."""

    skipped: tuple[Skipped, ...] = ()


class Names:
    """Many names in few bytes: one block and where each ends."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._block = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return os.fsdecode(self._block[self._ends[i] : self._ends[i + 1]])


class Encoded:
    """Pictures that are decoded when they are asked for; `source` says what of."""

    labels: NDArray[np.int64]
    _names: Names

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[NDArray[np.uint8], int]:
        return image.read(self.source(i)), int(self.labels[i])

    def names(self, i: int) -> str:
        """What picture i is called in messages: its path from the root, or file and row."""
        return self._names[range(len(self))[i]]

    def source(self, i: int) -> Path | bytes:
        """Where picture i lies, or its bytes."""
        raise TypeError(f"{type(self).__name__} does not say where its pictures are")


class Files(Encoded):
    """Pictures in files of their own, named relative to a root."""

    def __init__(self, root: Path, names: Sequence[str] | Names, labels: Sequence[int] | NDArray[np.int64]) -> None:
        self.root = root
        self._names = names if isinstance(names, Names) else Names(names)
        self.labels = np.asarray(labels, dtype=np.int64)

    def source(self, i: int) -> Path:
        """Where picture i lies."""
        return self.root / self.names(i)

    def take(self, which: NDArray[np.int64]) -> Files:
        """Some of them."""
        return Files(self.root, [self._names[int(i)] for i in which], self.labels[which])


def verify(images: Stored) -> tuple[NDArray[np.uint8], dict[int, InputError]]:
    """Decode every picture once: sha256 of the bytes of each (N, 32), and why some cannot be used, by index."""
    digests = np.zeros((len(images), 32), np.uint8)
    bad: dict[int, InputError] = {}
    for i, found in _verified(images):
        if isinstance(found, InputError):
            bad[i] = found
        else:
            digests[i] = np.frombuffer(found, np.uint8)
    return digests, bad


def _verified(images: Stored) -> Iterator[tuple[int, bytes | InputError]]:
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, len(images), CHUNK):
            chunk = range(start, min(start + CHUNK, len(images)))
            yield from zip(chunk, pool.map(_examine, (images.source(i) for i in chunk)), strict=True)


def _examine(source: Path | bytes) -> bytes | InputError:
    try:
        data = source if isinstance(source, bytes) else read_input(source, max_bytes=MAX_FILE)
        image.read(data)
    except InputError as error:
        return error
    return hashlib.sha256(data).digest()


def assemble(listing: Listing, *, max_bad: float, val_share: float) -> Data:
    """Verify everything, leave out what is broken, split if need be."""
    digests: dict[str, NDArray[np.uint8]] = {}
    parts: dict[str, Stored] = {}
    skipped: list[Skipped] = []
    clutter = 0
    for part in (part for part in PARTS if part in listing.parts):
        images = listing.parts[part]
        marks, bad = verify(images)
        skipped += [Skipped(images.names(i), error.reason, error.text) for i, error in bad.items()]
        clutter += sum(is_clutter(listing, images.names(i), error) for i, error in bad.items())
        keep = np.array([i for i in range(len(images)) if i not in bad], dtype=np.int64)
        parts[part], digests[part] = images.take(keep), marks[keep]
    _check_share(listing, skipped, clutter, max_bad)
    notes = list(listing.notes)
    if "val" not in parts:
        val = hashed(parts["train"].labels, digests["train"], val_share)
        for part, which in (("val", np.flatnonzero(val)), ("train", np.flatnonzero(~val))):
            source, marks = parts["train"], digests["train"]
            parts[part], digests[part] = source.take(which), marks[which]
        notes.append(f"no validation part: {val_share:.0%} of each class split off train by a hash of the bytes")
    _check_classes(listing, parts, notes)
    notes += shared(digests)
    mark = fingerprint(listing.classes, parts, digests)
    skipped.sort(key=lambda one: os.fsencode(one.path))
    found = Data(listing.root.resolve().name, listing.format, listing.classes, parts["train"], parts["val"], None, mark)
    return replace(found, test=parts.get("test"), skipped=tuple(skipped), note="; ".join(notes))


def is_clutter(listing: Listing, name: str, error: InputError) -> bool:
    """Whether a file in a class folder claims to be a picture neither by its name nor by its content."""
    named = os.path.splitext(name)[1].lower() in image.EXTENSIONS
    return listing.format == "folder" and not named and error.reason in ("not_an_image", "empty")


def _check_share(listing: Listing, skipped: list[Skipped], clutter: int, max_bad: float) -> None:
    """Clutter is listed, but does not stop a run: it was never meant to be a picture."""
    total = sum(len(images) for images in listing.parts.values()) - clutter
    if len(skipped) - clutter <= max_bad * total:
        return
    some = ", ".join(f"{shown(one.path, limit=60)} ({one.reason})" for one in skipped[:5])
    more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    share = f"{len(skipped)} of {total} files cannot be used, more than max_bad={max_bad:g} allows: {some}{more}"
    error = TooManyBad(listing.root, "corrupt", share)
    error.skipped = tuple(skipped)
    raise error


def _check_classes(listing: Listing, parts: Mapping[str, Stored], notes: list[str]) -> None:
    for part, images in parts.items():
        counts = np.bincount(images.labels, minlength=len(listing.classes))
        lacking = [name for name, count in zip(listing.classes, counts, strict=True) if not count]
        had = {listing.classes[k] for k in np.unique(listing.parts["train"].labels)}
        lost = [name for name in lacking if name in had] if part == "train" else []
        if not len(images) or lost:
            what = f"of class {lost[0]!r} " if lost else ""
            raise InputError(listing.root, "empty", f"no usable images {what}in the {part} part")
        if lacking:
            some = ", ".join(shown(name, limit=40) for name in lacking[:5]) + (", ..." if len(lacking) > 5 else "")
            notes.append(f"{part} has no image of {len(lacking)} of {len(listing.classes)} classes: {some}")


def hashed(labels: NDArray[np.int64], digests: NDArray[np.uint8], share: float) -> NDArray[np.bool_]:
    """Which samples (N,) are split off: `share` of each class, first by hash; equal files stay together."""
    chosen = np.zeros(len(labels), dtype=bool)
    keys = [digest.tobytes() for digest in digests]
    taken: set[bytes] = set()
    for label in np.unique(labels):
        mine = sorted(np.flatnonzero(labels == label).tolist(), key=lambda i: keys[i])
        wanted = min(len(mine) - 1, max(1, round(share * len(mine))))
        taken |= {keys[i] for i in mine[:wanted]}
    for i, key in enumerate(keys):
        chosen[i] = key in taken
    return chosen


def shared(digests: Mapping[str, NDArray[np.uint8]]) -> list[str]:
    """A note for each part that has pictures of train, byte for byte."""
    known = {digest.tobytes() for digest in digests["train"]}
    found = {part: sum(d.tobytes() in known for d in some) for part, some in digests.items() if part != "train"}
    return [
        f"{count} of {len(digests[part])} {part} pictures are in train, too" for part, count in found.items() if count
    ]


def fingerprint(classes: Sequence[str], parts: Mapping[str, Stored], digests: Mapping[str, NDArray[np.uint8]]) -> str:
    """sha256 over the classes and, per part, every name, label and digest."""
    total = hashlib.sha256(json.dumps([1, *classes]).encode("ascii"))
    for part in sorted(parts):
        total.update(part.encode("ascii"))
        for i, digest in enumerate(digests[part]):
            name = os.fsencode(parts[part].names(i))
            total.update(b"%d %d " % (int(parts[part].labels[i]), len(name)) + name + digest.tobytes())
    return total.hexdigest()
