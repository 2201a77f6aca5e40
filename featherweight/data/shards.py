# SPDX-License-Identifier: Apache-2.0
"""WebDataset shards: tar files in which a picture and its label share a name (0001.jpg with 0001.cls or 0001.json).

A shard is looked through once, header by header; afterwards each picture is read from its place in the file, so that
order and augmentation are those of any other data set, and nothing is unpacked. Plain tar only: a compressed one has no
places. Shards are named train-*.tar, val-*.tar, test-*.tar or lie in folders of these names; a pattern such as
data-{0000..0009}.tar names ten of them.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from featherweight.data import tables
from featherweight.data.parts import MAX_FILE, Encoded, Listing, Names
from featherweight.doors import door, image, json, open_input
from featherweight.errors import InputError, OptionError, shown

MAX_SHARD = 1 << 40  # bytes
MAX_HEADER = 1 << 20  # bytes of one read while headers are looked through
MAX_LABEL = 1 << 20  # bytes of a .cls or .json
MAX_SHARDS = 100_000
LABELS = (".cls", ".json")
State = tuple[int, int]  # bytes and time of the last change
BRACES = re.compile(r"\{([^{}]*)\}")


class Shards(Encoded):
    """Pictures at their places in tar files."""

    def __init__(
        self, files: Sequence[tuple[Path, State]], names: Names, labels: NDArray[np.int64], places: NDArray[np.int64]
    ) -> None:
        self._files, self._names, self.labels = tuple(files), names, labels
        self._places = places  # (N, 3): which file, first byte, bytes

    def source(self, i: int) -> bytes:
        """The encoded picture."""
        number, start, size = self._places[range(len(self))[i]].tolist()
        path, then = self._files[number]
        stream, _ = open_input(path, max_bytes=MAX_SHARD)
        with stream, door(path, "unreadable"):
            stream.seek(start)
            data = stream.read(size)
            now = state_of(stream)
        if now != then or len(data) != size:
            raise InputError(path, "changed", "is another file than when the data set was opened; start again")
        return data

    def take(self, which: NDArray[np.int64]) -> Shards:
        """Some of them."""
        names = Names([self._names[int(i)] for i in which])
        return Shards(self._files, names, self.labels[which], self._places[which])


@dataclass
class Sample:
    """What a shard holds under one name."""

    picture: tuple[str, int, int] | None = None  # member, first byte, bytes
    label: dict[str, str] = field(default_factory=dict)  # extension -> label


@dataclass(frozen=True)
class Found:
    """One picture with its label."""

    shard: int
    name: str
    start: int
    size: int
    label: str
    place: str  # for messages


def state_of(stream: BinaryIO) -> State:
    """What tells whether a file is still the one it was."""
    status = os.fstat(stream.fileno())
    return status.st_size, status.st_mtime_ns


def shards_in(root: Path) -> list[Path]:
    """The tar files of a folder and of its folders of parts."""
    inside = [root, *(root / name for name in tables.SPLITS if (root / name).is_dir())]
    return sorted((path for place in inside for path in place.glob("*.tar")), key=os.fsencode)


def expanded(pattern: str) -> list[str]:
    """`{a,b}` and `{0000..0009}`, also inside each other, written out as a shell does; OptionError for a broken one."""
    match = BRACES.search(pattern)
    if match is None:
        if set(pattern) & {"{", "}"}:
            raise OptionError("data", f"{shown(pattern)}: a brace is not closed; write data-{{0000..0009}}.tar")
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    found: list[str] = []
    for part in _alternatives(match[1]):
        found += expanded(f"{before}{part}{after}")
        if len(found) > MAX_SHARDS:
            raise OptionError("data", f"{shown(pattern)} names more than {MAX_SHARDS} files")
    return list(dict.fromkeys(found))  # inner braces come first, and leave what does not hold them twice


def _alternatives(text: str) -> list[str]:
    span = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", text)
    if span is None:
        return text.split(",")
    first, last, width = int(span[1]), int(span[2]), len(span[1])
    if not 0 <= last - first < MAX_SHARDS:
        raise OptionError("data", f"{{{text}}} does not count up, or names more than {MAX_SHARDS} files")
    return [f"{number:0{width}d}" for number in range(first, last + 1)]


def listing(root: Path, paths: Sequence[Path], *, label_column: str) -> Listing:
    """The data set in these shards."""
    groups = tables.by_part(root, paths)
    states: dict[Path, State] = {}
    found = {part: list(_pictures(group, label_column, states)) for part, group in groups.items()}
    if not found["train"]:
        raise InputError(root, "empty", "has no picture with a label in its train shards")
    classes = tables.class_names({one.label for one in found["train"]})
    parts = {}
    for part, some in found.items():
        numbers = tables.numbered(root, [one.label for one in some], classes, [one.place for one in some])
        places = np.array([(one.shard, one.start, one.size) for one in some], np.int64).reshape(-1, 3)
        names = Names([one.name for one in some])
        parts[part] = Shards(
            [(path, states[path]) for path in groups[part]], names, np.array(numbers, np.int64), places
        )
    return Listing(root, "webdataset", classes, parts)


def _pictures(paths: Sequence[Path], column: str, states: dict[Path, State]) -> Iterator[Found]:
    for number, path in enumerate(paths):
        stream, whole = open_input(path, max_bytes=MAX_SHARD)
        with stream:
            states[path] = state_of(stream)
            samples = _samples(path, stream, whole, column)
        for key, sample in samples.items():
            if sample.picture is None:
                continue  # text beside pictures, as some sets have
            if not sample.label:
                text = f"{shown(key, limit=60)} has a picture, but neither {' nor '.join(LABELS)}"
                raise InputError(path, "missing", text)
            if len(set(sample.label.values())) > 1:
                raise InputError(path, "bad_row", f"{shown(key, limit=60)}: .cls and .json have different labels")
            member, start, size = sample.picture
            name = f"{path.name}/{member}"
            place = f"{shown(path.name, limit=60)} {shown(key, limit=60)}"
            yield Found(number, name, start, size, next(iter(sample.label.values())), place)


def _samples(path: Path, stream: BinaryIO, whole: int, column: str) -> dict[str, Sample]:
    """Name without extension -> what is stored under it, in the order of the tar."""
    samples: dict[str, Sample] = {}
    end = 0
    with door(path, "corrupt", "is not a plain tar file (compressed ones have no places to read from)"):
        with tarfile.open(fileobj=_Bounded(stream, path), mode="r:") as tar:
            for member in tar:
                if member.size < 0 or member.offset < end or member.offset_data + member.size > whole:
                    text = f"{shown(member.name, limit=60)} does not lie where it says; copy the file again"
                    raise InputError(path, "truncated", text)
                end = member.offset_data + (
                    -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE if member.isreg() else 0
                )
                folder, _, file = member.name.rpartition("/")
                stem, dot, extension = file.partition(".")
                if member.isreg() and not member.issparse() and stem:  # links and devices are never followed
                    known = samples.setdefault(f"{folder}/{stem}", Sample())
                    _add(known, member, dot + extension.lower(), path, stream, column)
        _check_end(path, stream, end)
    return samples


def _add(sample: Sample, member: tarfile.TarInfo, extension: str, path: Path, stream: BinaryIO, column: str) -> None:
    name = shown(member.name, limit=60)
    if extension in image.EXTENSIONS:
        if sample.picture is not None:
            raise InputError(path, "duplicate_name", f"{name}: a second picture of this name")
        if member.size > MAX_FILE:
            raise InputError(path, "too_large", f"{name} has {member.size} bytes, the limit is {MAX_FILE}")
        sample.picture = member.name, member.offset_data, member.size
    elif extension in LABELS:
        if extension in sample.label:
            raise InputError(path, "duplicate_name", f"{name}: a second label of this name")
        if member.size > MAX_LABEL:
            raise InputError(path, "too_large", f"{name} has {member.size} bytes, the limit is {MAX_LABEL}")
        before = stream.tell()
        stream.seek(member.offset_data)
        data = stream.read(member.size)
        stream.seek(before)
        sample.label[extension] = label_in(data, extension, f"{path.name}/{member.name}", column)


def label_in(data: bytes, extension: str, name: str, column: str) -> str:
    """The label in a .cls (its text) or a .json (a number or text, or the field `column`, `cls` or `class` of it)."""
    if extension == ".cls":
        with door(name, "encoding"):
            text = data.decode("utf-8").strip()
    else:
        value = json.parse(data, name)
        if isinstance(value, dict):
            value = next((value[key] for key in (column, "cls", "class") if key in value), None)
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise InputError(name, "bad_type", f"needs a field {column!r} with a whole number or a text")
        text = str(value)
    if not text or len(text) > 200 or not text.isprintable():
        raise InputError(name, "bad_name", "the label must be a printable text or a whole number")
    return text


def _check_end(path: Path, stream: BinaryIO, end: int) -> None:
    """After the last member come two or more blocks of zeros, and nothing else: tarfile ends at any damage silently."""
    stream.seek(end)
    zeros = 0
    while piece := stream.read(1 << 16):
        if any(piece):
            raise InputError(path, "corrupt", f"has something after byte {end} that is no member; copy it again")
        zeros += len(piece)
    if zeros < 2 * tarfile.BLOCKSIZE:
        raise InputError(path, "truncated", "has no end mark; copy it again")


class _Bounded:
    """A file as tarfile reads it: headers may not ask for much at a time, whatever they say."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream, self._path = stream, path

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise InputError(self._path, "bad_header", f"a header asks for {size} bytes, the limit is {MAX_HEADER}")
        return self._stream.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
