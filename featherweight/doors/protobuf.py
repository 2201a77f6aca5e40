# SPDX-License-Identifier: Apache-2.0
"""The wire format of protocol buffers: a message as numbers and ranges of bytes, nothing copied, nothing trusted."""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Damaged(ValueError):
    """The bytes are not a message."""


def fields(data: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """(field number, wire type, value of a number, bytes of a BYTES or fixed field) for each field, in order."""
    position, end = 0, len(data)
    while position < end:
        key, position = varint(data, position)
        number, wire = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise Damaged(f"field number {number}")
        if wire == VARINT:
            value, position = varint(data, position)
            yield number, wire, value, data[:0]
            continue
        if wire == BYTES:
            length, position = varint(data, position)
        elif wire in (FIXED64, FIXED32):
            length = 8 if wire == FIXED64 else 4
        else:
            raise Damaged(f"wire type {wire}")
        if length > end - position:
            raise Damaged(f"a field of {length} bytes where {end - position} are left")
        yield number, wire, 0, data[position : position + length]
        position += length


def varint(data: memoryview, position: int) -> tuple[int, int]:
    """An unsigned number of up to 64 bits, and where it ends."""
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise Damaged("a number without an end")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, position
        shift += 7


def signed(value: int) -> int:
    """An int64 as it is written: negative numbers as their two's complement."""
    return value - (1 << 64) if value >= 1 << 63 else value


def packed(data: memoryview) -> Iterator[int]:
    """The numbers of a packed field of int64."""
    position = 0
    while position < len(data):
        value, position = varint(data, position)
        yield signed(value)


def texts(data: memoryview) -> tuple[str, str]:
    """The key and value of an entry: fields 1 and 2, each text."""
    found = {1: "", 2: ""}
    for number, _, _, content in fields(data):
        if number in found:
            found[number] = bytes(content).decode("utf-8")
    return found[1], found[2]


def encoded(number: int, content: bytes) -> bytes:
    """A BYTES field."""
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


def number(field: int, value: int) -> bytes:
    """A VARINT field."""
    return _varint(field << 3 | VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def fixed(field: int, content: bytes) -> bytes:
    """A field of 4 or 8 bytes."""
    return _varint(field << 3 | (FIXED64 if len(content) == 8 else FIXED32)) + content
