# SPDX-License-Identifier: Apache-2.0
"""A compact file: named tensors, each coded and with a checksum of its own, read one by one or all at once.

    8 bytes   "\\x89FWZ\\r\\n\\x1a\\n"
    4 bytes   format, 1
    4 bytes   length of the header
    4 bytes   CRC-32 of the sixteen bytes before and the header
    header    JSON, deflated: who wrote it, the model's record, the tensors in order, the graph
    streams   of the first tensor, of the second, ... up to the end of the file

A file is explained to its last byte or refused; a damaged tensor is named. Written without torch and read without it.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import featherweight
from featherweight.doors import Path, door, open_input
from featherweight.doors import json as strict_json
from featherweight.doors.stored import DTYPES, Stored
from featherweight.errors import InputError, OptionError, shown
from featherweight.files import PathLike, publish

from .streams import AUTO, CODERS, LONGEST, Coded
from .tensors import KINDS, ORDERS, Packed, check, pack, unpack

SUFFIX = ".fwz"
MAGIC = b"\x89FWZ\r\n\x1a\n"
FORMAT = 1
MAX_BYTES = 16 << 30
MAX_HEADER = 32 << 20  # bytes, inflated
MAX_LOADED = 64 << 30  # bytes of all tensors together
_START = struct.Struct("<8sIII")
_KEYS = {"writer", "record", "tensors", "graph"}
Hole = tuple[int, str]  # where in the bytes of a graph the bytes of a tensor stand


@dataclass(frozen=True)
class Entry:
    """What the header says of one tensor: its form without the streams' bytes, where these are, their checksum."""

    packed: Packed
    sizes: tuple[int, ...]
    begin: int
    crc: int

    @property
    def nbytes(self) -> int:
        """On disk."""
        return sum(self.sizes)


class Container:
    """An open compact file. Its tensors are read, checked and decoded when asked for."""

    def __init__(self, path: Path, stream: BinaryIO, size: int) -> None:
        self._path, self._stream = path, stream
        head, self._start = _header(path, stream, size)
        self.writer: str = head["writer"]
        self.record: str = head["record"]
        self.entries = _entries(head["tensors"], self._start, size, path)
        self.graph = _holes(head["graph"], self.entries, path)

    def tensor(self, name: str) -> Stored:
        """One tensor, bit for bit as it was written; InputError names it where its bytes are not those written."""
        entry = self.entries[name]
        label = f"tensor '{shown(name, limit=80)}'"
        self._stream.seek(entry.begin)
        data = self._stream.read(entry.nbytes)
        if len(data) != entry.nbytes:
            raise InputError(self._path, "truncated", f"{label} ends before it should")
        if zlib.crc32(data) != entry.crc:
            text = f"{label}: the bytes differ from those that were written; copy or make the file again"
            raise InputError(self._path, "checksum", text)
        view, streams, place = memoryview(data), [], 0
        for stream, size in zip(entry.packed.streams, entry.sizes, strict=True):
            streams.append(Coded(stream.coder, stream.count, view[place : place + size]))
            place += size
        form = entry.packed
        with door(self._path, "corrupt", f"{label} cannot be decoded"):
            found = unpack(Packed(form.dtype, form.shape, form.kind, form.order, tuple(streams)))
            if not found.is_well_formed():
                raise ValueError("truth values other than 0 and 1")
        return found

    def tensors(self) -> dict[str, Stored]:
        """All of them."""
        return {name: self.tensor(name) for name in self.entries}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Container]:
    """The file, its header checked. Raises InputError for what is not a compact file, or is damaged."""
    stream, size = open_input(path, max_bytes=MAX_BYTES)
    with stream, door(path, "corrupt"):
        yield Container(path, stream, size)


def write(
    path: PathLike,
    tensors: Mapping[str, Stored],
    *,
    record: str = "",
    coder: str = AUTO,
    graph: Sequence[Hole] | None = None,
) -> dict[str, Packed]:
    """Publish tensors as one compact file; what each became. Equal input gives equal bytes.

    record: the text of a model's `Record`. graph: see `graph.py`.
    """
    packed = {name: pack(tensor, coder=coder) for name, tensor in tensors.items()}
    rows, pieces = [], []
    for name, one in packed.items():
        data = b"".join(stream.data for stream in one.streams)
        streams = [[CODERS.index(s.coder), s.count, len(s.data)] for s in one.streams]
        form = [KINDS.index(one.kind), ORDERS.index(one.order)]
        rows.append([name, one.dtype, list(one.shape), form, streams, zlib.crc32(data)])
        pieces.append(data)
    head = {
        "writer": featherweight.__version__,
        "record": record,
        "tensors": rows,
        "graph": None if graph is None else [list(hole) for hole in graph],
    }
    text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
    if len(text) > MAX_HEADER:
        raise OptionError("tensors", f"{len(rows)} of them have a header of {len(text)} bytes; at most {MAX_HEADER}")
    body = zlib.compress(text, 9)
    start = struct.pack("<8sII", MAGIC, FORMAT, len(body))
    publish(path, [start, struct.pack("<I", zlib.crc32(body, zlib.crc32(start))), body, *pieces])
    return packed


