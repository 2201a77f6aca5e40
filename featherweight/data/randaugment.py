# SPDX-License-Identifier: Apache-2.0
"""RandAugment (Cubuk 2019, arXiv:1909.13719): a few random changes of one strength.

The ranges are those usual for ImageNet training at magnitude 10. With `increasing`, a higher magnitude is the stronger
change for every operation; without, posterize, solarize and the color operations follow the paper's ranges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from featherweight.data.geometry import Geometry

Change = Callable[[Image.Image, float, bool, np.random.Generator], Image.Image]
GRAY = (128, 128, 128)  # what comes in from outside
CHANCE = 0.5  # of each drawn operation being carried out


def _signed(value: float, rng: np.random.Generator) -> float:
    return -value if rng.random() < 0.5 else value


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Change:
    def change(image: Image.Image, level: float, increasing: bool, rng: np.random.Generator) -> Image.Image:
        factor = 1 + _signed(0.9 * level, rng) if increasing else 0.1 + 1.8 * level
        return kind(image).enhance(max(0.0, factor))

    return change


@dataclass(frozen=True)
class Move:
    """An operation that moves the picture: level, image -> a matrix from pixels after to pixels before, as Pillow's."""

    matrix: Callable[[float, Image.Image], tuple[float, ...]]

    def draw(self, image: Image.Image, level: float, rng: np.random.Generator) -> tuple[float, ...]:
        """The matrix, in one direction or the other."""
        return self.matrix(_signed(level, rng), image)

    def __call__(self, image: Image.Image, level: float, increasing: bool, rng: np.random.Generator) -> Image.Image:
        return moved(image, self.draw(image, level, rng))


def moved(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """The picture after the move; gray comes in from outside."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GRAY)


def _rotation(level: float, image: Image.Image) -> tuple[float, ...]:
    """Around the middle, 30 degrees at level 1, with Pillow's roundings."""
    angle = -math.radians(30 * level % 360)
    a, b = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = image.width / 2, image.height / 2
    return a, b, a * -x + b * -y + x, -b, a, -b * -x + a * -y + y


def _posterize(image: Image.Image, level: float, increasing: bool, rng: np.random.Generator) -> Image.Image:
    bits = int(4 * level)
    return ImageOps.posterize(image, max(1, 4 - bits if increasing else bits + 4))


def _solarize(image: Image.Image, level: float, increasing: bool, rng: np.random.Generator) -> Image.Image:
    threshold = min(256, int(256 * level))
    return ImageOps.solarize(image, 256 - threshold if increasing else threshold)


def _solarize_add(image: Image.Image, level: float, increasing: bool, rng: np.random.Generator) -> Image.Image:
    added = min(128, int(110 * level))
    return image.point([min(255, v + added) if v < 128 else v for v in range(256)] * 3)


OPERATIONS: dict[str, Change] = {
    "autocontrast": lambda image, level, increasing, rng: ImageOps.autocontrast(image),
    "equalize": lambda image, level, increasing, rng: ImageOps.equalize(image),
    "invert": lambda image, level, increasing, rng: ImageOps.invert(image),
    "rotate": Move(_rotation),
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": Move(lambda level, image: (1, 0.3 * level, 0, 0, 1, 0)),
    "shear_y": Move(lambda level, image: (1, 0, 0, 0.3 * level, 1, 0)),
    "translate_x": Move(lambda level, image: (1, 0, 0.45 * level * image.width, 0, 1, 0)),
    "translate_y": Move(lambda level, image: (1, 0, 0, 0, 1, 0.45 * level * image.height)),
}


def randaugment(
    picture: NDArray[np.uint8],
    rng: np.random.Generator,
    *,
    magnitude: float,
    ops: int = 2,
    std: float = 0.5,
    increasing: bool = True,
    geometry: Geometry | None = None,
) -> NDArray[np.uint8]:
    """(H, W, 3) -> (H, W, 3): `ops` operations drawn with repetition, magnitude 0..10 with normal noise of `std`."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    names = tuple(OPERATIONS)
    for _ in range(ops):
        name = names[int(rng.integers(len(names)))]
        level = float(np.clip(rng.normal(magnitude, std) if std else magnitude, 0, 10)) / 10
        if rng.random() >= CHANCE:
            continue
        operation = OPERATIONS[name]
        if isinstance(operation, Move) and geometry is not None:
            matrix = operation.draw(image, level, rng)
            image = moved(image, matrix)
            geometry.pixels(matrix, image.width, image.height)
        else:
            image = operation(image, level, increasing, rng)
    return np.asarray(image)
