# SPDX-License-Identifier: Apache-2.0
"""One tensor as streams of bytes, and back to the bit: whatever is regular in it is found, nothing is rounded.

Planes: the first bytes of all numbers, the second ones, and so on, as an exponent is far from random and a mantissa is
not. Half: the same of float32 numbers that are all float16 ones. Codes: where at most 256 different numbers occur, a
table of them and one byte each. Sparse: how many zeros stand before each number that is not (a byte; 255 means 255
zeros and no number yet), and those numbers alone, row by row or column by column, whichever is smaller. These are Deep
Compression's streams (Han 2016, arXiv 1510.00149) with a longer gap, whose unused lengths the entropy coder makes free.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from featherweight.doors.stored import DTYPES, Stored

from .frequencies import Array, entropy_bytes
from .streams import AUTO, LONGEST, Coded, decode, encode

KINDS = ("planes", "half", "codes", "sparse planes", "sparse half", "sparse codes")
ORDERS = ("rows", "columns")
LONG = 255  # the gap that has no number behind it
SPARSE, CERTAIN = 0.25, 0.75  # shares of zeros from which gaps are worth a try, and nothing else is
LARGE = 1 << 12  # numbers from which a table is worth its bytes: codes have less entropy than the planes together
_SAMPLE = 1 << 14


@dataclass(frozen=True)
class Packed:
    """A tensor's streams: of codes first the table; of a sparse one the gaps before all else."""

    dtype: str
    shape: tuple[int, ...]
    kind: str
    order: str
    streams: tuple[Coded, ...]

    @property
    def nbytes(self) -> int:
        return sum(len(stream.data) for stream in self.streams)


def pack(tensor: Stored, *, coder: str = AUTO) -> Packed:
    """The tensor in the form that takes the fewest bytes."""
    numbers = _numbers(tensor)
    zeros = float((numbers == 0).mean()) if numbers.size else 0.0
    found = [] if CERTAIN <= zeros < 1 else [_dense(tensor, numbers, coder)]
    if SPARSE <= zeros < 1:
        for order in ORDERS if len(tensor.shape) > 1 else ORDERS[:1]:
            found.append(_sparse(tensor, _ordered(numbers, tensor.shape, order), order, coder))
    return min(found, key=lambda one: one.nbytes)


def unpack(packed: Packed) -> Stored:
    """The tensor again, bit for bit. ValueError where the streams do not make one."""
    count, width = math.prod(packed.shape), DTYPES[packed.dtype][2]
    kind = np.dtype(f"<u{width}")
    streams = iter(packed.streams)
    if not packed.kind.startswith("sparse"):
        numbers = _values(packed.kind, streams, count, kind)
    else:
        places = _places(decode(next(streams)), count)
        numbers = np.zeros(count, kind)
        numbers[places] = _values(packed.kind.removeprefix("sparse "), streams, len(places), kind)
        if packed.order == "columns":
            numbers = np.ascontiguousarray(numbers.reshape(-1, packed.shape[0]).T)
    return Stored(packed.dtype, packed.shape, numbers.reshape(-1).view(np.uint8).data)


def check(packed: Packed) -> None:
    """Compare the counts of the streams with the shape before anything is decoded; ValueError says what is off."""
    if packed.kind not in KINDS or packed.order not in ORDERS:
        raise ValueError(f"the unknown form {packed.kind[:20]!r}, {packed.order[:20]!r}")
    if packed.order == "columns" and (len(packed.shape) < 2 or not packed.kind.startswith("sparse")):
        raise ValueError("columns of what has none")
    count, width = math.prod(packed.shape), DTYPES[packed.dtype][2]
    counts = [stream.count for stream in packed.streams]
    numbers = count
    if packed.kind.startswith("sparse"):
        if not counts or not counts[0] <= count:
            raise ValueError("more gaps than numbers")
        numbers, counts = counts[-1], counts[1:]
    if not packed.kind.endswith("codes"):
        half = packed.kind.endswith("half")
        fits = counts == [numbers] * (2 if half else width) and (not half or packed.dtype == "float32")
    else:
        fits = len(counts) == 2 and counts[1] == numbers and counts[0] % width == 0 and counts[0] // width <= 256
    if not fits or numbers > count or count > LONGEST:
        raise ValueError(f"streams of {counts} symbols for {count} numbers")


def least_bytes(packed: Packed) -> float:
    """The entropy of the streams of a packed tensor, in bytes: what no coder of single symbols gets below."""
    return sum(entropy_bytes(np.bincount(decode(stream), minlength=256)) for stream in packed.streams)


