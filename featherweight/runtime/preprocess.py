# SPDX-License-Identifier: Apache-2.0
"""From a picture to the model's input, in NumPy and Pillow, the same to the bit in training, evaluation and deployment.

Resize and crop equal torchvision's Resize(shorter side) and CenterCrop on Pillow pictures. When the resized picture
would exceed BUDGET pixels (a strip of 1 x 5000), the crop is taken before resizing, so memory stays small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featherweight.errors import InputError, OptionError, closest
from featherweight.runtime.letterbox import Letterbox, Placement

BUDGET = 16_000_000  # pixels of a resized picture before its crop
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESIZES = ("shorter", "exact", "letterbox", "none")


@dataclass(frozen=True)
class Preprocess:
    """Picture (H, W, 3) uint8 -> input (3, h, w) float32, normalized by mean and std of values 0..1."""

    size: tuple[int, int] = (224, 224)  # height, width of the input
    resize: str = "shorter"  # keeps the shape and crops; exact: stretch; letterbox: keeps it and pads; none: must fit
    crop_pct: float = 1.0  # the input's share of the resized picture: resize to floor(size / crop_pct), then crop
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not all(type(n) is int and 1 <= n <= 16384 for n in self.size):
            raise OptionError("preprocess.size", f"must be (height, width) of 1..16384, not {self.size!r}")
        for name, value, known in (
            ("resize", self.resize, RESIZES),
            ("interpolation", self.interpolation, tuple(FILTERS)),
        ):
            if value not in known:
                text = f"no {value!r} here; {closest(str(value), known)}Known: {', '.join(known)}"
                raise OptionError(f"preprocess.{name}", text)
        if not 0.05 <= self.crop_pct <= 1:
            raise OptionError("preprocess.crop_pct", f"must be 0.05..1, not {self.crop_pct!r}")
        if self.resize == "letterbox" and (self.crop_pct, self.interpolation) != (1.0, "bilinear"):
            raise OptionError("preprocess.resize", "letterbox goes with interpolation bilinear and crop_pct 1")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(math.isfinite(v) for v in values):
                raise OptionError(f"preprocess.{name}", f"must be three finite numbers, not {values!r}")
        if min(self.std) <= 0:
            raise OptionError("preprocess.std", f"must be above 0, not {self.std!r}")

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """One picture, ready for the model but for the batch axis."""
        return self.normalize(self.fit(image))

    def fit(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize and crop: (H, W, 3) -> (h, w, 3), still uint8. A picture that fits comes back as it is."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError("picture", "bad_shape", f"must be uint8 (H, W, 3), not {image.dtype} {image.shape}")
        if self.resize == "letterbox":
            return Letterbox(self.size)(image)[0]
        resized = self.resized(image.shape[0], image.shape[1])
        if resized == self.size == image.shape[:2]:
            return image
        height, width = self.size
        top, left = round((resized[0] - height) / 2.0), round((resized[1] - width) / 2.0)
        method = FILTERS[self.interpolation]
        picture = Image.fromarray(np.ascontiguousarray(image))
        if resized[0] * resized[1] <= BUDGET:
            if resized != image.shape[:2]:
                picture = picture.resize((resized[1], resized[0]), method)
            return np.asarray(picture.crop((left, top, left + width, top + height)))
        down, across = image.shape[0] / resized[0], image.shape[1] / resized[1]
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return np.asarray(picture.resize((width, height), method, box=box))

    def place(self, height: int, width: int) -> Placement:
        """Where a picture of this size lies in the input, for a detector's boxes; OptionError where it is cropped."""
        if self.resize == "letterbox" or (self.resize, self.crop_pct) == ("exact", 1.0):
            return Letterbox(self.size, stretch=self.resize == "exact").place(height, width)
        raise OptionError("preprocess.resize", f"{self.resize!r} crops or pads nothing back; use letterbox or exact")

    def window(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of what `fit` keeps of a picture of this size, as shares of its sides."""
        tall, wide = self.resized(height, width)
        top, left = round((tall - self.size[0]) / 2.0), round((wide - self.size[1]) / 2.0)
        return left / wide, top / tall, (left + self.size[1]) / wide, (top + self.size[0]) / tall

    def normalize(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(..., h, w, 3) uint8 -> (..., 3, h, w) float32; one picture or a batch, with the same bits."""
        # 256 values per channel: worked out once in float32 as torchvision does (/ 255, - mean, / std), then looked up
        out = np.empty((*pixels.shape[:-3], 3, *pixels.shape[-3:-1]), np.float32)
        if set(self.mean) == {0.0} and set(self.std) == {1.0}:  # as detectors take it: the same bits, faster
            out[...] = np.moveaxis(pixels, -1, -3)
            out /= np.float32(255)
            return out
        levels = np.arange(256, dtype=np.float32) / np.float32(255)
        for c in range(3):
            table = (levels - np.float32(self.mean[c])) / np.float32(self.std[c])
            out[..., c, :, :] = table[pixels[..., c]]
        return out

    def to_dict(self) -> dict[str, Any]:
        """For model.json."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], *, name: str = "preprocess") -> Preprocess:
        """What `to_dict` wrote; anything else is refused as an InputError about the file `name`."""
        known = [field.name for field in fields(cls)]
        for key in stored:
            if key not in known:
                text = f"preprocess has no {key!r}; {closest(str(key), known)}Known: {', '.join(known)}"
                raise InputError(name, "unknown_key", text)
        for key in known:
            if key not in stored:
                raise InputError(name, "missing_key", f"preprocess lacks {key!r}")
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()}
        try:
            return cls(**values)
        except (OptionError, TypeError) as error:
            raise InputError(name, "out_of_range", str(error)) from error

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width before the crop, as torchvision rounds them."""
        if self.resize == "none":
            if (height, width) != self.size:
                raise InputError("picture", "bad_dimensions", f"is {height} x {width}, the model takes {self.size}")
            return self.size
        tall, wide = (math.floor(n / self.crop_pct) for n in self.size)
        if self.resize == "exact":
            return tall, wide
        if tall * width >= wide * height:  # the height decides: as wide as needed to cover
            return tall, max(1, wide, int(tall * width / height))
        return max(1, tall, int(wide * height / width)), wide
