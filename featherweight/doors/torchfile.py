# SPDX-License-Identifier: Apache-2.0
"""The `.pt` file: a zip of one pickle and the tensors' bytes, read without torch and without trusting any number in it.

Only the plain layout that `torch.save` has written since 1.6 is taken: members stored, not deflated, each name once,
every checksum right. The older layouts (stacked pickles, tar), TorchScript and bare pickles are refused by name.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from featherweight.doors import door
from featherweight.doors import pickle as restricted
from featherweight.doors.pickled import Inert, Storage, View
from featherweight.doors.stored import DTYPES, Stored
from featherweight.errors import InputError, shown

__all__ = ["Inert", "read"]

MAX_PICKLE = 16 << 20
MAX_MEMBERS = 200_000
_STACKED = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before 1.6
_RESAVE = "load it in a process you trust and save the state dict as safetensors"


def read(stream: BinaryIO, size: int, path: object, inert: tuple[str, ...]) -> Any:
    """The whole content of a `.pt` file; see `checkpoint.read_tree`."""
    first = stream.read(1024)
    if first[:4] not in (b"PK\x03\x04", b"PK\x05\x06"):
        raise _stranger(first, stream, size, path)
    archive = _Archive(stream, size, path)
    program = archive.read("data.pkl", MAX_PICKLE)
    # Once without touching the tensors, so that a file to be refused costs nothing; then for good.
    restricted.load(io.BytesIO(program), path, tensor=lambda view: archive.check_view(view), inert=inert)
    archive.check_rest()
    return _one(program, path, archive.tensor, inert)


def _one(program: bytes, path: object, tensor: Callable[[View], Any], inert: tuple[str, ...]) -> Any:
    source = io.BytesIO(program)
    tree = restricted.load(source, path, tensor=tensor, inert=inert)
    if source.read(1):
        raise InputError(path, "corrupt", "bytes after the end of the pickle")
    return tree


@dataclass(frozen=True)
class _Member:
    start: int
    size: int
    crc: int


class _Archive:
    """The members of the zip by their names without the common folder."""

    def __init__(self, stream: BinaryIO, size: int, path: object) -> None:
        self.stream = stream
        self.path = path
        self.members = _members(stream, size, path)
        self.loaded: dict[str, bytearray] = {}
        self.room = 2 * size  # bytes that views which are not plain may be copied to
        if self.members.get("byteorder") and self.read("byteorder", 16) != b"little":
            raise InputError(path, "unsupported_format", f"was written by a big-endian machine; {_RESAVE}")

    def read(self, name: str, limit: int) -> bytes:
        return bytes(self._bytes(name, limit))

    def _bytes(self, name: str, limit: int) -> bytearray:
        member = self.members.get(name)
        if member is None:
            raise InputError(self.path, "corrupt", f"has no member '{shown(name, limit=80)}'")
        if member.size > limit:
            text = f"member '{shown(name, limit=80)}' has {member.size} bytes, the limit is {limit}"
            raise InputError(self.path, "too_large", text)
        data = bytearray(member.size)
        self.stream.seek(member.start)
        if self.stream.readinto(data) != member.size:  # type: ignore[attr-defined]
            raise InputError(self.path, "truncated", f"member '{shown(name, limit=80)}' ends early")
        if zlib.crc32(data) != member.crc:
            raise InputError(self.path, "corrupt", f"the checksum of member '{shown(name, limit=80)}' is wrong")
        return data

    def check_rest(self) -> None:
        """The small members are read for their checksums too: nothing in the file stays unexplained."""
        for name, member in self.members.items():
            if not name.startswith("data/") and member.size <= MAX_PICKLE:
                self._bytes(name, MAX_PICKLE)

    def check_view(self, view: View) -> View:
        """Compare a tensor's numbers with its storage, and the storage's with the file, before using any."""
        storage = view.storage
        member = self.members.get(f"data/{storage.key}")
        if member is None:
            raise InputError(self.path, "corrupt", f"the data of storage '{shown(storage.key, limit=40)}' are missing")
        if len(view.size) > 64 or any(n.bit_length() > 62 for n in (view.offset, *view.size, *view.stride)):
            raise InputError(self.path, "bad_shape", "a tensor has more than 64 dimensions, or sizes beyond all sense")
        width = DTYPES[view.dtype][2]
        stored = DTYPES[storage.dtype][2] if storage.dtype else 1
        if storage.count * stored != member.size or (storage.dtype not in (None, view.dtype)):
            text = f"storage '{shown(storage.key, limit=40)}' has {member.size} bytes, not {storage.count} x {stored}"
            raise InputError(self.path, "corrupt", text)
        if len(view.size) != len(view.stride) or min((view.offset, *view.size, *view.stride)) < 0:
            raise InputError(self.path, "corrupt", "a tensor has a negative offset, size or stride")
        room, numbers = member.size // width, math.prod(view.size)
        shape = shown(view.size, limit=60)
        last = view.offset + sum((n - 1) * step for n, step in zip(view.size, view.stride, strict=True))
        if numbers and last >= room:
            raise InputError(self.path, "corrupt", f"a tensor of shape {shape} reaches past its {room} stored numbers")
        if numbers > room:
            raise InputError(self.path, "bad_shape", f"a tensor of shape {shape} repeats its {room} stored numbers")
        return view

    def tensor(self, view: View) -> Stored:
        """The tensor's own bytes: a part of its storage where it lies there in one piece, else a copy."""
        self.check_view(view)
        data = self._storage(view.storage)
        width = DTYPES[view.dtype][2]
        begin, length = view.offset * width, math.prod(view.size) * width
        if length == 0:
            return Stored(view.dtype, view.size, b"")
        if _is_plain(view):
            return self._checked(Stored(view.dtype, view.size, memoryview(data)[begin : begin + length]))
        self.room -= length
        if self.room < 0:
            raise InputError(self.path, "too_large", "its tensors share so much that they would outgrow the file")
        flat = np.frombuffer(data, dtype=f"V{width}", offset=begin)
        steps = tuple(step * width for step in view.stride)
        copy = np.lib.stride_tricks.as_strided(flat, view.size, steps, writeable=False).tobytes()
        return self._checked(Stored(view.dtype, view.size, bytearray(copy)))

    def _storage(self, storage: Storage) -> bytearray:
        if storage.key not in self.loaded:
            name = f"data/{storage.key}"
            self.loaded[storage.key] = self._bytes(name, self.members[name].size)
        return self.loaded[storage.key]

    def _checked(self, tensor: Stored) -> Stored:
        if not tensor.is_well_formed():
            raise InputError(self.path, "corrupt", "a bool tensor holds bytes other than 0 and 1")
        return tensor


