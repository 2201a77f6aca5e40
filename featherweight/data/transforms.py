# SPDX-License-Identifier: Apache-2.0
"""Augmentation: pure functions of a picture and its own random numbers, and mixing of a batch.

Crop, flip, affine, color, RandAugment (Cubuk 2019, arXiv:1909.13719, with noise and rising severity as in Wightman
2021, arXiv:2110.00476), random erasing (Zhong 2017, arXiv:1708.04896), mixup and cutmix (`mixing`). With the defaults
of `Augment` every picture stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from featherweight.data import mixing
from featherweight.data.geometry import Geometry
from featherweight.data.randaugment import randaugment
from featherweight.errors import OptionError

Picture = NDArray[np.uint8]  # (H, W, 3)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # how bright a color looks (ITU-R 601)


@dataclass(frozen=True)
class Augment:
    """What is done to training pictures, in this order; the defaults do nothing."""

    crop_min: float = 1.0  # random resized crop: smallest share of the area; 1 leaves it out
    flip: float = 0.0  # probability of a mirror image
    shift: float = 0.0  # largest move, as a share of the side
    rotate: float = 0.0  # degrees, either way
    zoom: float = 0.0  # size times 1 - zoom .. 1 + zoom
    brightness: float = 0.0  # times 1 - x .. 1 + x
    contrast: float = 0.0
    saturation: float = 0.0
    randaugment: float = 0.0  # magnitude 0..10; 0 leaves it out
    randaugment_ops: int = 2
    randaugment_std: float = 0.5  # noise on the magnitude
    randaugment_increasing: bool = True  # a higher magnitude is always the stronger change
    erase: float = 0.0  # probability of noise in a rectangle
    mixup: float = 0.0  # alpha of the beta distribution; 0 leaves it out
    cutmix: float = 0.0
    mix_probability: float = 1.0
    mix_switch: float = 0.5  # probability of cutmix where both are on
    mix_per: Literal["picture", "batch"] = "picture"  # what draws its own share; DeiT's code: the batch
    label_smoothing: float = 0.0  # of the soft labels that mixing makes
    num_classes: int = 0  # needed for mixing

    def __post_init__(self) -> None:
        for name in ("flip", "erase", "mix_probability", "mix_switch"):
            self._bounded(name, 0, 1)
        for name in ("shift", "zoom", "brightness", "contrast", "saturation", "label_smoothing"):
            self._bounded(name, 0, 0.999)
        self._bounded("crop_min", 0.01, 1)
        self._bounded("rotate", 0, 180)
        self._bounded("randaugment", 0, 10)
        self._bounded("randaugment_ops", 0, 16)
        for name in ("randaugment_std", "mixup", "cutmix"):
            self._bounded(name, 0, 100)
        if self.mix_per not in mixing.PER:
            raise OptionError("augment.mix_per", f"no {self.mix_per!r}; known: {', '.join(mixing.PER)}")
        if self.mixes and self.num_classes < 2:
            text = f"mixup and cutmix need the number of classes, not {self.num_classes}"
            raise OptionError("augment.num_classes", text)

    def _bounded(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not low <= value <= high:
            raise OptionError(f"augment.{name}", f"must be {low}..{high}, not {value!r}")

    @property
    def mixes(self) -> bool:
        """Whether batches get soft labels."""
        return self.mixup > 0 or self.cutmix > 0

    def picture(
        self, picture: Picture, rng: np.random.Generator, *, size: tuple[int, int], geometry: Geometry | None = None
    ) -> Picture:
        """One augmented picture; `size` (height, width) is what a random crop is resized to.

        `geometry` is told of every change that moves something.
        """
        geometry = geometry or Geometry()
        if self.crop_min < 1:
            picture = random_crop(picture, rng, size=size, smallest=self.crop_min, geometry=geometry)
        if self.flip and rng.random() < self.flip:
            picture = picture[:, ::-1]
            geometry.flip()
        if self.shift or self.rotate or self.zoom:
            picture = affine(picture, rng, shift=self.shift, rotate=self.rotate, zoom=self.zoom, geometry=geometry)
        if self.brightness or self.contrast or self.saturation:
            picture = jitter(picture, rng, self.brightness, self.contrast, self.saturation)
        if self.randaugment:
            picture = randaugment(
                picture,
                rng,
                magnitude=self.randaugment,
                ops=self.randaugment_ops,
                std=self.randaugment_std,
                increasing=self.randaugment_increasing,
                geometry=geometry,
            )
        if self.erase and rng.random() < self.erase:
            picture = erase(picture, rng)
        return picture

    def mix(self, batch: dict[str, Tensor], rngs: Sequence[np.random.Generator]) -> dict[str, Tensor]:
        """Each picture with its mirror place in the batch, by its own random numbers; adds "soft_label" (B, K)."""
        how = mixing.Mixing(self.mixup, self.cutmix, self.mix_probability, self.mix_switch)
        images, share = how.mix(batch["image"], rngs, per=self.mix_per)
        soft = mixing.target(batch["label"], share, num_classes=self.num_classes, smoothing=self.label_smoothing)
        return {**batch, "image": images, "soft_label": soft}


def random_crop(
    picture: Picture,
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    smallest: float,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    geometry: Geometry | None = None,
) -> Picture:
    """A part of the picture with a random area and shape, resized to `size`."""
    height, width = picture.shape[:2]
    top, left, high, wide = 0, 0, height, width
    for _ in range(10):
        area = height * width * rng.uniform(smallest, 1)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            high, wide = h, w
            break
    else:  # a very long picture: its middle, no longer than the ratio allows
        high, wide = min(height, max(1, round(width / ratio[0]))), min(width, max(1, round(height * ratio[1])))
        top, left = (height - high) // 2, (width - wide) // 2
    box = (left, top, left + wide, top + high)
    if geometry is not None:
        geometry.random_crop((left / width, top / height, (left + wide) / width, (top + high) / height))
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box))


def affine(
    picture: Picture,
    rng: np.random.Generator,
    *,
    shift: float,
    rotate: float,
    zoom: float,
    geometry: Geometry | None = None,
) -> Picture:
    """Moved, turned and scaled around its middle; what comes in from outside has the picture's mean color."""
    height, width = picture.shape[:2]
    dx, dy = rng.uniform(-shift, shift, 2) * (width, height)
    angle, scale = math.radians(rng.uniform(-rotate, rotate)), 1 / rng.uniform(1 - zoom, 1 + zoom)
    a, b = scale * math.cos(angle), scale * math.sin(angle)
    x, y = width / 2, height / 2
    matrix = (a, b, x - a * (x + dx) - b * (y + dy), -b, a, y + b * (x + dx) - a * (y + dy))
    if geometry is not None:
        geometry.pixels(matrix, width, height)
    source = Image.fromarray(np.ascontiguousarray(picture))
    fill = source.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    method = Image.Resampling.BILINEAR
    return np.asarray(source.transform((width, height), Image.Transform.AFFINE, matrix, method, fillcolor=fill))


