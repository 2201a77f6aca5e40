# SPDX-License-Identifier: Apache-2.0
"""Hue, saturation and value, changed by 256-entry tables in whole numbers, as YOLOv7 was trained (fact sheet, 8).

Hue counts 0..179, two degrees each, as OpenCV's 8-bit conversion has it; so do its roundings.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # (H, W, 3) RGB
HUES = 180
BITS = 12
_DIVIDE = np.arange(256, dtype=np.float64)
_DIVIDE[0] = np.inf
_BY_VALUE = np.rint((255 << BITS) / _DIVIDE).astype(np.int32)
_BY_RANGE = np.rint((HUES << BITS) / (6 * _DIVIDE)).astype(np.int32)
_HALF = 1 << (BITS - 1)
_PLACE = np.arange(HUES).astype(np.float32) * np.float32(6 / HUES)  # sixths of the circle
_REST = _PLACE - np.floor(_PLACE)
# For each sixth what red, green and blue lack of the value, as shares of the saturation: none, all, rest or 1 - rest.
_LACKS = np.stack([np.zeros_like(_REST), np.ones_like(_REST), _REST, 1 - _REST])
_SECTORS = np.array([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])
_SHARES = _LACKS[_SECTORS[_PLACE.astype(np.intp)], np.arange(HUES)[:, None]].T.copy()  # (3, 180)


def hsv_changed(picture: Picture, gains: tuple[float, float, float]) -> Picture:
    """The picture with hue, saturation and value times `gains`; hue goes round, the others end at 255."""
    levels = np.arange(256)
    hues = ((levels * gains[0]) % HUES).astype(np.uint8)
    saturations, values = (np.clip(levels * gain, 0, 255).astype(np.uint8) for gain in gains[1:])
    hue, saturation, value = to_hsv(picture)
    return from_hsv(hues.take(hue), saturations.take(saturation), values.take(value))


def to_hsv(picture: Picture) -> tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.integer]]:
    """RGB (H, W, 3) -> hue 0..179, saturation and value 0..255, each (H, W)."""
    r, g, b = (picture[..., c].astype(np.int16) for c in range(3))
    value = np.maximum(np.maximum(r, g), b)
    spread = value - np.minimum(np.minimum(r, g), b)
    saturation = spread * _BY_VALUE.take(value)
    saturation += _HALF
    saturation >>= BITS
    turn = r - g
    turn += 4 * spread
    np.copyto(turn, b - r + 2 * spread, where=value == g)
    np.copyto(turn, g - b, where=value == r)
    hue = turn * _BY_RANGE.take(spread)
    hue += _HALF
    hue >>= BITS
    np.add(hue, HUES, out=hue, where=hue < 0)
    return hue, saturation, value


def from_hsv(hue: NDArray[np.integer], saturation: NDArray[np.integer], value: NDArray[np.integer]) -> Picture:
    """Hue 0..179, saturation and value 0..255, each (H, W) -> RGB (H, W, 3)."""
    s, v = saturation.astype(np.float32), value.astype(np.float32)
    s *= np.float32(1 / 255)
    found = np.empty((*hue.shape, 3), np.uint8)
    for c in range(3):
        share = _SHARES[c].take(hue)
        share *= s
        np.subtract(1, share, out=share)
        share *= v
        found[..., c] = share
    return found