def _is_plain(view: View) -> bool:
    expected = 1
    for n, step in zip(reversed(view.size), reversed(view.stride), strict=True):
        if n != 1 and step != expected:
            return False
        expected *= n
    return True


def _members(stream: BinaryIO, size: int, path: object) -> dict[str, _Member]:
    """What the central directory says, compared with every member's own header and with the file's size."""
    stream.seek(max(0, size - 22))
    if stream.read(4) != b"PK\x05\x06":
        raise InputError(path, "truncated", "the zip directory at the end is missing; copy the file again")
    stream.seek(0)
    try:
        archive = zipfile.ZipFile(stream)
        listed = archive.infolist()
        _check_names([info.filename for info in listed], archive, path)
    except InputError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise InputError(path, "corrupt", f"the zip directory is damaged ({error})") from error
    end = 0
    found: dict[str, _Member] = {}
    for info in sorted(listed, key=lambda info: info.header_offset):
        member = _member(stream, info, size, path)
        if not 0 <= info.header_offset - end <= (24 if found else 0):  # between members only a data descriptor
            text = f"member '{shown(info.filename, limit=80)}' overlaps another or follows a gap"
            raise InputError(path, "corrupt", text)
        end = member.start + member.size
        found[info.filename] = member
    if archive.start_dir - end > 24:
        raise InputError(path, "corrupt", "has bytes that belong to no member")
    folder = next(name for name in found if name.endswith("/data.pkl")).removesuffix("data.pkl")
    return {name.removeprefix(folder): member for name, member in found.items()}


