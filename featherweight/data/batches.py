# SPDX-License-Identifier: Apache-2.0
"""From pictures to tensors: batches whose order and augmentation are pure functions of (seed, epoch, sample index).

A restart at any step, another number of threads or another number of processes gives the same samples with the same
augmentation: batch s of size B on each of W ranks covers the same W x B samples as batch s of size W x B on one. Only
mixing (mixup, cutmix) takes its partners from the rank's own batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from featherweight.errors import OptionError
from featherweight.runtime.preprocess import Preprocess

if TYPE_CHECKING:
    from featherweight.data import Images
    from featherweight.data.transforms import Augment

ORDER, SAMPLE, MIX = 0, 1, 2  # separate streams of random numbers


def generator(seed: int, epoch: int, index: int, stream: int, repeat: int = 0) -> np.random.Generator:
    """The random numbers of one sample in one epoch; no two arguments share a stream."""
    return np.random.Generator(np.random.Philox(counter=[0, stream, repeat, index], key=[seed, epoch]))


class Batches:
    """Batches {"image": (B, 3, H, W) float32, "label", "index": (B,) int64}; mixing adds "soft_label" (B, K)."""

    def __init__(
        self,
        images: Images,
        preprocess: Preprocess,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        augment: Augment | None = None,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        limit: int | None = None,
        repeats: int = 1,
    ) -> None:
        """limit: samples per epoch over all ranks: the first of a shuffled order, else evenly spaced.

        repeats: how often a picture comes, each time augmented anew, in an epoch of the same length.
        With several ranks the order is filled up from its start, so that all take as many steps: evaluate with world=1.
        """
        checks = {"batch_size": batch_size, "world": world, "repeats": repeats, "limit": 1 if limit is None else limit}
        for name, value in checks.items():
            if value < 1:
                raise OptionError(name, f"must be 1 or more, not {value!r}")
        if not 0 <= rank < world:
            raise OptionError("rank", f"must be 0..{world - 1}, not {rank!r}")
        if len(images) == 0:
            raise OptionError("data", "this part has no images")
        self.images, self.preprocess, self.augment = images, preprocess, augment
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.rank, self.world, self.drop_last, self.limit, self.repeats = rank, world, drop_last, limit, repeats

    @property
    def samples_per_epoch(self) -> int:
        """Over all ranks, without what fills up the last step."""
        return min(len(self.images), self.limit or len(self.images))

    @property
    def steps_per_epoch(self) -> int:
        """The same on each rank; at least 1."""
        per_step = self.batch_size * self.world
        whole, rest = divmod(self.samples_per_epoch, per_step)
        return max(1, whole if self.drop_last else whole + (rest > 0))

    def shard(self, rank: int, world: int) -> Batches:
        """These batches as process `rank` of `world` takes them."""
        if not 0 <= rank < world:
            raise OptionError("rank", f"must be 0..{world - 1}, not {rank!r}")
        mine = copy.copy(self)
        mine.rank, mine.world = rank, world
        return mine

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self.epoch(0)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The epoch's samples over all ranks: rows of (index, how often it came before)."""
        n, total = self.samples_per_epoch, len(self.images)
        if self.shuffle:
            indices = generator(self.seed, epoch, 0, ORDER).permutation(total)
        else:
            indices = np.arange(n) * total // n
        indices = np.repeat(indices, self.repeats)[:n]
        counts = np.tile(np.arange(self.repeats), n // self.repeats + 1)[:n]
        rows = np.stack([indices, counts], axis=1).astype(np.int64)
        return rows[np.arange(-(-n // self.world) * self.world) % n]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """This rank's batches of an epoch, from step `start` on."""
        mine = self.order(epoch)[self.rank :: self.world]
        for step in range(start, self.steps_per_epoch):
            rows = mine[step * self.batch_size : (step + 1) * self.batch_size]
            yield self.collate(epoch, rows)

    def collate(self, epoch: int, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Rows of (index, repeat) -> one batch."""
        pictures, labels = [], []
        for index, repeat in rows.tolist():
            picture, label = self.images[index]
            if self.augment is not None:
                rng = generator(self.seed, epoch, index, SAMPLE, repeat)
                picture = self.augment.picture(picture, rng, size=self.preprocess.size)
            pictures.append(self.preprocess.fit(picture))
            labels.append(label)
        batch: dict[str, Any] = {
            "image": torch.from_numpy(self.preprocess.normalize(np.stack(pictures))),
            "label": torch.tensor(labels, dtype=torch.int64),
            "index": torch.from_numpy(rows[:, 0].copy()),
        }
        if self.augment is not None and self.augment.mixes:
            rngs = [generator(self.seed, epoch, index, MIX, repeat) for index, repeat in rows.tolist()]
            batch = self.augment.mix(batch, rngs)
        return batch