def jitter(
    picture: Picture, rng: np.random.Generator, brightness: float, contrast: float, saturation: float
) -> Picture:
    """Brightness, contrast (around the mean gray) and saturation (around each pixel's gray) times a random factor."""
    factors = [np.float32(rng.uniform(1 - amount, 1 + amount)) for amount in (brightness, contrast, saturation)]
    pixels = picture.astype(np.float32) * factors[0]
    if contrast:
        middle = np.float32((pixels.reshape(-1, 3).mean(0) * LUMA).sum())
        pixels = middle + (pixels - middle) * factors[1]
    if saturation:
        gray = (pixels @ LUMA)[:, :, None]
        pixels = gray + (pixels - gray) * factors[2]
    return np.clip(pixels + np.float32(0.5), 0, 255).astype(np.uint8)


def erase(picture: Picture, rng: np.random.Generator) -> Picture:
    """Noise in a rectangle of 2 % to 33 % of the area."""
    height, width = picture.shape[:2]
    area = height * width * rng.uniform(0.02, 1 / 3)
    shape = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
    high = min(height, max(1, round(math.sqrt(area * shape))))
    wide = min(width, max(1, round(math.sqrt(area / shape))))
    top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
    changed: Picture = picture.copy()
    changed[top : top + high, left : left + wide] = rng.integers(0, 256, (high, wide, 3), dtype=np.uint8)
    return changed