def _member(stream: BinaryIO, info: zipfile.ZipInfo, size: int, path: object) -> _Member:
    label = f"member '{shown(info.filename, limit=80)}'"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise InputError(path, "corrupt", f"{label} is compressed; torch.save never does that")
    if info.flag_bits & ~0x0808 or info.header_offset + 30 + info.file_size > size:
        raise InputError(path, "corrupt", f"{label} is encrypted or reaches past the end")
    stream.seek(info.header_offset)
    head = stream.read(30)
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
        raise InputError(path, "corrupt", f"{label} is not where the directory says")
    method, name_length, extra_length = struct.unpack("<8xH16xHH", head)
    name = stream.read(name_length)
    start = info.header_offset + 30 + name_length + extra_length
    if method != 0 or name.decode("utf-8") != info.orig_filename or start + info.file_size > size:
        raise InputError(path, "corrupt", f"{label} and its own header disagree")
    return _Member(start, info.file_size, info.CRC)


def _check_names(names: list[str], archive: zipfile.ZipFile, path: object) -> None:
    """Refuse every archive but one folder with what torch.save puts there."""
    if len(names) > MAX_MEMBERS or len(set(names)) != len(names):
        raise InputError(path, "corrupt", "has two members of one name, or too many")
    if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
        raise InputError(path, "unsupported_format", f"is TorchScript, a program; {_RESAVE}")
    programs = [name for name in names if name.endswith("/data.pkl")]
    if not programs:
        for name in [name for name in names if name.endswith(".npy")][:64]:
            with archive.open(name) as member:
                if _holds_objects(member.read(1024)):
                    raise InputError(path, "unsafe_pickle", _OBJECTS)
        raise InputError(path, "not_a_checkpoint", "is a zip, but not one that torch.save wrote")
    folder = programs[0].removesuffix("data.pkl")
    for name in names:
        short = name.removeprefix(folder)
        plain = short in _PLAIN or short.startswith(("data/", ".data/"))
        if not name.startswith(folder) or ".." in name or not plain:
            raise InputError(path, "corrupt", f"holds '{shown(name, limit=80)}', which torch.save does not write")


_OBJECTS = "is a NumPy array of objects, which is a pickle; store numbers"


def _holds_objects(head: bytes) -> bool:
    """Whether the header of a .npy says that its items are Python objects."""
    return head[:6] == b"\x93NUMPY" and (b"O'" in head or b'O"' in head)


_PLAIN = {"data.pkl", "version", "byteorder", ".format_version", ".storage_alignment"}


def _stranger(first: bytes, stream: BinaryIO, size: int, path: object) -> InputError:
    """The refusal of a file that is not a zip, by what it looks like."""
    if first[257:262] == b"ustar":
        return InputError(path, "unsafe_pickle", f"is a tar of pickles, as torch saved before 0.1.10; {_RESAVE}")
    if first[:6] == b"\x93NUMPY":
        if _holds_objects(first):
            return InputError(path, "unsafe_pickle", _OBJECTS)
        return InputError(path, "not_a_checkpoint", "is a NumPy array, not named weights; use safetensors")
    stream.seek(0)
    program = stream.read(min(size, MAX_PICKLE))
    stacked = program.startswith(_STACKED)
    bare = first[:1] == b"\x80" and first[1:2] <= b"\x05"
    try:
        with door(path, "not_a_checkpoint"):
            _try_pickles(program, 5 if stacked else 1, path)
            bare = True
    except InputError as error:
        if error.reason == "unsafe_pickle":
            return error
    if stacked:
        return InputError(path, "unsupported_format", f"is in torch's layout of before 1.6; {_RESAVE}")
    if bare:
        return InputError(path, "unsafe_pickle", f"is a bare pickle, not a torch file; {_RESAVE}")
    return InputError(path, "not_a_checkpoint", "is neither safetensors nor a torch file")


def _try_pickles(program: bytes, count: int, path: object) -> None:
    """Go through the pickles at the start of a file, for the first forbidden name; torch's old layout had five."""
    source = io.BytesIO(program)
    for _ in range(count):
        restricted.load(source, path, tensor=lambda view: None)
