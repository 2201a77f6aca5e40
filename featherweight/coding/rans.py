# SPDX-License-Identifier: Apache-2.0
"""Range asymmetric numeral systems (Duda 2013, arXiv 1311.2540): an entropy coder within a fraction of a percent.

Many independent coders, "lanes", take turns (Giesen 2014, arXiv 1402.3392), symbol i going to lane i mod L, so that
NumPy decodes a row of L symbols by one operation each. All lanes share one run of 16-bit words: a row's lanes that need
a word take the next ones in order. Symbols are bytes; what they cost is in `frequencies`.
"""

from __future__ import annotations

import numpy as np

from .frequencies import MAX_SCALE, Array, best_table, read

LOWEST = np.uint32(1 << 16)  # a state is from here to below 2**32; one 16-bit word at a time goes out or comes in
PER_LANE = ((1 << 14, 2048), (1 << 15, 1024), (1 << 62, 512))  # symbols of a lane, in streams of at most so many:
RUNS = 0x80  # in the first byte, beside the scale: the table says runs
MAX_LANES = 1 << 14  # each costs two bytes more than its symbols, and fewer lanes are more calls of NumPy


def encode(symbols: Array) -> bytes:
    """Bytes (n,) of at least two kinds -> scale and form of the table, log2 of the lanes, table, states, words."""
    table = best_table(np.bincount(symbols, minlength=256))
    starts = np.concatenate([[0], np.cumsum(table.frequencies)[:-1]]).astype(np.uint32)
    width = table.frequencies.astype(np.uint32)
    power = _lanes(len(symbols))
    states, words = _encoded(symbols, width, starts, table.scale, 1 << power)
    first = table.scale | (RUNS if table.runs else 0)
    return bytes([first, power]) + table.data + states.astype("<u4").tobytes() + words.astype("<u2").tobytes()


def _lanes(count: int) -> int:
    """log2 of the number of lanes."""
    each = next(symbols for most, symbols in PER_LANE if count <= most)
    return max(0, min(MAX_LANES.bit_length() - 1, (count // each).bit_length() - 1))


def _encoded(symbols: Array, width: Array, starts: Array, scale: int, lanes: int) -> tuple[Array, Array]:
    """States (L,) and words; the last symbol is encoded first, as the decoder goes the other way."""
    states = np.full(lanes, LOWEST, np.uint32)
    found: list[Array] = []
    for begin in range((len(symbols) - 1) // lanes * lanes, -1, -lanes):
        row = symbols[begin : begin + lanes]
        x, f = states[: len(row)], width[row]
        full = np.flatnonzero(x >= f << np.uint32(32 - scale))
        found.append((x[full] & np.uint32(0xFFFF)).astype(np.uint16))
        x[full] >>= np.uint32(16)
        quotient = x // f
        x[:] = (quotient << np.uint32(scale)) + (x - quotient * f) + starts[row]
    return states, np.concatenate(found[::-1])


def decode(data: memoryview, count: int) -> Array:
    """The `count` symbols that `encode` was given, uint8. ValueError for bytes that it cannot have written."""
    if len(data) < 2 or not 1 <= data[0] & ~RUNS <= MAX_SCALE or 1 << data[1] > MAX_LANES:
        raise ValueError("no stream of this coder")
    scale, lanes = data[0] & ~RUNS, 1 << int(data[1])
    frequencies, used = read(data[2:], scale, runs=bool(data[0] & RUNS))
    states = np.frombuffer(data[2 + used : 2 + used + 4 * lanes], "<u4").astype(np.uint32)
    rest = data[2 + used + 4 * lanes :]
    if len(states) != lanes or len(rest) % 2 or int(frequencies.max()) >= 1 << scale:
        raise ValueError("a stream without its end")
    words = np.frombuffer(rest, "<u2").astype(np.uint32)
    out = np.empty(count, np.uint8)
    taken = _decoded(states, words, _table(frequencies), scale, out)
    if taken != len(words) or bool((states != LOWEST).any()):
        raise ValueError("a stream that does not end where it began")
    return out


def _table(frequencies: Array) -> Array:
    """For each of the 2**scale slots: symbol, frequency << 8, and the slot's place within its symbol << 20."""
    symbols = np.repeat(np.arange(256), frequencies)
    starts = np.cumsum(frequencies) - frequencies
    place = np.arange(len(symbols)) - starts[symbols]
    return (symbols | frequencies[symbols] << 8 | place << 20).astype(np.uint32)


def _decoded(x: Array, words: Array, table: Array, scale: int, out: Array) -> int:
    """Fill `out` row by row, leaving the states as they end; how many words were taken."""
    lanes, position = len(x), 0
    slot, entry = np.empty_like(x), np.empty_like(x)
    mask, shift = np.uint32((1 << scale) - 1), np.uint32(scale)
    eight, twenty, sixteen, twelve = (np.uint32(n) for n in (8, 20, 16, 0xFFF))
    for begin in range(0, len(out), lanes):
        size = min(lanes, len(out) - begin)
        if size < lanes:
            x, slot, entry = x[:size], slot[:size], entry[:size]
        np.bitwise_and(x, mask, out=slot)
        np.take(table, slot, out=entry, mode="clip")
        out[begin : begin + size] = entry  # its lowest byte
        np.right_shift(x, shift, out=x)
        np.right_shift(entry, eight, out=slot)
        np.bitwise_and(slot, twelve, out=slot)
        np.multiply(x, slot, out=x)
        np.right_shift(entry, twenty, out=entry)
        np.add(x, entry, out=x)
        low = np.flatnonzero(x < LOWEST)
        if low.size:
            x[low] = x[low] << sixteen | words[position : position + low.size]
            position += low.size
    return position
