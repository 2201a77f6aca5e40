# SPDX-License-Identifier: Apache-2.0
"""Several pictures in one: mosaics of four and of nine, mixup, pasting of cut-outs (fact sheet, 8).

Every function is pure: it is given scenes and what was drawn, or a generator of random numbers. Sizes are (height,
width) and need not be square.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from featherweight.data.objects import Ring
from featherweight.data.warp import Picture, Scene, joined, place
from featherweight.runtime.letterbox import GRAY
from featherweight.runtime.resize import bilinear

Size = tuple[int, int]
COVERED = 0.30  # of a label's area that something pasted may hide
PASTE_SIZES = ((0.75, 2), (0.5, 4), (0.25, 4), (0.125, 4), (0.0625, 6))  # largest share of the picture, how often
CUTOUTS = 30  # gathered before pasting begins
MIN_TARGET, MIN_CUTOUT, MIN_PIXELS = 20, 10, 60


def mosaic4(tiles: Sequence[Scene], center: tuple[int, int], size: Size) -> Scene:
    """Four scenes around `center` (x, y) of a canvas twice `size`: each touches it with its nearest corner."""
    canvas = np.full((2 * size[0], 2 * size[1], 3), GRAY, np.uint8)
    x, y = center
    found = []
    for i, tile in enumerate(tiles):
        height, width = tile.picture.shape[:2]
        corner = (x - width * (i % 2 == 0), y - height * (i < 2))
        place(canvas, tile.picture, *corner)
        found.append(tile.moved((1.0, 1.0), corner, canvas))
    return clipped(joined(found, canvas))


def mosaic9(tiles: Sequence[Scene], origin: tuple[int, int], size: Size) -> Scene:
    """Nine scenes, the first in the middle, the others around it clockwise from above, cropped at `origin` (x, y)."""
    canvas = np.full((3 * size[0], 3 * size[1], 3), GRAY, np.uint8)
    corners = corners9([tile.picture.shape[:2] for tile in tiles], size)
    for tile, corner in zip(tiles, corners, strict=True):
        place(canvas, tile.picture, *corner)
    x, y = origin
    window = np.ascontiguousarray(canvas[y : y + 2 * size[0], x : x + 2 * size[1]])
    shifts = [(left - x, top - y) for left, top in corners]
    moved = [tile.moved((1.0, 1.0), shift, window) for tile, shift in zip(tiles, shifts, strict=True)]
    return clipped(joined(moved, window))


def corners9(sizes: Sequence[tuple[int, ...]], size: Size) -> list[tuple[int, int]]:
    """The left upper corner (x, y) of each of nine tiles of these sizes."""
    (h0, w0), right, below = sizes[0], size[1], size[0]
    heights, widths = [one[0] for one in sizes], [one[1] for one in sizes]
    return [
        (right, below),
        (right, below - heights[1]),
        (right + widths[1], below - heights[2]),
        (right + w0, below),
        (right + w0, below + heights[3]),
        (right + w0 - widths[5], below + h0),
        (right + w0 - widths[5] - widths[6], below + h0),
        (right - widths[7], below + h0 - heights[7]),
        (right - widths[8], below + h0 - heights[7] - heights[8]),
    ]


def clipped(scene: Scene) -> Scene:
    """Boxes and outlines cut off at the picture's edges; nothing is left out."""
    height, width = scene.picture.shape[:2]
    outlines = tuple(tuple(ring.clip(0, (width, height)) for ring in outline) for outline in scene.outlines)
    return Scene(scene.picture, scene.boxes.clip(0, (width, height, width, height)), scene.labels, outlines)


def mixup(one: Scene, other: Scene, share: float) -> Scene:
    """`share` of the first picture and the rest of the second, with the objects of both (Zhang 2017, 1710.09412)."""
    mixed = one.picture * np.float32(share) + other.picture * np.float32(1 - share)
    return joined([one, other], mixed.astype(np.uint8))


# ---- outlines --------------------------------------------------------------------------------------------------------


def mask_of(
    outline: Sequence[Ring], height: int, width: int, *, shift: tuple[float, float] = (0, 0)
) -> NDArray[np.bool_]:
    """The filled outline (height, width), moved by `shift`."""
    image = Image.new("1", (width, height))
    draw = ImageDraw.Draw(image)
    for ring in outline:
        points = [(float(x), float(y)) for x, y in np.floor(ring + shift)]
        if len(points) >= 3:
            draw.polygon(points, fill=1, outline=1)
    return np.array(image, bool)


