# SPDX-License-Identifier: Apache-2.0
"""Augmentation of detection scenes, drawn from each sample's own random numbers; with the defaults nothing is changed.

The order and the ranges are YOLOv7's (Wang 2022, 2207.02696; fact sheet, 8): a mosaic of four or nine, moved, perhaps
mixed with a second one, else a single picture, moved; then color, pasted cut-outs, flips. `PRESETS` has the published
settings.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np

from featherweight.data import mosaic as mosaics
from featherweight.data.color import hsv_changed
from featherweight.data.warp import Move, Scene, warped
from featherweight.errors import OptionError, closest
from featherweight.runtime.letterbox import Letterbox, put

_COLOR = {"hue": 0.015, "saturation": 0.7, "value": 0.4}
PRESETS: Mapping[str, Mapping[str, float]] = {
    "p5": {"mosaic": 1, "mixup": 0.15, "paste_in": 0.15, "translate": 0.2, "scale": 0.9, "flip": 0.5, **_COLOR},
    "p6": {"mosaic": 1, "mixup": 0.15, "paste_in": 0.15, "translate": 0.2, "scale": 0.9, "flip": 0.5, **_COLOR},
    "tiny": {"mosaic": 1, "mixup": 0.05, "paste_in": 0.05, "translate": 0.1, "scale": 0.5, "flip": 0.5, **_COLOR},
    "custom": {"mosaic": 1, "translate": 0.2, "scale": 0.5, "flip": 0.5, **_COLOR},
    "light": {"translate": 0.1, "scale": 0.5, "flip": 0.5, **_COLOR},  # ours: single pictures, for the last epochs
    "none": {},
}


class Tiles(Protocol):
    """Where scenes come from: `load(i)` gives scene i with its longer side at the size of training."""

    size: tuple[int, int]

    def __len__(self) -> int: ...
    def load(self, i: int) -> Scene:
        """Scene i, resized."""
        ...


@dataclass(frozen=True)
class DetectionAugment:
    """What is done to training scenes; probabilities unless it says otherwise."""

    mosaic: float = 0.0
    mosaic9: float = 0.2  # of a mosaic to be one of nine pictures
    mixup: float = 0.0  # of a mosaic to be mixed with a second one
    mixup_alpha: float = 8.0  # of the beta distribution of their shares
    copy_paste: float = 0.0  # share of outlined objects that come a second time, mirrored
    paste_in: float = 0.0  # of pasting cut-outs; needs outlines
    degrees: float = 0.0  # turned by up to so many, either way
    translate: float = 0.0  # the middle moves by up to this share of the sides
    scale: float = 0.0  # size times 1 - scale .. 1.1 + scale; 0 leaves it
    shear: float = 0.0  # degrees, either way
    perspective: float = 0.0  # up to this, either way; 0.001 is a lot
    hue: float = 0.0  # times 1 - x .. 1 + x
    saturation: float = 0.0
    value: float = 0.0
    flip: float = 0.0  # left to right
    flip_ud: float = 0.0

    def __post_init__(self) -> None:
        tops = {"degrees": 180.0, "shear": 80.0, "perspective": 0.01, "mixup_alpha": 100.0}
        for field in fields(self):
            value, top = getattr(self, field.name), tops.get(field.name, 1.0)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= top:
                raise OptionError(f"augment.{field.name}", f"must be 0..{top:g}, not {value!r}")
        if self.mixup_alpha <= 0:
            raise OptionError("augment.mixup_alpha", "must be above 0")
        if self.scale >= 1:
            raise OptionError("augment.scale", "must be below 1, or pictures vanish")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> DetectionAugment:
        """Options over those of the `preset` that they may name; OptionError for an unknown one."""
        given = dict(options)
        name = given.pop("preset", "none")
        if name not in PRESETS:
            text = f"no {name!r}; {closest(str(name), PRESETS)}Known: {', '.join(PRESETS)}"
            raise OptionError("augment.preset", text)
        known = [field.name for field in fields(cls)]
        for key in given:
            if key not in known:
                raise OptionError("augment", f"no {key!r} here; {closest(key, known)}Known: {', '.join(known)}")
        return cls(**{**PRESETS[name], **given})

    def possible(self, *, outlined: bool) -> DetectionAugment:
        """Without what needs outlines where there are none, and a warning that says so."""
        needs = [name for name in ("copy_paste", "paste_in") if getattr(self, name)]
        if outlined or not needs:
            return self
        text = f"{' and '.join(needs)} cut objects out along their outlines; this set has boxes only, so it is off"
        warnings.warn(text, stacklevel=2)
        return replace(self, copy_paste=0.0, paste_in=0.0)

    @property
    def moves(self) -> bool:
        """Whether a single picture is moved at all."""
        return any((self.degrees, self.translate, self.scale, self.shear, self.perspective))

    def scene(self, tiles: Tiles, index: int, rng: np.random.Generator) -> Scene:
        """Scene `index`, augmented, of the size of `tiles`."""
        if self.mosaic and rng.random() < self.mosaic:
            found = self._mosaic(tiles, index, rng)
            if self.mixup and rng.random() < self.mixup:
                other = self._mosaic(tiles, int(rng.integers(len(tiles))), rng)
                found = mosaics.mixup(found, other, float(rng.beta(self.mixup_alpha, self.mixup_alpha)))
        else:
            found = boxed(tiles.load(index), tiles.size)
            if self.moves:
                found = warped(found, self._move(rng), tiles.size)
        if self.hue or self.saturation or self.value:
            gains = 1 + rng.uniform(-1, 1, 3) * (self.hue, self.saturation, self.value)
            found = replace(found, picture=hsv_changed(found.picture, (gains[0], gains[1], gains[2])))
        if self.paste_in and rng.random() < self.paste_in:
            found = mosaics.paste_in(found, self._pool(tiles, rng), rng)
        if self.flip_ud and rng.random() < self.flip_ud:
            found = found.flipped(across=False)
        if self.flip and rng.random() < self.flip:
            found = found.flipped(across=True)
        return found

    def _move(self, rng: np.random.Generator) -> Move:
        """Drawn in the order perspective, angle, scale, shear, translation."""
        px, py = rng.uniform(-self.perspective, self.perspective, 2)
        degrees = rng.uniform(-self.degrees, self.degrees)
        scale = rng.uniform(1 - self.scale, 1.1 + self.scale) if self.scale else 1.0
        shx, shy = rng.uniform(-self.shear, self.shear, 2)
        tx, ty = rng.uniform(0.5 - self.translate, 0.5 + self.translate, 2)
        return Move((px, py), degrees, scale, (shx, shy), (tx, ty))

    def _mosaic(self, tiles: Tiles, index: int, rng: np.random.Generator) -> Scene:
        """Four or nine scenes, the first of them `index`, moved and cut to size."""
        nine = rng.random() < self.mosaic9
        found = self._nine(tiles, index, rng) if nine else self._four(tiles, index, rng)
        if self.copy_paste:
            found = mosaics.copy_paste(found, rng, self.copy_paste)
        return warped(found, self._move(rng), tiles.size)

    def _four(self, tiles: Tiles, index: int, rng: np.random.Generator) -> Scene:
        height, width = tiles.size
        center = (int(rng.uniform(width / 2, 1.5 * width)), int(rng.uniform(height / 2, 1.5 * height)))
        others = rng.integers(len(tiles), size=3).tolist()
        return mosaics.mosaic4([tiles.load(i) for i in (index, *others)], center, tiles.size)

    def _nine(self, tiles: Tiles, index: int, rng: np.random.Generator) -> Scene:
        height, width = tiles.size
        origin = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
        others = rng.integers(len(tiles), size=8).tolist()
        return mosaics.mosaic9([tiles.load(i) for i in (index, *others)], origin, tiles.size)

    def _pool(self, tiles: Tiles, rng: np.random.Generator) -> list[mosaics.Cutout]:
        """Cut-outs of unmoved mosaics, until there are enough; none if the first has none."""
        pool: list[mosaics.Cutout] = []
        for _ in range(mosaics.CUTOUTS):
            pool += mosaics.cutouts(self._four(tiles, int(rng.integers(len(tiles))), rng), rng)
            if not pool or len(pool) >= mosaics.CUTOUTS:
                break
        return pool


def boxed(scene: Scene, size: tuple[int, int]) -> Scene:
    """A scene in the middle of a picture of `size`, gray around it."""
    box = Letterbox(size)
    shape = scene.picture.shape[:2]
    placement = box.place(*shape)
    return scene.moved(placement.gain, placement.pad, put(scene.picture, box.inner(*shape), placement))
