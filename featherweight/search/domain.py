# SPDX-License-Identifier: Apache-2.0
"""Do two sets of pictures look alike? Ranges of 8 bits and agreement say little on pictures of another domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

FEATURES = ("red", "green", "blue", "contrast of red", "contrast of green", "contrast of blue", "detail")
FAR = 2.0  # standard deviations between the means of a feature over which the pictures are of another domain
APART = 1.0  # the same, where the model is also less sure of itself
UNSURE = 0.1  # by so much


def features(batches: Sequence[Mapping[str, Tensor]]) -> np.ndarray:
    """(N, 7): of each picture the mean and standard deviation of its channels, and how much neighbors differ."""
    rows = []
    for batch in batches:
        images = batch["image"].numpy()  # (B, 3, H, W)
        detail = np.abs(np.diff(images, axis=3)).mean((1, 2, 3))
        rows.append(np.column_stack([images.mean((2, 3)), images.std((2, 3)), detail]))
    return np.concatenate(rows)


def other_domain(
    known: Sequence[Mapping[str, Tensor]],
    asked: Sequence[Mapping[str, Tensor]],
    *,
    sure: tuple[float, float] | None = None,
) -> str:
    """In which way the asked pictures are unlike the known ones, or "" if they are not.

    sure: the model's mean probability of its own answer, on the known and on the asked pictures.
    """
    one, other = features(known), features(asked)
    spread = np.sqrt((one.var(0) + other.var(0)) / 2) + 1e-6
    apart = np.abs(one.mean(0) - other.mean(0)) / spread
    worst = int(apart.argmax())
    unsure = sure is not None and sure[0] - sure[1] > UNSURE
    if apart[worst] <= (APART if unsure else FAR):
        return ""
    told = f"their {FEATURES[worst]} is {apart[worst]:.1f} standard deviations away"
    if not unsure or sure is None:
        return told
    return f"{told}, and the model is {100 * sure[1]:.0f} % sure, not {100 * sure[0]:.0f} %"
