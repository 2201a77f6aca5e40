# SPDX-License-Identifier: Apache-2.0
"""In which order an epoch shows the pictures: rows of (index, how often it came before), over all processes.

Process r of W takes every W-th row from the r-th on, so with repeats the copies of a picture land on neighboring
processes, each augmented by its own random numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

Rows = NDArray[np.int64]  # (N, 2)
RUN = 256  # pictures: DeiT's epochs are whole multiples of it


def full(indices: NDArray[np.int64], count: int, *, repeats: int, world: int) -> Rows:
    """`count` rows of `indices`, each `repeats` times in a row; filled up from the start so that all take as many."""
    indices = np.repeat(indices, repeats)[:count]
    counts = np.tile(np.arange(repeats), count // repeats + 1)[:count]
    rows = np.stack([indices, counts], axis=1).astype(np.int64)
    return rows[np.arange(-(-count // world) * world) % count]


def official(total: int, *, repeats: int, world: int, seed: int | None) -> Rows:
    """The sampler of DeiT's published code: as many rows as `official_count`; seed None does not shuffle.

    It shows about 1 / repeats of the pictures in an epoch (Hoffer 2020, 1901.09335; facts: issues deit#13, deit#95).
    """
    if seed is None:
        indices = np.arange(total)
    else:
        indices = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).numpy()
    filled = np.arange(-(-total * repeats // world) * world) % (total * repeats)
    rows = np.stack([indices[filled // repeats], filled % repeats], axis=1).astype(np.int64)
    return rows[: official_count(total, world)]


def official_count(total: int, world: int) -> int:
    """Rows of an official epoch over all processes: none for fewer than 256 pictures."""
    return total // RUN * RUN // world * world
