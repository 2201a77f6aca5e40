# SPDX-License-Identifier: Apache-2.0
"""One run of bytes, coded by whatever makes it smallest, and decoded without trusting what it says of itself.

Coders: `raw`; `same` (one symbol all along); `deflate` (zlib's); `rans` and `huffman` (ours, in NumPy); `zstd`, where
the zstandard package is installed. `auto` takes the smallest of the first four, and zlib's, which decodes several times
as fast as ours, where it is within one percent of that. Measured in docs/studies/coders.md.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from featherweight.doors.stored import Buffer
from featherweight.errors import OptionError, closest, missing_extra

from . import huffman, rans
from .frequencies import Array, entropy_bytes

AUTO = "auto"
CODERS = ("raw", "same", "deflate", "rans", "huffman", "zstd")  # a file names them; their order means nothing
CHOICES = (AUTO, "raw", "deflate", "rans", "huffman", "zstd")
NEAR = 0.01  # what `auto` gives away for a coder that is faster
RANDOM = 0.995  # of eight bits for each symbol: nothing to be gained
SHORT = 32  # symbols for which a table is not worth its bytes
SLOW = 1 << 14  # symbols from which its speed matters
LONGEST = 1 << 31  # symbols of one stream


@dataclass(frozen=True)
class Coded:
    """A stream as it stands in a file: who decodes it, how many symbols come out, its bytes."""

    coder: str
    count: int
    data: Buffer


def encode(symbols: Array, coder: str = AUTO) -> Coded:
    """Symbols (n,), uint8, as a stream; `coder` is one of CHOICES. One that would only add bytes gives way to raw."""
    if coder not in CHOICES:
        raise OptionError("coder", f"no {coder!r}; {closest(coder, CHOICES)}Known: {', '.join(CHOICES)}")
    count = len(symbols)
    raw = Coded("raw", count, symbols.tobytes())
    if count < SHORT or coder == "raw":
        return raw
    if bool((symbols == symbols[0]).all()):
        return Coded("same", count, symbols[:1].tobytes())
    if entropy_bytes(np.bincount(symbols, minlength=256)) > RANDOM * count:
        return raw
    if coder != AUTO:
        found = Coded(coder, count, _ENCODERS[coder](symbols))
        return found if len(found.data) < count else raw
    ours, zlibs = (Coded(name, count, _ENCODERS[name](symbols)) for name in ("rans", "deflate"))
    margin = 1 + NEAR if count >= SLOW else 1.0
    best = zlibs if len(zlibs.data) <= margin * len(ours.data) else ours
    return best if len(best.data) < count else raw


def decode(stream: Coded) -> Array:
    """The symbols again. ValueError for bytes that the coder cannot have written."""
    data = memoryview(stream.data)
    if stream.coder == "raw":
        found = np.frombuffer(data, np.uint8)
    elif stream.coder == "same":
        found = np.full(stream.count if len(data) == 1 else -1, data[0] if len(data) else 0, np.uint8)
    else:
        found = _DECODERS[stream.coder](data, stream.count)
    if len(found) != stream.count:
        raise ValueError(f"{len(found)} symbols where {stream.count} are due")
    return found


def _deflate(symbols: Array) -> bytes:
    """zlib's: its Huffman codes alone, or with repeats, whichever is smaller; no header."""
    data, found = symbols.tobytes(), []
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY):
        coder = zlib.compressobj(9 if strategy == zlib.Z_HUFFMAN_ONLY else 6, zlib.DEFLATED, -15, 9, strategy)
        found.append(coder.compress(data) + coder.flush())
    return min(found, key=len)


def _inflate(data: memoryview, count: int) -> Array:
    reader = zlib.decompressobj(-15)
    try:
        found = reader.decompress(data, count + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not reader.eof or reader.unconsumed_tail or reader.unused_data:
        raise ValueError("a stream without its end, or with more behind it")
    return np.frombuffer(found, np.uint8)


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise missing_extra("the coder zstd", "zstandard", "zstd") from None
    return zstandard


def _zstd(symbols: Array) -> bytes:
    made: bytes = _zstandard().ZstdCompressor(level=1, write_content_size=True).compress(symbols.tobytes())
    return made


def _unzstd(data: memoryview, count: int) -> Array:
    zstandard = _zstandard()
    try:
        if zstandard.get_frame_parameters(bytes(data[:18])).content_size != count:
            raise ValueError("another length than is due")
        reader = zstandard.ZstdDecompressor().decompressobj()
        found = reader.decompress(data)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    if not reader.eof or reader.unused_data:
        raise ValueError("a stream without its end, or with more behind it")
    return np.frombuffer(found, np.uint8)


_ENCODERS: dict[str, Callable[[Array], bytes]] = {
    "deflate": _deflate,
    "rans": rans.encode,
    "huffman": huffman.encode,
    "zstd": _zstd,
}
_DECODERS: dict[str, Callable[[memoryview, int], Array]] = {
    "deflate": _inflate,
    "rans": rans.decode,
    "huffman": huffman.decode,
    "zstd": _unzstd,
}
