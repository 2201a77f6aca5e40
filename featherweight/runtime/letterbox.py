# SPDX-License-Identifier: Apache-2.0
"""A picture of any shape into a detector's input, and its boxes back: scaled to fit, the rest padded with gray.

A `Placement` remembers exactly where the picture went: its gain along each axis and the whole pixels of padding. By it
a corner of the picture comes back as that corner, which one shared gain and half pixels of padding do not give.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import InputError, OptionError
from featherweight.runtime.resize import bilinear

GRAY = 114
Boxes = NDArray[np.floating]


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in the network's input: x there = x * gain[0] + pad[0], y alike; sizes (height, width)."""

    image: tuple[int, int]  # of the picture as it was read
    net: tuple[int, int]  # of the network's input
    gain: tuple[float, float]  # along x, along y
    pad: tuple[float, float]  # left, top

    def forward(self, boxes: Boxes) -> NDArray[np.float64]:
        """Boxes (n, 4) xyxy of the picture -> of the network's input."""
        return np.asarray(boxes, np.float64) * np.tile(self.gain, 2) + np.tile(self.pad, 2)

    def back(self, boxes: Boxes, *, clip: bool = True) -> NDArray[np.float64]:
        """Boxes (n, 4) xyxy of the network's input -> of the picture; with `clip` none leaves it."""
        found = (np.asarray(boxes, np.float64) - np.tile(self.pad, 2)) / np.tile(self.gain, 2)
        height, width = self.image
        return found.clip(0, (width, height, width, height)) if clip else found

    def detections(self, rows: Boxes) -> NDArray[np.float64]:
        """Detections (n, 6) [x1, y1, x2, y2, score, class] of the input -> the same of the picture."""
        rows = np.asarray(rows, np.float64)
        return np.concatenate([self.back(rows[:, :4]), rows[:, 4:]], axis=1)

    def row(self) -> tuple[float, float, float, float, float, float]:
        """What a batch carries under "shape": gain x, gain y, pad left, pad top, net height, net width."""
        return (*self.gain, *self.pad, *self.net)

    @classmethod
    def from_row(cls, row: NDArray[np.floating], image: tuple[int, int]) -> Placement:
        """The placement behind a row of "shape" and one of "size"."""
        gx, gy, left, top, height, width = (float(value) for value in row)
        return cls((int(image[0]), int(image[1])), (int(height), int(width)), (gx, gy), (left, top))

    @classmethod
    def centered(cls, net: tuple[int, int], image: tuple[int, int]) -> Placement:
        """What is guessed where nothing was remembered: one gain for both axes, half the rest as padding."""
        gain = min(net[0] / image[0], net[1] / image[1])
        return cls(image, net, (gain, gain), ((net[1] - image[1] * gain) / 2, (net[0] - image[0] * gain) / 2))


@dataclass(frozen=True)
class Letterbox:
    """Picture (H, W, 3) uint8 -> the same inside (height, width), and its `Placement` (fact sheet, 9).

    auto: pad only up to the next multiple of `stride`. scale_up: whether small pictures are enlarged. stretch: fill the
    input and give up the shape.
    """

    size: tuple[int, int] = (640, 640)  # height, width
    auto: bool = False
    scale_up: bool = True
    stretch: bool = False
    stride: int = 32
    color: int = GRAY

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not all(isinstance(n, int) and 1 <= n <= 16384 for n in self.size):
            raise OptionError("letterbox.size", f"must be (height, width) of 1..16384, not {self.size!r}")
        if not 1 <= self.stride <= 1024:
            raise OptionError("letterbox.stride", f"must be 1..1024, not {self.stride!r}")
        if not 0 <= self.color <= 255:
            raise OptionError("letterbox.color", f"must be 0..255, not {self.color!r}")

    def ratio(self, height: int, width: int) -> tuple[float, float]:
        """How much a picture of this size is scaled along x and y, before its sides become whole pixels."""
        down, across = self.size[0] / height, self.size[1] / width
        if self.stretch and not self.auto:
            return across, down
        gain = min(down, across)
        gain = gain if self.scale_up else min(gain, 1.0)
        return gain, gain

    def inner(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the scaled picture without its padding."""
        across, down = self.ratio(height, width)
        return max(1, round(height * down)), max(1, round(width * across))

    def place(self, height: int, width: int) -> Placement:
        """Where a picture of this size goes."""
        high, wide = self.inner(height, width)
        rest = [self.size[0] - high, self.size[1] - wide]
        if self.auto:
            rest = [n % self.stride for n in rest]
        top, left = (round(n / 2 - 0.1) for n in rest)
        net = (high + rest[0], wide + rest[1])
        return Placement((height, width), net, (wide / width, high / height), (left, top))

    def __call__(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Placement]:
        """The picture in its box; gray where nothing of it is."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError("picture", "bad_shape", f"must be uint8 (H, W, 3), not {image.dtype} {image.shape}")
        placement = self.place(*image.shape[:2])
        return put(image, self.inner(*image.shape[:2]), placement, color=self.color), placement


def put(
    image: NDArray[np.uint8],
    inner: tuple[int, int],
    placement: Placement,
    *,
    color: int = GRAY,
    resize: Callable[[NDArray[np.uint8], int, int], NDArray[np.uint8]] = bilinear,
) -> NDArray[np.uint8]:
    """The picture resized to `inner` (height, width) at its place in an input of one color."""
    resized = resize(image, *inner)
    if inner == placement.net:
        return resized
    out = np.full((*placement.net, 3), color, np.uint8)
    left, top = int(placement.pad[0]), int(placement.pad[1])
    out[top : top + inner[0], left : left + inner[1]] = resized
    return out
