# SPDX-License-Identifier: Apache-2.0
"""Pictures that are decoded once and kept: for small pictures that are looked at in many epochs.

Decoding a picture of 32 x 32 takes as long as augmenting it. What does not fit below the limit is decoded every time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featherweight.data.parts import Images

MOST = 4 << 30  # bytes of decoded pictures that one part of a data set keeps


class Held:
    """The same pictures, labels and names; each is decoded when it is first asked for."""

    def __init__(self, images: Images, *, most: int = MOST) -> None:
        self.images, self.labels, self.most = images, images.labels, most
        self._kept: dict[int, NDArray[np.uint8]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[NDArray[np.uint8], int]:
        place = range(len(self))[i]
        found = self._kept.get(place)
        if found is None:
            found, _ = self.images[place]
            if self._bytes + found.nbytes <= self.most:
                found.flags.writeable = False  # whoever changed it would change every later epoch
                self._kept[place] = found
                self._bytes += found.nbytes
        return found, int(self.labels[place])

    def names(self, i: int) -> str:
        """What a report calls picture i."""
        return self.images.names(i)