def _numbers(tensor: Stored) -> Array:
    """The bits of each number (n,), as whole numbers of its width."""
    return np.frombuffer(tensor.data, np.dtype(f"<u{DTYPES[tensor.dtype][2]}"))


def _ordered(numbers: Array, shape: tuple[int, ...], order: str) -> Array:
    return numbers if order == "rows" else np.ascontiguousarray(numbers.reshape(shape[0], -1).T).ravel()


def _dense(tensor: Stored, numbers: Array, coder: str) -> Packed:
    kind, streams = _smallest(numbers, tensor.dtype, coder)
    return Packed(tensor.dtype, tensor.shape, kind, "rows", streams)


def _sparse(tensor: Stored, numbers: Array, order: str, coder: str) -> Packed:
    places = np.flatnonzero(numbers)
    kind, streams = _smallest(numbers[places], tensor.dtype, coder)
    gaps = encode(_gaps(places), coder)
    return Packed(tensor.dtype, tensor.shape, f"sparse {kind}", order, (gaps, *streams))


def _smallest(numbers: Array, dtype: str, coder: str) -> tuple[str, tuple[Coded, ...]]:
    """Kind and streams of numbers (n,): with a table where that is smaller."""
    found: list[tuple[str, tuple[Coded, ...]]] = []
    table = _table(numbers) if numbers.dtype.itemsize > 1 else None
    if table is not None:
        values, codes = table
        found.append(("codes", (encode(values.view(np.uint8), "raw"), encode(codes.astype(np.uint8), coder))))
    if table is None or numbers.size < LARGE:
        half = _half(numbers) if dtype == "float32" else None
        kind, wide = ("planes", numbers) if half is None else ("half", half)
        found.append((kind, tuple(encode(np.ascontiguousarray(plane), coder) for plane in _planes(wide))))
    return min(found, key=lambda one: sum(len(stream.data) for stream in one[1]))


def _half(numbers: Array) -> Array | None:
    """The bits of these float32 numbers as float16, or None where one would change."""
    if bool((numbers & 0x1FFF).any()):
        return None
    with np.errstate(over="ignore"):
        found = numbers.view(np.float32).astype(np.float16)
    return found.view(np.uint16) if np.array_equal(found.astype(np.float32).view(np.uint32), numbers) else None


def _planes(numbers: Array) -> Array:
    """(bytes of a number, n)."""
    return numbers.view(np.uint8).reshape(-1, numbers.dtype.itemsize).T


def _table(numbers: Array) -> tuple[Array, Array] | None:
    """The different numbers (k,) and which of them each one is (n,), or None where there are more than 256."""
    if not numbers.size or len(np.unique(numbers[:_SAMPLE])) > 256:
        return None
    values, codes = np.unique(numbers, return_inverse=True)
    return (values, codes.reshape(-1)) if len(values) <= 256 else None


def _gaps(places: Array) -> Array:
    """Places of numbers, ascending -> bytes: zeros before each, 255 for every 255 of them first."""
    zeros = np.diff(places, prepend=-1) - 1
    long = zeros // LONG
    found = np.full(len(places) + int(long.sum()), LONG, np.uint8)
    found[np.arange(len(places)) + np.cumsum(long)] = zeros % LONG
    return found


def _places(gaps: Array, count: int) -> Array:
    """What `_gaps` was given. ValueError where they lead beyond `count`."""
    real = gaps != LONG
    steps = gaps.astype(np.int64) + real
    ends = np.cumsum(steps)
    places = ends[real] - 1
    if len(ends) and (ends[-1] > count or not real[-1]):
        raise ValueError("gaps that lead beyond the tensor")
    return places


def _values(kind: str, streams: Iterator[Coded], count: int, dtype: np.dtype) -> Array:
    """Numbers (n,) of a kind."""
    if kind == "codes":
        values = decode(next(streams)).copy().view(dtype)
        codes = decode(next(streams))
        if len(codes) != count or (count and int(codes.max()) >= len(values)):
            raise ValueError("codes beyond their table")
        found: Array = values[codes]
        return found
    planes = [decode(stream) for stream in streams]
    if any(len(plane) != count for plane in planes):
        raise ValueError("planes of different length")
    together = planes[0] if len(planes) == 1 else np.stack(planes, 1).reshape(-1)
    if kind == "half":
        return together.view(np.float16).astype(np.float32).view(dtype)
    return together.view(dtype)
