# SPDX-License-Identifier: Apache-2.0
"""digits-det: the digits of the built-in classification set as a detection set, 1 to 4 on a photograph, offline.

Every canvas is a pure function of (seed, part, index, look); its boxes are tight around the ink. The parts share no
digit and no photograph (`digits`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from featherweight.data import digits
from featherweight.data.objects import Findings, Objects
from featherweight.data.scenes import Scenery
from featherweight.errors import OptionError

GLYPHS = (16 / 96, 34 / 96)  # height of a digit as a share of the side


class DigitScenes:
    """One part as `Scenes`: canvases made when asked for, then kept."""

    outlined = False

    def __init__(self, part: str, n: int, *, seed: int, look: digits.Look) -> None:
        self.part, self.seed, self.look = part, seed, look
        self.sizes: NDArray[np.int64] = np.full((n, 2), look.size, np.int64)
        self.ids: NDArray[np.int64] = np.arange(n, dtype=np.int64)
        self._made: dict[int, tuple[NDArray[np.uint8], Objects]] = {}

    def __len__(self) -> int:
        return len(self.sizes)

    def _canvas(self, i: int) -> tuple[NDArray[np.uint8], Objects]:
        i = range(len(self))[i]
        found = self._made.get(i)
        if found is None:
            picture, boxes, labels = digits.canvas(self.seed, self.part, i, self.look)
            picture.flags.writeable = False
            found = self._made[i] = (picture, Objects.of(boxes, labels))
        return found

    def picture(self, i: int) -> NDArray[np.uint8]:
        """Canvas i."""
        return self._canvas(i)[0]

    def objects(self, i: int) -> Objects:
        """Its digits."""
        return self._canvas(i)[1]

    def names(self, i: int) -> str:
        """What a report calls canvas i."""
        return f"digits-det/{self.part}/{range(len(self))[i]:05d}"


def load(*, seed: int, counts: Mapping[str, int], size: int) -> Scenery:
    """The three parts."""
    for name, value in counts.items():
        if not isinstance(value, int) or not 1 <= value < 2**31:
            raise OptionError(f"data.digits-det.n_{name}", f"must be a whole number of 1 or more, not {value!r}")
    if not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise OptionError("data.digits-det.seed", f"must be a whole number of 0 or more, not {seed!r}")
    if not isinstance(size, int) or not 64 <= size <= 1024:
        raise OptionError("data.digits-det.size", f"must be 64..1024, not {size!r}")
    small, large = (round(share * size) for share in GLYPHS)
    look = digits.Look(size=size, glyph_min=small, glyph_max=large, digits_per_image=4)
    parts = {part: DigitScenes(part, n, seed=seed, look=look) for part, n in counts.items()}
    mark = digits.fingerprint(seed, dict(counts), look)
    return Scenery(
        "digits-det", "digits-det", digits.CLASSES, parts["train"], parts["val"], parts["test"], mark,
        tuple(range(10)), Findings(),
    )  # fmt: skip
