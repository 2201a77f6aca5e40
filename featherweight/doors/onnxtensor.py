# SPDX-License-Identifier: Apache-2.0
"""One tensor of an ONNX file: its shape compared with its bytes, its address if it is kept outside, small values."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

from featherweight.doors import Path
from featherweight.doors import protobuf as pb
from featherweight.errors import InputError, shown

_SMALL = 64  # numbers of a constant worth remembering: shapes, repeats, scales

# data_type -> bits of one number; the field with plain numbers
_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
_TEXT = 8
_WIRES = {1: 0, 2: 0, 4: 5, 5: 0, 6: 2, 7: 0, 8: 2, 9: 2, 10: 1, 11: 0, 13: 2, 14: 0}  # field -> wire type
_PACKED = (1, 4, 5, 7, 10, 11)  # may also come as a packed list
_NUMBERS = {1: 4, 11: 10, 14: 4, 15: 10, 7: 7, 12: 11, 13: 11}  # float_data, double_data; else int32_data (5)
_WIDTH = {4: 4, 10: 8}  # bytes of one number where they are not varints
_FORMAT = {1: "f", 6: "i", 7: "q", 11: "d"}  # what is remembered of raw bytes


@dataclass
class Tensor:
    """What a TensorProto says, checked against the bytes it carries."""

    name: str = ""
    dims: list[int] = field(default_factory=list)
    kind: int = 0
    external: dict[str, str] = field(default_factory=dict)
    is_external: bool = False
    values: list[int | float] | None = None

    @property
    def nbytes(self) -> int:
        return (math.prod(self.dims) * _BITS.get(self.kind, 0) + 7) // 8


def read_tensor(data: memoryview, path: Path) -> Tensor:
    """Raises InputError where shape, type and bytes disagree."""
    tensor = Tensor()
    raw: memoryview | None = None
    counts: dict[int, int] = {}
    numbers: list[int | float] = []
    for number, wire, value, part in pb.fields(data):
        if wire != _WIRES.get(number, wire) and not (wire == pb.BYTES and number in _PACKED):
            raise pb.Damaged(f"field {number} of a tensor has the wrong type")
        if number == 1:
            tensor.dims.extend([pb.signed(value)] if wire == pb.VARINT else pb.packed(part))
        elif number == 2:
            tensor.kind = value
        elif number in (4, 5, 6, 7, 10, 11):
            counts[number] = counts.get(number, 0) + _count(number, wire, part)
            if counts[number] <= _SMALL:
                numbers.extend(_plain(number, wire, value, part))
        elif number == 8:
            tensor.name = bytes(part).decode("utf-8")
        elif number == 9:
            raw = part
        elif number == 13:
            tensor.is_external = True
            key, text = pb.texts(part)
            if key in tensor.external:
                raise InputError(path, "corrupt", f"external data names {shown(key, limit=40)} twice")
            tensor.external[key] = text
        elif number == 14 and value == 1:
            tensor.is_external = True
        elif number == 3:
            raise InputError(path, "corrupt", "a tensor is cut into segments, which no exporter does")
    _check(tensor, raw, counts, path)
    if not tensor.is_external and math.prod(tensor.dims) <= _SMALL:
        tensor.values = _remembered(tensor, raw, numbers)
    return tensor


def _check(tensor: Tensor, raw: memoryview | None, counts: dict[int, int], path: Path) -> None:
    label = f"tensor '{shown(tensor.name, limit=60)}'"
    if tensor.kind != _TEXT and tensor.kind not in _BITS:
        raise InputError(path, "corrupt", f"{label} has the unknown type {tensor.kind}")
    if len(tensor.dims) > 64 or any(n < 0 for n in tensor.dims):
        raise InputError(path, "corrupt", f"{label} has a negative size, or more than 64 dimensions")
    if tensor.is_external:
        if tensor.kind == _TEXT or raw or counts:
            raise InputError(path, "corrupt", f"{label} is kept both inside and outside, or is of texts")
        return
    numbers = math.prod(tensor.dims)
    if raw is not None and tensor.kind != _TEXT:
        if len(raw) != tensor.nbytes or counts:
            raise InputError(path, "corrupt", f"{label} has {len(raw)} bytes, its shape needs {tensor.nbytes}")
        return
    place = 6 if tensor.kind == _TEXT else _NUMBERS.get(tensor.kind, 5)
    per_number = 2 if tensor.kind in (14, 15) else 1  # a complex number is two
    bits = _BITS.get(tensor.kind, 8)
    wanted = (numbers * bits + 7) // 8 if bits < 8 else numbers * per_number
    if counts.get(place, 0) != wanted or set(counts) - {place}:
        raise InputError(path, "corrupt", f"{label} has {sum(counts.values())} numbers, its shape needs {wanted}")


def _count(number: int, wire: int, part: memoryview) -> int:
    """How many numbers a field adds, without reading them."""
    if number == 6 or wire != pb.BYTES:
        return 1
    if number in _WIDTH:
        if len(part) % _WIDTH[number]:
            raise pb.Damaged("a list of numbers ends inside one")
        return len(part) // _WIDTH[number]
    return sum(len(bytes(part[i : i + 65536]).translate(None, _CONTINUED)) for i in range(0, len(part), 65536))


_CONTINUED = bytes(range(128, 256))  # bytes of a varint that are not its last


def _plain(number: int, wire: int, value: int, part: memoryview) -> list[int | float]:
    if number == 6:
        return []
    if number in _WIDTH:
        return list(struct.unpack(f"<{len(part) // _WIDTH[number]}{'f' if number == 4 else 'd'}", part))
    return list(pb.packed(part)) if wire == pb.BYTES else [pb.signed(value)]


def _remembered(tensor: Tensor, raw: memoryview | None, numbers: list[int | float]) -> list[int | float] | None:
    if raw is None:
        return numbers
    letter = _FORMAT.get(tensor.kind)
    return list(struct.unpack(f"<{math.prod(tensor.dims)}{letter}", raw)) if letter else None
