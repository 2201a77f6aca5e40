# SPDX-License-Identifier: Apache-2.0
"""safetensors, read strictly and written with a digest over every byte of the file.

The format is eight bytes of header length, a JSON header, the tensors' bytes. The usual readers accept repeated names
and never look at the weight bytes; here a file that is not explained to the last byte is refused. A file we write
carries its SHA-256 in the metadata entry `sha256`, taken with those 64 characters as zeros; any reader can load it.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from featherweight.doors import json as strict_json
from featherweight.doors.stored import DTYPES, Buffer, Stored
from featherweight.errors import InputError, shown

MAX_HEADER = 8 << 20  # bytes; a model of 50 000 tensors needs about 5 MB
DIGEST = "sha256"
NOTE = "featherweight"  # the metadata entry with our own JSON
_ZEROS = "0" * 64
Place = tuple[str, tuple[int, ...], int, int]  # dtype, shape, begin, end
_BY_HEADER_NAME = {header: name for name, (header, _, _) in DTYPES.items()}


@dataclass(frozen=True)
class Codes:
    """The reason codes of one kind of file: a plain checkpoint has one for any fault of its header, ours are finer."""

    short: str = "bad_header"
    long: str = "bad_header"


SEALED = Codes(short="truncated", long="trailing")


def read(
    stream: BinaryIO, size: int, path: object, codes: Codes = Codes(), *, mapped: bool = False
) -> tuple[dict[str, Stored], dict[str, str]]:
    """Tensors by name in the header's order, and the metadata. A digest of ours is verified if there is one.

    mapped: the tensors stay in the file and are read when looked at, for files larger than the memory.
    """
    head, entries, metadata = _header(stream, size, path, codes)
    places = _places(entries, size - len(head), path, codes)
    view = _mapped(stream, size)[len(head) :] if mapped else _loaded(stream, size - len(head), path)
    if NOTE in metadata and DIGEST in metadata:
        _verify(head, view, metadata[DIGEST], path)
    tensors = {name: Stored(dtype, shape, view[begin:end]) for name, (dtype, shape, begin, end) in places.items()}
    for name, tensor in tensors.items():
        if not tensor.is_well_formed():
            raise InputError(path, "corrupt", f"tensor '{shown(name)}' is bool but holds bytes other than 0 and 1")
    return tensors, metadata


def _loaded(stream: BinaryIO, size: int, path: object) -> memoryview:
    data = bytearray(size)
    if stream.readinto(data) != len(data) or stream.read(1):  # type: ignore[attr-defined]
        raise InputError(path, "unreadable", "changed while it was being read; try again")
    return memoryview(data)


def _mapped(stream: BinaryIO, size: int) -> memoryview:
    return memoryview(mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ))


def _header(stream: BinaryIO, size: int, path: object, codes: Codes) -> tuple[bytes, dict[str, Any], dict[str, str]]:
    """The first bytes up to the data, the tensors' entries and the metadata."""
    first = stream.read(8)
    if len(first) < 8:
        raise InputError(path, codes.short, f"ends after {size} bytes, before the header")
    (length,) = struct.unpack("<Q", first)
    if length > size - 8:
        text = f"the header claims {length} bytes, the file has {size - 8} after its length"
        raise InputError(path, codes.short, text)
    if not 2 <= length <= MAX_HEADER:
        raise InputError(path, "bad_header", f"the header claims {length} bytes; 2 to {MAX_HEADER} are possible")
    head = stream.read(length)
    if head[:1] != b"{":
        raise InputError(path, "bad_header", "the header does not begin with '{'; this is not a safetensors file")
    try:
        entries = strict_json.parse(head, path, max_depth=4)
    except InputError as error:
        raise InputError(path, "bad_header", f"the header: {error.text}") from error
    if not isinstance(entries, dict):
        raise InputError(path, "bad_header", "the header is not an object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(path, "bad_header", "the metadata must be an object of texts")
    return first + head, entries, metadata


def _places(entries: dict[str, Any], room: int, path: object, codes: Codes) -> dict[str, Place]:
    """name -> (dtype, shape, begin, end); together they cover the data exactly once."""
    places = {name: _place(name, entry, room, path, codes) for name, entry in entries.items()}
    position = 0
    for name, (_, _, begin, end) in sorted(places.items(), key=lambda item: item[1][2:]):
        if begin != position:
            what = "overlaps another one" if begin < position else f"leaves {begin - position} bytes before it unused"
            raise InputError(path, "bad_header", f"tensor '{shown(name)}' {what}")
        position = end
    if position != room:
        raise InputError(path, codes.long, f"{room - position} bytes after the last tensor belong to nothing")
    return places


def _place(name: str, entry: Any, room: int, path: object, codes: Codes) -> Place:
    label = f"tensor '{shown(name, limit=80)}'"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InputError(path, "bad_header", f"{label} must have exactly dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _BY_HEADER_NAME:
        known = " ".join(_BY_HEADER_NAME)
        raise InputError(path, "bad_header", f"{label} has the unknown dtype {shown(kind, limit=20)}; known: {known}")
    if not _counts(shape) or len(shape) > 64:
        raise InputError(path, "bad_header", f"{label}: the shape must be a list of at most 64 whole numbers >= 0")
    if not _counts(offsets) or len(offsets) != 2:
        raise InputError(path, "bad_header", f"{label}: data_offsets must be two whole numbers >= 0")
    begin, end = offsets
    if end > room:
        raise InputError(path, codes.short, f"{label} ends at byte {shown(end, limit=30)} of {room}")
    dtype = _BY_HEADER_NAME[kind]
    if begin > end or math.prod(shape) * DTYPES[dtype][2] != end - begin:
        text = f"{label}: {kind} of shape {shown(shape, limit=60)} does not fill bytes {begin} to {end}"
        raise InputError(path, "bad_header", text)
    return dtype, tuple(shape), begin, end


def _counts(value: Any) -> bool:
    """Whether this is a list of sizes or offsets: whole numbers of at most 63 bits."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _verify(head: bytes, data: Buffer, digest: str, path: object) -> None:
    """Compare the digest in the metadata with the bytes."""
    mark = f'"{DIGEST}":"{digest}"'.encode()
    if len(digest) != 64 or head.count(mark) != 1:
        raise InputError(path, "checksum", "the sha256 entry is not where it was written; the file was changed")
    if _digest(head.replace(mark, f'"{DIGEST}":"{_ZEROS}"'.encode()), [data]) != digest:
        raise InputError(path, "checksum", "the bytes differ from those that were written; copy or make the file again")


def _digest(head: bytes, pieces: list[Buffer]) -> str:
    total = hashlib.sha256(head)
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()


def encode(tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> Iterator[Buffer]:
    """The pieces of a sealed file: the same bytes for the same tensors and metadata, in whatever order they come."""
    order = sorted(tensors, key=lambda name: (-DTYPES[tensors[name].dtype][2], name))  # wide first keeps all aligned
    note = json.dumps(dict(metadata), sort_keys=True, separators=(",", ":"))
    header: dict[str, Any] = {"__metadata__": {NOTE: note, "format": "pt", DIGEST: _ZEROS}}
    position = 0
    for name in order:
        tensor = tensors[name]
        offsets = [position, position + tensor.nbytes]
        header[name] = {"dtype": DTYPES[tensor.dtype][0], "shape": list(tensor.shape), "data_offsets": offsets}
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    pieces: list[Buffer] = [tensors[name].data for name in order]
    digest = _digest(head, pieces)
    yield head.replace(f'"{DIGEST}":"{_ZEROS}"'.encode(), f'"{DIGEST}":"{digest}"'.encode(), 1)
    yield from pieces
