# SPDX-License-Identifier: Apache-2.0
"""The pixels of a JPEG by libjpeg-turbo without Pillow's copies, where simplejpeg is installed: the same to the bit.

Anything unusual, gray, CMYK, cut or damaged, is left to Pillow and its messages.
"""

from __future__ import annotations

import numpy as np


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
