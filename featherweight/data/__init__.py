# SPDX-License-Identifier: Apache-2.0
"""Where pictures and labels come from: the digits that need no file, a folder of class folders, a parquet, a CSV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featherweight.data import digits
from featherweight.data.batches import Batches

__all__ = ["Batches", "Data", "Images", "Skipped", "load"]


class Images(Protocol):
    """One part of a data set: pictures (H, W, 3) uint8 with their labels, decoded when asked for."""

    labels: NDArray[np.int64]

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> tuple[NDArray[np.uint8], int]: ...
    def names(self, i: int) -> str:
        """What a report calls picture i."""
        ...


@dataclass(frozen=True)
class Skipped:
    """A file that is left out, and why: a reason code and a few words."""

    path: str
    reason: str


@dataclass(frozen=True)
class Data:
    """A data set in up to three parts. The test part is for the very end, once."""

    name: str
    format: str
    classes: tuple[str, ...]
    train: Images
    val: Images
    test: Images | None
    fingerprint: str  # sha256 of everything that the pictures and labels depend on
    skipped: tuple[Skipped, ...] = ()
    note: str = ""


def load(source: Any, *, max_bad: float = 0.01, seed: int = 0, **options: Any) -> Data:
    """The data set behind a name or path."""
    return make_digits(seed=seed, **options)


def make_digits(*, seed: int = 0, n_train: int = 6000, n_val: int = 720, n_test: int = 1200, **look: Any) -> Data:
    """Handwritten digits on photographs; `look` are the fields of `digits.Look`."""
    chosen = digits.Look(**look)
    counts = {"train": n_train, "val": n_val, "test": n_test}
    parts = {part: digits.Digits(part, n, seed=seed, look=chosen) for part, n in counts.items()}
    mark = digits.fingerprint(seed, counts, chosen)
    return Data("digits", "digits", digits.CLASSES, **parts, fingerprint=mark)
