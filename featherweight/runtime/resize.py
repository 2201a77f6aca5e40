# SPDX-License-Identifier: Apache-2.0
"""Resizing as detectors are trained with it: bilinear between four pixels, and the mean over areas, in NumPy.

`bilinear` works in whole numbers, eleven bits a weight, so it gives the same bits everywhere; like OpenCV's and unlike
Pillow's it does not blur when it shrinks. Borders repeat their pixels. What it does not do: other filters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # (H, W, C)
BITS = 11  # of a weight


def bilinear(image: Picture, height: int, width: int) -> Picture:
    """(H, W, C) uint8 -> (height, width, C): each pixel between the four nearest to its place."""
    if image.shape[:2] == (height, width):
        return image
    if image.shape[:2] == (2 * height, 2 * width):
        return _halved(image)
    top, below, high = _taps(image.shape[0], height)  # high: the weights (2, height) of top and below
    left, right, wide = _taps(image.shape[1], width)
    if image.shape[0] > 2 * height:  # rows that nobody looks at
        rows, place = np.unique(np.concatenate([top, below]), return_inverse=True)
        image, top, below = image[rows], place[:height], place[height:]
    channels = image.shape[2]
    flat = np.ascontiguousarray(image).reshape(len(image), -1)
    across = _columns(flat, left, channels)
    across *= np.repeat(wide[0], channels)
    second = _columns(flat, right, channels)
    second *= np.repeat(wide[1], channels)
    across += second
    across >>= 4
    out = across.take(top, axis=0)
    out *= high[0][:, None]
    out >>= 16
    second = across.take(below, axis=0)
    second *= high[1][:, None]
    second >>= 16
    out += second
    out += 2
    out >>= 2
    return out.astype(np.uint8).reshape(height, width, channels)


def _columns(flat: Picture, which: NDArray[np.intp], channels: int) -> NDArray[np.int32]:
    """Some pixels of each row (H, W * channels), one after the other."""
    places = (which[:, None] * channels + np.arange(channels)).ravel()
    return flat.take(places, axis=1).astype(np.int32)


def _taps(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]:
    """For each new pixel the two old ones it lies between, and their weights (2, new) out of 2 ** BITS."""
    place = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)  # as OpenCV rounds it
    first = np.floor(place).astype(np.intp)
    share = np.where((first < 0) | (first >= old - 1), np.float32(0), place - first.astype(np.float32))
    first = first.clip(0, old - 1)
    weights = np.rint(np.stack([1 - share, share]) * np.float32(1 << BITS)).astype(np.int32)
    return first, np.minimum(first + 1, old - 1), weights


def _halved(image: Picture) -> Picture:
    """Each pixel the mean of four, which is what both ways come to here."""
    pairs = image[0::2].astype(np.uint16)
    pairs += image[1::2]
    sums = pairs[:, 0::2] + pairs[:, 1::2]
    sums += 2
    sums >>= 2
    return sums.astype(np.uint8)


def area(image: Picture, height: int, width: int) -> Picture:
    """(H, W, C) uint8 -> (height, width, C): the mean over what each pixel covers; only for making smaller."""
    if image.shape[:2] == (height, width):
        return image
    if image.shape[:2] == (2 * height, 2 * width):
        return _halved(image)
    rows = _means(image.astype(np.float64), height)
    both = _means(np.ascontiguousarray(rows.transpose(1, 0, 2)), width).transpose(1, 0, 2)
    return np.rint(both).clip(0, 255).astype(np.uint8)


def _means(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """(N, ...) -> (count, ...): means over equal stretches of the first axis, parts of a row counted as such."""
    n = len(values)
    if n == count:
        return values
    edges = np.arange(count + 1) * (n / count)
    whole = np.minimum(edges.astype(np.intp), n)
    part = (edges - whole).reshape(-1, *[1] * (values.ndim - 1))
    sums = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
    until = sums[whole] + part * values[np.minimum(whole, n - 1)]
    return np.diff(until, axis=0) * (count / n)
