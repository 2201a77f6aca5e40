# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST for benchmarks, from its four `*-ubyte.gz` files (Debian: dataset-fashion-mnist)."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featherweight.data import Data

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
PARTS = {"train": "train", "test": "t10k"}
HELD_OUT = 6000  # the last training pictures, which validate


def read(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures (N, 28, 28) and labels (N,) of "train" or "test". OSError where a file is missing."""
    found = []
    for kind, head in (("images-idx3", 16), ("labels-idx1", 8)):
        with gzip.open(folder / f"{PARTS[part]}-{kind}-ubyte.gz") as stream:
            found.append(np.frombuffer(stream.read()[head:], np.uint8))
    return found[0].reshape(-1, 28, 28), found[1].astype(np.int64)


class Held:
    """Pictures in memory, gray in three channels."""

    def __init__(self, pictures: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.pictures, self.labels = pictures, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[NDArray[np.uint8], int]:
        return np.repeat(self.pictures[i][..., None], 3, axis=2), int(self.labels[i])

    def names(self, i: int) -> str:
        return f"picture {i}"


def fashion(folder: Path) -> Data:
    """The data set, a tenth of whose training part validates."""
    (pictures, labels), test = read(folder, "train"), read(folder, "test")
    mark = hashlib.sha256(pictures.tobytes() + labels.tobytes() + test[0].tobytes()).hexdigest()
    train, val = (Held(pictures[part], labels[part]) for part in (np.s_[:-HELD_OUT], np.s_[-HELD_OUT:]))
    return Data("fashion-mnist", "idx", CLASSES, train, val, Held(*test), mark)
