# SPDX-License-Identifier: Apache-2.0
"""How often each of up to 256 symbols comes, rounded to whole numbers that sum to a power of two, and as a few bytes.

An entropy coder's model: a symbol of frequency f costs scale - log2(f) bits. The table is stored as Elias' gamma code
(Elias 1975) of each f + 1, so that an absent symbol costs one bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
MAX_SCALE = 12  # 4096 entries of a decoder's table: they fit in the nearest cache
MIN_SCALE = 5


def entropy_bytes(counts: Array) -> float:
    """The zero-order entropy of so many symbols of each kind, in bytes."""
    present = counts[counts > 0].astype(np.float64)
    return float((present * np.log2(present.sum() / present)).sum() / 8)


def normalized(counts: Array, scale: int) -> Array:
    """Frequencies (256,) of the same symbols that sum to 2**scale, each present one at least 1."""
    total, size = int(counts.sum()), 1 << scale
    shares = counts.astype(np.float64) * size / total
    found = np.where(counts > 0, np.maximum(1, np.round(shares)), 0).astype(np.int64)
    present = counts > 0
    while (off := int(found.sum()) - size) != 0:  # by one each, where that costs the fewest bits
        step = -1 if off > 0 else 1
        allowed = np.flatnonzero(present & (found + step >= 1))
        cost = -counts[allowed] * np.log2((found[allowed] + step) / found[allowed])
        found[allowed[np.argsort(cost, kind="stable")[: abs(off)]]] += step
    return found


def best_scale(counts: Array) -> tuple[int, bytes]:
    """The scale and stored table whose symbols and table together are the fewest bytes."""
    kinds = int((counts > 0).sum())
    lowest = max(MIN_SCALE, int(np.ceil(np.log2(max(kinds, 2)))))
    highest = max(lowest, min(MAX_SCALE, int(counts.sum()).bit_length()))  # a finer one says nothing more
    used = counts > 0

    def bits(scale: int) -> float:
        found = normalized(counts, scale)
        widths = 2 * np.floor(np.log2(found + 1)) + 1
        return float((counts[used] * (scale - np.log2(found[used]))).sum() + widths[: np.flatnonzero(used)[-1]].sum())

    best = min(range(lowest, highest + 1), key=bits)
    return best, stored(normalized(counts, best))


def stored(frequencies: Array) -> bytes:
    """The table up to its last present symbol, that symbol first."""
    last = int(np.flatnonzero(frequencies)[-1])
    bits: list[int] = []
    for value in frequencies[: last + 1]:
        width = int(value + 1).bit_length()
        bits.extend([0] * (width - 1))
        bits.extend(int(bit) for bit in f"{int(value) + 1:b}")
    return bytes([last]) + np.packbits(np.array(bits, np.uint8)).tobytes()


def read(data: memoryview, scale: int) -> tuple[Array, int]:
    """The frequencies (256,) that `stored` wrote at the start of these bytes, and how many bytes they took.

    Raises ValueError where the table is not one: they must sum to 2**scale.
    """
    if len(data) < 2:
        raise ValueError("a table of symbols without an end")
    last, position = int(data[0]), 0
    room = data[1 : 1 + ((last + 1) * (2 * MAX_SCALE + 1) + 7) // 8]
    bits = np.unpackbits(np.frombuffer(room, np.uint8)).tolist()
    found = np.zeros(256, np.int64)
    for symbol in range(last + 1):
        zeros = 0
        while position < len(bits) and not bits[position]:
            zeros, position = zeros + 1, position + 1
        if zeros > MAX_SCALE or position + zeros + 1 > len(bits):
            raise ValueError("a table of symbols without an end")
        value = 0
        for bit in bits[position : position + zeros + 1]:
            value = value << 1 | bit
        position += zeros + 1
        found[symbol] = value - 1
    if int(found.sum()) != 1 << scale:
        raise ValueError(f"frequencies that sum to {int(found.sum())}, not {1 << scale}")
    return found, 1 + (position + 7) // 8
