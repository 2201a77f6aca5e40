# SPDX-License-Identifier: Apache-2.0
"""Where a place of an augmented picture was in the file, so that labels of places can follow their picture.

Every change that moves something is affine, so what they do together is one matrix. Places are shares of width and
height, (0, 0) the outer corner at the top left, so that they mean the same for a picture, a map of labels and a grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Window = tuple[float, float, float, float]  # left, top, right, bottom


class Geometry:
    """Follows one picture through its changes; starts as the picture in the file."""

    def __init__(self) -> None:
        self._whole: NDArray[np.float64] = np.eye(3)
        self.crop: Window = (0.0, 0.0, 1.0, 1.0)  # what a random crop took; what is outside it was never seen

    @property
    def matrix(self) -> NDArray[np.float32]:
        """(2, 3): (x, y, 1) of the picture as it is now -> (x, y) in the file."""
        return self._whole[:2].astype(np.float32)

    def then(self, change: NDArray[np.float64]) -> None:
        """One more change, (3, 3): places after it -> places before it."""
        self._whole = self._whole @ change

    def window(self, window: Window) -> None:
        """Only a part is left."""
        left, top, right, bottom = window
        self.then(np.array([[right - left, 0, left], [0, bottom - top, top], [0, 0, 1]]))

    def random_crop(self, window: Window) -> None:
        """Only a part is left, and is remembered as the random crop."""
        self.crop = window
        self.window(window)

    def flip(self) -> None:
        """A mirror image, left for right."""
        self.then(np.array([[-1.0, 0, 1], [0, 1, 0], [0, 0, 1]]))

    def pixels(self, matrix: Sequence[float], width: int, height: int) -> None:
        """What Pillow's AFFINE does: the first two rows of a matrix from pixels after to pixels before."""
        size = np.diag([width, height, 1.0])
        self.then(np.linalg.inv(size) @ np.array([*matrix, 0, 0, 1]).reshape(3, 3) @ size)
