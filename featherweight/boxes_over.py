# SPDX-License-Identifier: Apache-2.0
"""Detections drawn over a picture: a frame in the color of the class, its name and the score."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

TURN = 0.618034  # of the color wheel from one class to the next, so that neighbors differ most


def drawn(
    picture: NDArray[np.uint8], detections: NDArray[np.float64], label: Callable[[int], str]
) -> NDArray[np.uint8]:
    """A copy of the picture (H, W, 3) with its detections (n, 6) [x1, y1, x2, y2, score, class] in its own pixels."""
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    size = max(10, round(min(canvas.size) / 40))
    wide, font = max(2, size // 6), ImageFont.load_default(size)
    for x1, y1, x2, y2, score, number in detections[::-1].tolist():  # the best on top
        color = color_of(int(number))
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=wide)
        text = f"{label(int(number))} {score:.2f}"
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        height, width = bottom - top + 2 * wide, right - left + 2 * wide
        above = y1 - height if y1 >= height else y1
        pen.rectangle((x1, above, x1 + width, above + height), fill=color)
        light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
        pen.text((x1 + wide - left, above + wide - top), text, fill="black" if light > 140 else "white", font=font)
    return np.asarray(canvas)


def color_of(number: int) -> tuple[int, int, int]:
    """Red, green, blue 0..255 of a class, always the same."""
    rgb = colorsys.hsv_to_rgb((number * TURN) % 1, 0.85, 0.95)
    return round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])
