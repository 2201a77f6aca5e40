# SPDX-License-Identifier: Apache-2.0
"""A picture with its objects, moved: affine and perspective changes of pixels, boxes and outlines together.

Matrices map pixel places (x, y, 1) of the old picture to the new one. A box with an outline becomes the tight box of
its moved outline, one without the box around its moved corners. Which of them are still worth training on: `worth`
(fact sheet, 8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from featherweight.data.objects import Objects, Ring
from featherweight.runtime.letterbox import GRAY

Picture = NDArray[np.uint8]
Matrix = NDArray[np.float64]  # (3, 3)
POINTS = 1000  # along an outline
MIN_SIDE, MAX_ASPECT = 2.0, 20.0
MIN_AREA, MIN_AREA_OUTLINED = 0.10, 0.01  # of what the box had before, scaled


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture (H, W, 3) and what lies in it: boxes (n, 4) xyxy in pixels, labels (n,), the outline of each."""

    picture: Picture
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    outlines: tuple[tuple[Ring, ...], ...]

    @classmethod
    def of(cls, picture: Picture, objects: Objects) -> Scene:
        """The objects to train on, at the picture's own size."""
        one = objects.targets()
        return cls(picture, one.boxes, one.labels, one.outlines or ((),) * len(one))

    def take(self, keep: NDArray[np.integer] | NDArray[np.bool_]) -> Scene:
        """Some of the objects."""
        which = np.flatnonzero(keep) if keep.dtype == bool else keep
        outlines = tuple(self.outlines[int(i)] for i in which)
        return Scene(self.picture, self.boxes[which], self.labels[which], outlines)

    def moved(self, gain: tuple[float, float], shift: tuple[float, float], picture: Picture) -> Scene:
        """The objects scaled and shifted, on another picture; nothing is clipped."""
        boxes = self.boxes * np.tile(gain, 2) + np.tile(shift, 2)
        outlines = tuple(tuple(ring * gain + shift for ring in outline) for outline in self.outlines)
        return Scene(picture, boxes, self.labels, outlines)

    def flipped(self, *, across: bool) -> Scene:
        """Mirrored left to right, or upside down."""
        height, width = self.picture.shape[:2]
        picture = np.ascontiguousarray(self.picture[:, ::-1] if across else self.picture[::-1])
        sides = [2, 1, 0, 3] if across else [0, 3, 2, 1]
        boxes, axis, span = self.boxes[:, sides].copy(), 0 if across else 1, width if across else height
        boxes[:, axis::2] = span - boxes[:, axis::2]
        outlines = []
        for outline in self.outlines:
            rings = [ring.copy() for ring in outline]
            for ring in rings:
                ring[:, axis] = span - ring[:, axis]
            outlines.append(tuple(rings))
        return Scene(picture, boxes, self.labels, tuple(outlines))


def joined(scenes: list[Scene], picture: Picture) -> Scene:
    """The objects of several scenes on one picture."""
    boxes = np.concatenate([one.boxes for one in scenes])
    labels = np.concatenate([one.labels for one in scenes])
    return Scene(picture, boxes, labels, tuple(outline for one in scenes for outline in one.outlines))


@dataclass(frozen=True)
class Move:
    """One change, drawn: perspective, degrees, scale, shear in degrees, and where the middle goes, as shares of the
    output's width and height."""

    perspective: tuple[float, float] = (0.0, 0.0)
    degrees: float = 0.0
    scale: float = 1.0
    shear: tuple[float, float] = (0.0, 0.0)
    middle: tuple[float, float] = (0.5, 0.5)

    def matrix(self, size: tuple[int, int], out: tuple[int, int]) -> Matrix:
        """From a picture of `size` (height, width) to one of `out`: T @ Shear @ RotScale @ Perspective @ Centre."""
        center, view, turn, shear, shift = (np.eye(3) for _ in range(5))
        center[:2, 2] = -size[1] / 2, -size[0] / 2
        view[2, :2] = self.perspective
        angle = math.radians(self.degrees)
        cos, sin = self.scale * math.cos(angle), self.scale * math.sin(angle)
        turn[:2, :2] = (cos, sin), (-sin, cos)
        shear[0, 1], shear[1, 0] = (math.tan(math.radians(degrees)) for degrees in self.shear)
        shift[:2, 2] = self.middle[0] * out[1], self.middle[1] * out[0]
        found: Matrix = shift @ shear @ turn @ view @ center
        return found


