# SPDX-License-Identifier: Apache-2.0
"""The pixels of a JPEG by libjpeg-turbo without Pillow's copies, where simplejpeg is installed: the same to the bit.

Anything unusual, gray, CMYK, cut or damaged, is left to Pillow and its messages.
"""

from __future__ import annotations

import re

import numpy as np

MAX_SCANS = 100  # encoders write about ten; each costs a pass over all pixels, and as little as 50 bytes
_MARKER = re.compile(rb"\xff+([^\xff\x00\x01\xd0-\xd8])")  # one with a length, or the end


def has_too_many_scans(data: bytes) -> bool:
    """Whether decoding would pass over the picture more than MAX_SCANS times. What follows its end does not count."""
    if data.count(b"\xff\xda") <= MAX_SCANS:
        return False
    position, scans = 2, 0
    while scans <= MAX_SCANS and (found := _MARKER.search(data, position)) and found[1] != b"\xd9":
        scans += found[1] == b"\xda"
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return scans > MAX_SCANS


def pixels(data: bytes, size: tuple[int, int]) -> np.ndarray | None:
    """RGB, uint8 (H, W, 3), of a JPEG of that width and height; None where Pillow should read it."""
    try:
        import simplejpeg
    except ImportError:
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        if colors != "YCbCr" or (width, height) != size:
            return None
        found: np.ndarray = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:  # its only error, warnings of the decoder among it
        return None
    return found