def _header(path: Path, stream: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header, and where the streams begin."""
    start = stream.read(_START.size)
    if start[: len(MAGIC)] != MAGIC[: len(start)]:
        raise InputError(path, "not_an_artifact", "is not a compact file of ours")
    if len(start) < _START.size:
        raise InputError(path, "truncated", f"ends after {size} bytes, inside the header")
    _, version, length, crc = _START.unpack(start)
    if length > size - _START.size:
        text = f"the header claims {length} bytes, {size - _START.size} follow; it ends early, or was changed"
        raise InputError(path, "truncated", text)
    body = stream.read(length)
    if zlib.crc32(body, zlib.crc32(start[:16])) != crc:
        raise InputError(path, "checksum", "the header differs from what was written; copy or make the file again")
    reader = zlib.decompressobj()
    inflated = reader.decompress(body, MAX_HEADER + 1)
    if len(inflated) > MAX_HEADER or not reader.eof or reader.unused_data:
        raise InputError(path, "bad_header", f"the header is no deflated text of at most {MAX_HEADER} bytes")
    head = strict_json.parse(inflated, path)
    writer = head.get("writer") if isinstance(head, dict) else None
    if version != FORMAT:
        known = f"; featherweight {shown(writer, limit=20)} wrote it and reads it" if isinstance(writer, str) else ""
        raise InputError(path, "version", f"has format {version}, this version reads {FORMAT}{known}: update it")
    if not isinstance(head, dict) or set(head) != _KEYS or not isinstance(head["tensors"], list):
        raise InputError(path, "bad_header", f"the header must have exactly {', '.join(sorted(_KEYS))}")
    if not isinstance(writer, str) or not isinstance(head["record"], str):
        raise InputError(path, "bad_header", "writer and record must be texts")
    return head, _START.size + length


def _entries(rows: list[Any], begin: int, size: int, path: Path) -> dict[str, Entry]:
    """name -> entry; together they cover the rest of the file exactly."""
    found: dict[str, Entry] = {}
    total = 0
    for row in rows:
        name = row[0] if isinstance(row, list) and row and isinstance(row[0], str) else ""
        label = f"tensor '{shown(name, limit=80)}'"
        try:
            entry = _entry(row, begin)
        except (ValueError, TypeError, IndexError) as error:
            raise InputError(path, "bad_header", f"{label}: {error}") from error
        if name in found:
            raise InputError(path, "duplicate_name", f"{label} comes twice")
        begin += entry.nbytes
        total += math.prod(entry.packed.shape) * DTYPES[entry.packed.dtype][2]
        if begin > size:
            raise InputError(path, "truncated", f"{label} ends at byte {begin} of {size}")
        if total > MAX_LOADED:
            raise InputError(path, "too_large", f"{label}: {total} bytes of tensors; at most {MAX_LOADED}")
        found[name] = entry
    if begin != size:
        raise InputError(path, "trailing", f"{size - begin} bytes after the last tensor belong to nothing")
    return found


def _entry(row: Any, begin: int) -> Entry:
    """One row of the header, compared with itself; ValueError, TypeError or IndexError where it does not fit."""
    _, dtype, shape, (kind, order), streams, crc = row
    if dtype not in DTYPES:
        raise ValueError(f"the unknown dtype {shown(dtype, limit=20)}")
    if not isinstance(shape, list) or len(shape) > 64 or not _counts(shape) or math.prod(shape) > LONGEST:
        raise ValueError(f"the shape {shown(shape, limit=60)} is none, or has more than {LONGEST} numbers")
    if not _counts([crc, kind, order]) or not all(len(one) == 3 and _counts(one) for one in streams):
        raise ValueError("what should be whole numbers is something else")
    made = tuple(Coded(CODERS[coder], count, b"") for coder, count, _ in streams)
    packed = Packed(dtype, tuple(shape), KINDS[kind], ORDERS[order], made)
    check(packed)
    return Entry(packed, tuple(size for _, _, size in streams), begin, crc)


def _counts(values: Sequence[Any]) -> bool:
    return all(type(n) is int and 0 <= n < 1 << 40 for n in values)


def _holes(rows: Any, entries: Mapping[str, Entry], path: Path) -> tuple[Hole, ...] | None:
    if rows is None:
        return None
    fits = isinstance(rows, list) and all(
        isinstance(row, list) and len(row) == 2 and _counts(row[:1]) and isinstance(row[1], str) and row[1] in entries
        for row in rows
    )
    if not fits:
        raise InputError(path, "bad_header", "the graph must be a list of places and names of tensors")
    return tuple((row[0], row[1]) for row in rows)
