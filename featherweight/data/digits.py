# SPDX-License-Identifier: Apache-2.0
"""Digits on photographs: real handwriting on real pictures, made on the spot and offline.

scikit-learn's 1,797 handwritten digits (UCI, 8 x 8) are enlarged, turned a little, colored and pasted on darkened crops
of the photographs that scikit-learn and scikit-image carry. Digits and photographs are split once and for all: those of
one part never appear in another, whatever the seed. The test part is meant to be touched once, at the end.
A canvas is a pure function of (seed, part, index, options). Nothing is downloaded; the two packages are not imported.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featherweight.errors import OptionError, missing_extra

CLASSES = tuple("0123456789")
CREDITS = (
    "Handwriting: Optical Recognition of Handwritten Digits, UCI (CC BY 4.0), as packaged by scikit-learn. "
    "Photographs: those packaged by scikit-learn (CC BY 2.0) and scikit-image (mostly public domain or CC0), "
    "listed with their authors there."
)
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}  # of the handwriting, per class
PHOTOS = {  # a stereo pair is one photograph; pictures that show writing (page, text, clock) are left out
    "train": (
        "skimage/data/astronaut.png",
        "skimage/data/coffee.png",
        "skimage/data/motorcycle_left.png",
        "skimage/data/motorcycle_right.png",
        "skimage/data/ihc.png",
        "skimage/data/camera.png",
        "skimage/data/brick.png",
        "skimage/data/grass.png",
        "sklearn/datasets/images/china.jpg",
    ),
    "val": (
        "skimage/data/chelsea.png",
        "skimage/data/hubble_deep_field.jpg",
        "skimage/data/gravel.png",
    ),
    "test": (
        "sklearn/datasets/images/flower.jpg",
        "skimage/data/rocket.jpg",
        "skimage/data/retina.jpg",
        "skimage/data/coins.png",
    ),
}
DIGITS_FILE = "sklearn/datasets/data/digits.csv.gz"
INK = 64  # of 255: from here on a pixel belongs to the digit's box
SHORT_SIDE = 320  # photographs are reduced to this before cropping


@dataclass(frozen=True)
class Look:
    """How the canvases look; sizes in pixels, brightness 0..1."""

    size: int = 48
    glyph_min: int = 16
    glyph_max: int = 28
    background: float = 0.45  # the photograph times this: full contrast does not converge in a minute
    color_min: float = 0.7
    rotation: float = 12.0  # degrees, either way
    digits_per_image: int = 1  # n > 1: between 1 and n of them, for detection

    def __post_init__(self) -> None:
        if not 8 <= self.glyph_min <= self.glyph_max <= self.size:
            raise OptionError("digits", f"needs 8 <= glyph_min <= glyph_max <= size, not {self}")
        if not 1 <= self.digits_per_image <= 4:
            raise OptionError("digits.digits_per_image", f"must be 1..4, not {self.digits_per_image}")
        if not (0 <= self.background <= 1 and 0 <= self.color_min <= 1 and 0 <= self.rotation <= 180):
            raise OptionError("digits", f"background and color_min are 0..1, rotation 0..180, not {self}")


def packaged(name: str) -> Path:
    """Where an installed package keeps this file, found without importing the package."""
    package, rest = name.split("/", 1)
    spec = find_spec(package)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(root) / rest).is_file():
            return path
    owner = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
    raise missing_extra("the digits data set", owner, "demo")


@lru_cache(maxsize=1)
def handwriting() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All glyphs (1797, 12, 12) as ink 0..255 with a border of 2, and their labels (1797,)."""
    rows = np.array(
        [line.split(",") for line in gzip.decompress(packaged(DIGITS_FILE).read_bytes()).decode("ascii").split()],
        dtype=np.float32,
    )
    ink = np.minimum(rows[:, :64] * (255 / 16), 255).round().astype(np.uint8)
    padded = np.pad(ink.reshape(-1, 8, 8), ((0, 0), (2, 2), (2, 2)))  # lets an interpolation run out to zero
    return padded, rows[:, 64].astype(np.int64)


@lru_cache(maxsize=1)
def split() -> dict[str, NDArray[np.int64]]:
    """Which glyphs belong to which part: per class, in the order of a hash of the pixels. The same for every seed."""
    ink, labels = handwriting()
    keys = [hashlib.sha256(glyph.tobytes()).hexdigest() for glyph in ink]
    parts: dict[str, list[int]] = {part: [] for part in SHARES}
    for label in range(len(CLASSES)):
        order = sorted(np.flatnonzero(labels == label).tolist(), key=lambda i: keys[i])
        first, second = round(SHARES["train"] * len(order)), round((SHARES["train"] + SHARES["val"]) * len(order))
        for part, some in zip(parts, (order[:first], order[first:second], order[second:]), strict=True):
            parts[part] += some
    turned = {i: key[::-1] for i, key in enumerate(keys)}  # another order than the split's: classes well mixed
    return {part: np.array(sorted(some, key=turned.__getitem__), dtype=np.int64) for part, some in parts.items()}


@lru_cache(maxsize=len(PHOTOS))
def photographs(part: str) -> tuple[Image.Image, ...]:
    """The part's photographs as RGB, shorter side SHORT_SIDE."""
    found = []
    for name in PHOTOS[part]:
        with Image.open(packaged(name)) as picture:
            rgb = picture.convert("RGB")
        scale = SHORT_SIDE / min(rgb.size)
        found.append(rgb.resize((round(rgb.width * scale), round(rgb.height * scale)), Image.Resampling.BOX))
    return tuple(found)