def hidden(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much of each of the others' area a box covers (n,)."""
    wide = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    high = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    return np.maximum(wide, 0) * np.maximum(high, 0) / (areas + 1e-16)


def copy_paste(scene: Scene, rng: np.random.Generator, share: float) -> Scene:
    """A share of the outlined objects once more, mirrored to the other side, where they hide little (2012.07177)."""
    outlined = [i for i, outline in enumerate(scene.outlines) if outline]
    count = round(share * len(outlined))
    if not count:
        return scene
    height, width = scene.picture.shape[:2]
    picture, boxes, labels, outlines = scene.picture.copy(), scene.boxes, [*scene.labels], list(scene.outlines)
    mirror = scene.picture[:, ::-1]
    for i in rng.choice(outlined, count, replace=False).tolist():
        x1, y1, x2, y2 = scene.boxes[i]
        box = np.array([width - x2, y1, width - x1, y2])
        if (hidden(box, boxes) >= COVERED).any():
            continue
        rings = tuple(np.stack([width - ring[:, 0], ring[:, 1]], 1) for ring in scene.outlines[i])
        mask = mask_of(rings, height, width)
        picture[mask] = mirror[mask]
        boxes = np.concatenate([boxes, box[None]])
        labels.append(scene.labels[i])
        outlines.append(rings)
    return Scene(picture, boxes, np.array(labels, np.int64), tuple(outlines))


class Cutout:
    """An object cut out of its picture: pixels (h, w, 3), which of them belong to it (h, w), its class."""

    def __init__(self, pixels: Picture, mask: NDArray[np.bool_], label: int) -> None:
        self.pixels, self.mask, self.label = pixels, mask, label


def cutouts(scene: Scene, rng: np.random.Generator, share: float = 0.5) -> list[Cutout]:
    """A share of the outlined objects of a scene."""
    height, width = scene.picture.shape[:2]
    outlined = [i for i, outline in enumerate(scene.outlines) if outline]
    found = []
    for i in rng.permutation(outlined)[: round(share * len(outlined))].tolist():
        x1, y1 = np.floor(scene.boxes[i, :2]).astype(int).clip(0, (width, height))
        x2, y2 = np.ceil(scene.boxes[i, 2:]).astype(int).clip(0, (width, height))
        if x2 <= x1 or y2 <= y1:
            continue
        mask = mask_of(scene.outlines[i], int(y2 - y1), int(x2 - x1), shift=(-x1, -y1))
        found.append(Cutout(scene.picture[y1:y2, x1:x2], mask, int(scene.labels[i])))
    return found


def paste_in(scene: Scene, pool: Sequence[Cutout], rng: np.random.Generator) -> Scene:
    """Cut-outs pasted at 20 random places, from large ones to small ones, each with probability 0.8."""
    if not pool:
        return scene
    height, width = scene.picture.shape[:2]
    picture, boxes, labels, outlines = scene.picture.copy(), scene.boxes, [*scene.labels], list(scene.outlines)
    for share in (share for share, times in PASTE_SIZES for _ in range(times)):
        if rng.random() < 0.2:
            continue
        high = int(rng.integers(1, max(2, int(height * share) + 1)))
        wide = int(rng.integers(1, max(2, int(width * share) + 1)))
        x = int(np.clip(rng.integers(width) - wide // 2, 0, width))
        y = int(np.clip(rng.integers(height) - high // 2, 0, height))
        right, bottom = min(width, x + wide), min(height, y + high)
        box = np.array([x, y, right, bottom], np.float64)
        if min(right - x, bottom - y) <= MIN_TARGET or (hidden(box, boxes) >= COVERED).any():
            continue
        one = pool[int(rng.integers(len(pool)))]
        gain = min((bottom - y) / one.mask.shape[0], (right - x) / one.mask.shape[1])
        tall, broad = int(one.mask.shape[0] * gain), int(one.mask.shape[1] * gain)
        if min(tall, broad) <= MIN_CUTOUT:
            continue
        mask = bilinear(np.repeat(one.mask[..., None].astype(np.uint8) * 255, 1, 2), tall, broad)[..., 0] > 127
        if mask.sum() <= MIN_PIXELS:
            continue
        window = picture[y : y + tall, x : x + broad]
        window[mask] = bilinear(np.ascontiguousarray(one.pixels), tall, broad)[mask]
        boxes = np.concatenate([boxes, np.array([[x, y, x + broad, y + tall]], np.float64)])
        labels.append(one.label)
        outlines.append(())
    return Scene(picture, boxes, np.array(labels, np.int64), tuple(outlines))
