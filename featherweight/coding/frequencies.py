# SPDX-License-Identifier: Apache-2.0
"""How often each of up to 256 symbols comes, rounded to whole numbers that sum to a power of two, and as a few bytes.

An entropy coder's model: a symbol of frequency f costs scale - log2(f) bits. The table is stored in Elias' gamma code
(Elias 1975), in one of two ways: each f + 1, so that an absent symbol costs one bit; or runs of neighbors that share a
frequency, each by its length and its f + 1. Gaps between weights have long tails whose counts are mostly noise: there
a run costs less than what it blurs. Where runs begin is found by dynamic programming over code and table together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
MAX_SCALE = 12  # 4096 entries of a decoder's table: they fit in the nearest cache
MIN_SCALE = 5
NOMINAL = 1 << 10  # the sum at which runs are looked for
MANY = 1 << 16  # symbols from which the table's size no longer matters


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


class Table(NamedTuple):
    """Frequencies (256,) that sum to 2**scale, as bytes, and whether those say runs."""

    scale: int
    frequencies: Array
    data: bytes
    runs: bool

    def bits(self, counts: Array) -> float:
        """Of so many symbols of each kind, and of the table."""
        used = counts > 0
        each = self.scale - np.log2(self.frequencies[used])
        return float((counts[used] * each).sum()) + 8 * len(self.data)


def best_table(counts: Array) -> Table:
    """The table that takes, with the symbols (256,) it codes, the fewest bytes."""
    kinds, total = int((counts > 0).sum()), int(counts.sum())
    lowest = max(MIN_SCALE, int(np.ceil(np.log2(max(kinds, 2)))))
    highest = max(lowest, min(MAX_SCALE, total.bit_length()))  # a finer one says nothing more
    found = [_by_symbol(normalized(counts, scale), scale) for scale in range(lowest, highest + 1)]
    if total < MANY:
        lengths = _runs(counts)
        found += [table for scale in range(lowest, highest + 1) if (table := _by_run(counts, lengths, scale))]
    return min(found, key=lambda table: table.bits(counts))


def _by_symbol(frequencies: Array, scale: int) -> Table:
    """Each frequency up to that of the last present symbol."""
    last = int(np.flatnonzero(frequencies)[-1])
    return Table(scale, frequencies, bytes([last]) + _gamma(frequencies[: last + 1] + 1), False)


def _by_run(counts: Array, lengths: Sequence[int], scale: int) -> Table | None:
    """One frequency for each run of so many symbols, cut further only to let all sum to 2**scale; None if it cannot."""
    size, long = 1 << scale, np.array(lengths)
    sums = np.add.reduceat(counts[: long.sum()], np.cumsum(long) - long).astype(np.float64)
    if int(long[sums > 0].sum()) > size:
        return None
    each = np.where(sums > 0, np.maximum(1, np.round(sums * size / (counts.sum() * long))), 0).astype(np.int64)
    while (off := int((each * long).sum()) - size) != 0:
        step = -1 if off > 0 else 1
        allowed = np.flatnonzero((each > 0) & (each + step >= 1))
        fits = allowed[long[allowed] <= abs(off)]
        if len(fits):  # by one in the run where a bit of the sum costs the fewest bits of code
            cost = -sums[fits] / long[fits] * np.log2((each[fits] + step) / each[fits])
            each[fits[np.argmin(cost)]] += step
        else:  # the shortest run gives its first symbol away
            one = allowed[np.argmin(long[allowed])]
            part = sums[one] / long[one]
            long = np.insert(long, one, 1)
            each, sums = np.insert(each, one, each[one]), np.insert(sums, one, part)
            long[one + 1] -= 1
            sums[one + 1] -= part
    pairs = np.stack([long, each + 1], 1).reshape(-1)
    return Table(scale, _spread(long, each), bytes([int(long.sum()) - 1]) + _gamma(pairs), True)


def _spread(lengths: Array, frequencies: Array) -> Array:
    """(256,): each frequency as often as its run is long."""
    found = np.zeros(256, np.int64)
    found[: int(lengths.sum())] = np.repeat(frequencies, lengths)
    return found


def _runs(counts: Array) -> list[int]:
    """Lengths of the runs, up to the last present symbol, that take the fewest bits for code and table."""
    last = int(np.flatnonzero(counts)[-1]) + 1
    sums = np.concatenate([[0], np.cumsum(counts[:last])]).astype(np.float64)
    begin, end = np.arange(last)[:, None], np.arange(1, last + 1)[None]
    long, inside = np.maximum(end - begin, 1), sums[end] - sums[begin]
    total, some = sums[-1], np.maximum(inside, 1)
    each = np.where(inside > 0, np.maximum(1, np.round(inside * NOMINAL / (total * long))), 0)
    cost = inside * np.log2(total * long / some) + _gamma_bits(long) + _gamma_bits(each + 1)
    best, back = np.zeros(last + 1), np.zeros(last + 1, np.int64)
    for place in range(1, last + 1):
        ways = best[:place] + cost[:place, place - 1]
        back[place] = ways.argmin()
        best[place] = ways[back[place]]
    found, place = [], last
    while place:
        found.append(int(place - back[place]))
        place = int(back[place])
    return found[::-1]


def _gamma_bits(values: Array) -> Array:
    return 2 * np.floor(np.log2(values)) + 1


def _gamma(values: Array) -> bytes:
    """Elias' gamma code of numbers from 1."""
    text = "".join("0" * (int(value).bit_length() - 1) + f"{int(value):b}" for value in values)
    return np.packbits(np.frombuffer(text.encode(), np.uint8) - ord("0")).tobytes()


def read(data: memoryview, scale: int, *, runs: bool = False) -> tuple[Array, int]:
    """The frequencies (256,) of a table at the start of these bytes, and how many bytes it took.

    Raises ValueError where the table is not one: they must sum to 2**scale.
    """
    if len(data) < 2:
        raise ValueError("a table of symbols without an end")
    last = int(data[0])
    room = data[1 : 1 + ((last + 1) * (2 * MAX_SCALE + 1 + 2 * 8 + 1) + 7) // 8]
    numbers = _numbers(np.unpackbits(np.frombuffer(room, np.uint8)).tolist())
    found, symbol, position = np.zeros(256, np.int64), 0, 0
    while symbol <= last:
        length = next(numbers)[0] if runs else 1
        value, position = next(numbers)
        if symbol + length > last + 1:
            raise ValueError("a table of more symbols than it has")
        found[symbol : symbol + length] = value - 1
        symbol += length
    if int(found.sum()) != 1 << scale:
        raise ValueError(f"frequencies that sum to {int(found.sum())}, not {1 << scale}")
    return found, 1 + (position + 7) // 8


def _numbers(bits: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each number of a gamma code and where its bits end; ValueError where they do not."""
    position = 0
    while True:
        zeros = 0
        while position < len(bits) and not bits[position]:
            zeros, position = zeros + 1, position + 1
        if zeros > MAX_SCALE or position + zeros + 1 > len(bits):
            raise ValueError("a table of symbols without an end")
        value = 0
        for bit in bits[position : position + zeros + 1]:
            value = value << 1 | bit
        position += zeros + 1
        yield value, position