def warped(scene: Scene, move: Move, out: tuple[int, int]) -> Scene:
    """The scene moved into a picture of `out` (height, width), without the objects that hardly anything is left of."""
    matrix = move.matrix(scene.picture.shape[:2], out)
    picture = warped_picture(scene.picture, matrix, out)
    boxes = warped_boxes(scene.boxes, matrix, out)
    least = np.full(len(boxes), MIN_AREA)
    outlines: list[tuple[Ring, ...]] = []
    for i, outline in enumerate(scene.outlines):
        if outline:
            boxes[i], rings = _warped_outline(outline, matrix, out)
            outlines.append(rings)
            least[i] = MIN_AREA_OUTLINED
        else:
            outlines.append(())
    keep = worth(scene.boxes * move.scale, boxes, least=least)
    return replace(scene, picture=picture, boxes=boxes, outlines=tuple(outlines)).take(keep)


def warped_boxes(boxes: NDArray[np.float64], matrix: Matrix, out: tuple[int, int]) -> NDArray[np.float64]:
    """The boxes around the moved corners (n, 4), clipped into `out` (height, width)."""
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)
    places = moved_points(corners, matrix).reshape(-1, 4, 2)
    found = np.concatenate([places.min(1), places.max(1)], axis=1)
    return found.clip(0, (out[1], out[0], out[1], out[0]))


def moved_points(points: NDArray[np.float64], matrix: Matrix) -> NDArray[np.float64]:
    """Points (n, 2) through a matrix."""
    found = points @ matrix[:, :2].T + matrix[:, 2]
    if matrix[2, 0] or matrix[2, 1]:
        return found[:, :2] / found[:, 2:]
    return found[:, :2]


def _warped_outline(
    outline: tuple[Ring, ...], matrix: Matrix, out: tuple[int, int]
) -> tuple[NDArray[np.float64], tuple[Ring, ...]]:
    """The tight box of what lies inside the picture, and the moved outline, clipped; a box of zeros if nothing does."""
    dense = np.concatenate([moved_points(resampled(ring), matrix) for ring in outline])
    inside = dense[((dense >= 0) & (dense <= (out[1], out[0]))).all(1)]
    rings = tuple(moved_points(ring, matrix).clip(0, (out[1], out[0])) for ring in outline)
    if not len(inside):
        return np.zeros(4), rings
    return np.concatenate([inside.min(0), inside.max(0)]), rings


def resampled(ring: Ring, count: int = POINTS) -> Ring:
    """`count` points along a closed outline, as many between any two of its corners."""
    closed = np.concatenate([ring, ring[:1]])
    places, corners = np.linspace(0, len(ring), count), np.arange(len(ring) + 1)
    return np.stack([np.interp(places, corners, closed[:, axis]) for axis in (0, 1)], axis=1)


def worth(
    before: NDArray[np.float64], after: NDArray[np.float64], *, least: float | NDArray[np.float64] = MIN_AREA
) -> NDArray[np.bool_]:
    """Which boxes (n, 4) to keep: sides above 2 pixels, at most 20 times as long as wide, enough of the area left."""
    w1, h1 = (before[:, 2:] - before[:, :2]).T
    w2, h2 = (after[:, 2:] - after[:, :2]).T
    aspect = np.maximum(w2 / (h2 + 1e-16), h2 / (w2 + 1e-16))
    kept: NDArray[np.bool_] = (w2 > MIN_SIDE) & (h2 > MIN_SIDE) & (w2 * h2 / (w1 * h1 + 1e-16) > least)
    return kept & (aspect < MAX_ASPECT)