def backdrop(rng: np.random.Generator, part: str, look: Look) -> NDArray[np.float32]:
    """A darkened crop of one of the part's photographs, (S, S, 3), 0..255."""
    photos = photographs(part)
    photo = photos[int(rng.integers(len(photos)))]
    side = float(rng.uniform(look.size, min(2.5 * look.size, SHORT_SIDE))) if look.size < SHORT_SIDE else SHORT_SIDE
    left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    shape = (look.size, look.size)
    crop = photo.resize(shape, Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    pixels: NDArray[np.float32] = np.asarray(crop, dtype=np.float32) * np.float32(
        look.background * rng.uniform(0.8, 1.0)
    )
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def glyph(rng: np.random.Generator, ink: NDArray[np.uint8], look: Look) -> NDArray[np.uint8]:
    """The digit's ink (12, 12) on an empty canvas (S, S), 0..255: random size, place and rotation."""
    high = rng.uniform(look.glyph_min, look.glyph_max)
    angle = math.radians(rng.uniform(-look.rotation, look.rotation))
    half = 0.5 * high * (abs(math.cos(angle)) + abs(math.sin(angle)))
    half = min(half, look.size / 2)
    center_x, center_y = rng.uniform(half, look.size - half, 2)
    padded = Image.fromarray(ink)
    step, cos, sin = 8 / high, math.cos(angle), math.sin(angle)  # source pixels per canvas pixel
    a, b, d, e = step * cos, step * sin, -step * sin, step * cos
    matrix = (a, b, 6 - a * center_x - b * center_y, d, e, 6 - d * center_x - e * center_y)
    shape = (look.size, look.size)
    return np.asarray(padded.transform(shape, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC))


def box_of(ink: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The tight box xyxy of what has at least INK."""
    rows, columns = np.flatnonzero((ink >= INK).any(1)), np.flatnonzero((ink >= INK).any(0))
    if not len(rows):
        return np.zeros(4, np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def free(box: NDArray[np.float32], others: list[NDArray[np.float32]]) -> bool:
    """Whether the box meets none of the others."""
    return all(box[2] <= o[0] or o[2] <= box[0] or box[3] <= o[1] or o[3] <= box[1] for o in others)


def canvas(
    seed: int, part: str, index: int, look: Look
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
    """One canvas: picture (S, S, 3), tight boxes (n, 4) xyxy in pixels, labels (n,). Pure."""
    rng = np.random.Generator(np.random.Philox(counter=[0, 0, 0, index], key=[seed, list(SHARES).index(part)]))
    all_ink, all_labels = handwriting()
    pool = split()[part]
    pixels = backdrop(rng, part, look)
    wanted = int(rng.integers(1, look.digits_per_image + 1)) if look.digits_per_image > 1 else 1
    boxes: list[NDArray[np.float32]] = []
    labels: list[int] = []
    for number in range(wanted):
        which = pool[index % len(pool)] if number == 0 else pool[int(rng.integers(len(pool)))]
        for _ in range(10):  # a place of its own, or none
            ink = glyph(rng, all_ink[which], look)
            box = box_of(ink)
            if free(box, boxes):
                color = rng.uniform(255 * look.color_min, 255, 3).astype(np.float32)
                alpha = (ink * np.float32(rng.uniform(0.85, 1.0) / 255))[:, :, None]
                pixels = pixels + alpha * (color - pixels)
                boxes.append(box)
                labels.append(int(all_labels[which]))
                break
    return (pixels + 0.5).astype(np.uint8), np.stack(boxes), np.array(labels, np.int64)


class Digits:
    """One part as `Images`: made on first access, kept as uint8."""

    def __init__(self, part: str, n: int, *, seed: int = 0, look: Look | None = None) -> None:
        self.part, self.seed, self.look = part, seed, look or Look()
        pool = split()[part]
        self.labels: NDArray[np.int64] = handwriting()[1][pool[np.arange(n) % len(pool)]]
        self._pictures: NDArray[np.uint8] = np.zeros((n, self.look.size, self.look.size, 3), np.uint8)
        self._made = np.zeros(n, dtype=bool)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[NDArray[np.uint8], int]:
        i = range(len(self))[i]
        if not self._made[i]:
            self._pictures[i] = canvas(self.seed, self.part, i, self.look)[0]
            self._made[i] = True
        return self._pictures[i], int(self.labels[i])

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], int]]:
        return (self[i] for i in range(len(self)))

    def names(self, i: int) -> str:
        """What a report calls canvas i."""
        return f"digits/{self.part}/{range(len(self))[i]:05d}"

    def boxes(self, i: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Tight boxes (n, 4) xyxy in pixels and labels (n,) of canvas i."""
        return canvas(self.seed, self.part, range(len(self))[i], self.look)[1:]


def fingerprint(seed: int, counts: dict[str, int], look: Look) -> str:
    """sha256 over the generator's options and the packages' files that it reads."""
    digest = hashlib.sha256(
        json.dumps({"digits": 1, "seed": seed, **counts, **asdict(look)}, sort_keys=True).encode("ascii")
    )
    for name in (DIGITS_FILE, *(name for part in PHOTOS.values() for name in part)):
        digest.update(name.encode("ascii") + hashlib.sha256(packaged(name).read_bytes()).digest())
    return digest.hexdigest()
