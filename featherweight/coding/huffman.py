# SPDX-License-Identifier: Apache-2.0
"""Canonical Huffman codes of at most 12 bits: the third stage of Deep Compression (Han 2016, arXiv 1510.00149).

Only the length of each symbol's code is stored (Schwartz 1964); symbols of one length get codes in their own order. The
stream is cut into lanes of equal many symbols, each starting at a byte, so that NumPy decodes one symbol of every lane
by one operation. Symbols are bytes.
"""

from __future__ import annotations

import heapq

import numpy as np

from .frequencies import Array

LONGEST = 12  # bits; a table of 4096 entries tells symbol and length at once
PER_LANE = 1024  # symbols; a lane costs half a byte and the four that say where it begins
MAX_LANES = 1 << 14


def lengths(counts: Array) -> Array:
    """Code length of each symbol (256,), 0 for an absent one, by Huffman's algorithm; long codes are cut to 12 bits."""
    present = np.flatnonzero(counts)
    found = np.zeros(256, np.int64)
    if len(present) == 1:
        found[present] = 1  # a code has at least one bit
        return found
    heap = [(int(counts[symbol]), int(symbol), [int(symbol)]) for symbol in present]
    heapq.heapify(heap)
    while len(heap) > 1:
        (a, first, left), (b, second, right) = heapq.heappop(heap), heapq.heappop(heap)
        found[left + right] += 1
        heapq.heappush(heap, (a + b, min(first, second), left + right))
    return _limited(found, counts)


def _limited(found: Array, counts: Array) -> Array:
    """No code longer than LONGEST: the rarest of the shorter ones grow until all fit, then the most frequent shrink."""
    found = np.minimum(found, LONGEST)
    room = 1 << LONGEST

    def taken() -> int:
        return int((room >> found[found > 0]).sum())

    rare_first = [int(s) for s in np.argsort(counts, kind="stable") if counts[s]]
    while taken() > room:
        symbol = next(s for s in rare_first if found[s] < LONGEST)
        found[symbol] += 1
    while taken() < room:  # a multiple of what the longest code takes is left, so this ends with nothing left
        symbol = next(s for s in reversed(rare_first) if taken() + (room >> found[s]) <= room)
        found[symbol] -= 1
    return found


def codes_of(found: Array) -> Array:
    """Each symbol's code (256,) as a number, the first bit the highest."""
    codes, code, before = np.zeros(256, np.int64), 0, 0
    for symbol in sorted(np.flatnonzero(found), key=lambda s: (found[s], s)):
        code <<= int(found[symbol]) - before
        before = int(found[symbol])
        codes[symbol] = code
        code += 1
    return codes


def encode(symbols: Array) -> bytes:
    """Bytes (n,) -> highest symbol, lengths of four bits, log2 of the lanes, where each begins, bits."""
    found = lengths(np.bincount(symbols, minlength=256))
    codes, last = codes_of(found), int(np.flatnonzero(found)[-1])
    table = np.resize(np.append(found[: last + 1], 0), (last + 2) // 2 * 2).reshape(-1, 2)
    power = max(0, min(int(np.log2(MAX_LANES)), int(len(symbols) // PER_LANE).bit_length() - 1))
    parts = [_bits(part, found, codes) for part in _split(symbols, 1 << power)]
    begins = np.cumsum([0] + [len(part) for part in parts[:-1]]).astype("<u4")
    head = bytes([last]) + (table[:, 0] << 4 | table[:, 1]).astype(np.uint8).tobytes() + bytes([power])
    return head + begins.tobytes() + b"".join(parts)


def _split(symbols: Array, lanes: int) -> list[Array]:
    """Lanes of equal many symbols; the last ones may be shorter, or empty."""
    each = -(-len(symbols) // lanes)
    return [symbols[lane * each : (lane + 1) * each] for lane in range(lanes)]


def _bits(symbols: Array, found: Array, codes: Array) -> bytes:
    size = found[symbols]
    places = np.arange(LONGEST)
    bits = codes[symbols][:, None] >> (size[:, None] - 1 - places).clip(0) & 1
    return np.packbits(bits[places < size[:, None]].astype(np.uint8)).tobytes()


def decode(data: memoryview, count: int) -> Array:
    """The `count` symbols that `encode` was given, uint8. ValueError for bytes that it cannot have written."""
    if len(data) < 3:
        raise ValueError("a stream without its end")
    last = int(data[0])
    size = (last + 2) // 2
    pairs = np.frombuffer(data[1 : 1 + size], np.uint8)
    found = np.zeros(257, np.int64)
    found[: 2 * len(pairs)] = np.stack([pairs >> 4, pairs & 15], 1).ravel()[:257]
    rest = data[1 + size :]
    if len(pairs) != size or not len(rest) or 1 << rest[0] > MAX_LANES or found.max() > LONGEST:
        raise ValueError("no stream of this coder")
    lanes = 1 << int(rest[0])
    begins = np.frombuffer(rest[1 : 1 + 4 * lanes], "<u4").astype(np.int64)
    bits = np.frombuffer(bytes(rest[1 + 4 * lanes :]) + bytes(4), np.uint8)
    if len(begins) != lanes or int(begins.max()) > len(bits) - 4:
        raise ValueError("a stream without its end")
    return _decoded(bits, begins, _table(found[:256]), -(-count // lanes), lanes)[:count]


def _table(found: Array) -> Array:
    """For every 12 bits: the symbol they begin with, and its length << 8. ValueError where some begin with none."""
    ordered = sorted(np.flatnonzero(found), key=lambda s: (found[s], s))
    entries = [(symbol | found[symbol] << 8, 1 << (LONGEST - int(found[symbol]))) for symbol in ordered]
    table = np.repeat([entry for entry, _ in entries], [size for _, size in entries])
    if len(table) != 1 << LONGEST and len(ordered) != 1:
        raise ValueError("lengths of codes that are no code")
    return np.resize(table, 1 << LONGEST).astype(np.uint32)


def _decoded(bits: Array, begins: Array, table: Array, each: int, lanes: int) -> Array:
    """Symbols (n,) lane after lane; each row of the loop is one symbol of every lane."""
    wide = bits.astype(np.uint32)
    windows = wide[:-2] << 16 | wide[1:-1] << 8 | wide[2:]  # the 24 bits that begin at a byte
    place, top = begins * 8, len(windows) * 8 - 1
    out = np.empty((each, lanes), np.uint8)
    for row in out:
        entry = table[windows[place >> 3] >> (12 - (place & 7)) & 0xFFF]
        row[:] = entry
        place += entry >> 8
        np.minimum(place, top, out=place)
    return np.ascontiguousarray(out.T).ravel()