def warped_picture(picture: Picture, matrix: Matrix, out: tuple[int, int], *, color: int = GRAY) -> Picture:
    """The picture through a matrix into `out` (height, width), bilinear; one color where nothing of it is."""
    height, width = picture.shape[:2]
    plain = matrix[0, 0] == matrix[1, 1] == 1 and not matrix[0, 1] and not matrix[1, 0] and not matrix[2, :2].any()
    if plain and matrix[0, 2] == round(matrix[0, 2]) and matrix[1, 2] == round(matrix[1, 2]):
        return _shifted(picture, round(matrix[0, 2]), round(matrix[1, 2]), out, color)
    back: Matrix = np.linalg.inv(matrix).astype(np.float64)
    left, top, right, bottom = _looked_at(back, (height, width), out)
    if right <= left or bottom <= top:
        return np.full((*out, 3), color, np.uint8)
    # grid_sample wants, for each place of the result, where in the source it comes from, as -1..1
    scale = np.diag([2 / max(1, right - left - 1), 2 / max(1, bottom - top - 1), 1.0])
    scale[:2, 2] = -1 - scale[0, 0] * left, -1 - scale[1, 1] * top
    to = torch.from_numpy((scale @ back).astype(np.float32))
    x = torch.arange(out[1], dtype=torch.float32)[None, :, None]
    y = torch.arange(out[0], dtype=torch.float32)[:, None, None]
    places = x * to[:2, 0] + (y * to[:2, 1] + to[:2, 2])  # (h, w, 2)
    if to[2, :2].any():
        places /= x * to[2:, 0] + (y * to[2:, 1] + to[2:, 2])
    part = picture[top:bottom, left:right]
    part = part if part.flags.writeable else part.copy()  # torch warns of what it may not write to
    source = torch.from_numpy(part).permute(2, 0, 1)[None].float().sub_(color)
    found = F.grid_sample(source, places[None], mode="bilinear", padding_mode="zeros", align_corners=True)
    found = found[0].add_(color).round_().clamp_(0, 255).to(torch.uint8)
    result: Picture = np.empty((*out, 3), np.uint8)
    for c in range(3):  # several times faster than to permute and make contiguous
        result[..., c] = found[c].numpy()
    return result


def _looked_at(back: Matrix, size: tuple[int, int], out: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the part of the source that any place of the result comes from, with a margin."""
    corners = np.array([[0, 0], [out[1], 0], [0, out[0]], [out[1], out[0]]], np.float64)
    if back[2, :2].any() and (corners @ back[2, :2] + back[2, 2] <= 0.05).any():
        return 0, 0, size[1], size[0]  # the horizon is near: no bound by the corners
    places = moved_points(corners, back / back[2, 2])
    low, high = np.floor(places.min(0)).astype(int) - 2, np.ceil(places.max(0)).astype(int) + 3
    return max(0, low[0]), max(0, low[1]), min(size[1], high[0]), min(size[0], high[1])


def _shifted(picture: Picture, dx: int, dy: int, out: tuple[int, int], color: int) -> Picture:
    """Moved by whole pixels: copied, not interpolated."""
    found = np.full((*out, 3), color, np.uint8)
    place(found, picture, dx, dy)
    return found


def place(canvas: Picture, picture: Picture, x: int, y: int) -> None:
    """Write a picture into a canvas with its corner at (x, y); what is outside is cut off."""
    height, width = canvas.shape[:2]
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + picture.shape[1], width), min(y + picture.shape[0], height)
    if right > left and bottom > top:
        canvas[top:bottom, left:right] = picture[top - y : bottom - y, left - x : right - x]
