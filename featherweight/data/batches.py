# SPDX-License-Identifier: Apache-2.0
"""From pictures to tensors: batches whose order and augmentation are pure functions of (seed, epoch, sample index).

A restart at any step, another number of threads or another number of processes gives the same samples with the same
augmentation: batch s of size B on each of W ranks covers the same W x B samples as batch s of size W x B on one. Only
mixing (mixup, cutmix) takes its partners from the rank's own batch.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from featherweight.data import orders
from featherweight.data.geometry import Geometry
from featherweight.errors import OptionError, closest
from featherweight.runtime.preprocess import Preprocess

if TYPE_CHECKING:
    from featherweight.data import Images
    from featherweight.data.transforms import Augment

ORDER, SAMPLE, MIX = 0, 1, 2  # separate streams of random numbers
SAMPLERS = ("full", "official")
Made = TypeVar("Made")


def generator(seed: int, epoch: int, index: int, stream: int, repeat: int = 0) -> np.random.Generator:
    """The random numbers of one sample in one epoch; no two arguments share a stream."""
    return np.random.Generator(np.random.Philox(counter=[0, stream, repeat, index], key=[seed, epoch]))


def check_batches(samples: int, *, rank: int, world: int, workers: int, **counts: int | None) -> None:
    """OptionError for options that no batches can have, before any work; counts: those that are 1 or more, or None."""
    for name, value in {**counts, "world": world}.items():
        if value is not None and value < 1:
            raise OptionError(name, f"must be 1 or more, not {value!r}")
    if workers < 0:
        raise OptionError("workers", f"must be 0 or more, not {workers!r}")
    check_rank(rank, world)
    if samples == 0:
        raise OptionError("data", "this part has no pictures")


def check_rank(rank: int, world: int) -> None:
    """OptionError unless `rank` is one of so many processes."""
    if not 0 <= rank < world:
        raise OptionError("rank", f"must be 0..{world - 1}, not {rank!r}")


def made(make: Callable[..., Made], steps: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Made]:
    """`make(*step)` of each step in order, some of them made ahead by so many threads."""
    if not workers:
        yield from (make(*step) for step in steps)
        return
    ahead: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="featherweight-data")
    try:
        for step in steps:
            ahead.append(pool.submit(make, *step))
            if len(ahead) > workers + 1:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Batches:
    """Batches {"image": (B, 3, H, W) float32, "label", "index": (B,) int64}; mixing adds "soft_label" (B, K).

    "geometry" (B, 2, 3) says where each place of a picture was in the file, "crop" (B, 4) what a random crop took of it
    (`geometry.Geometry`). With `cycle`, "place" (B,) int64 numbers what there is to see: equal numbers, equal pictures
    in equal batches.
    """

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
        sampler: str = "full",
        cycle: int | None = None,
        workers: int = 0,
    ) -> None:
        """limit: samples per epoch over all ranks: the first of a shuffled order, else evenly spaced.

        repeats: how often a picture comes, each time augmented anew, in an epoch of the same length.
        sampler: "full" takes any number of pictures; "official" is that of DeiT's code, in whole runs of 256.
        cycle: after so many epochs the first one comes again, order and augmentation alike.
        workers: threads that decode and augment ahead; the batches are the same for any number.
        With several ranks the order is filled up from its start, so that all take as many steps: evaluate with world=1.
        """
        counts = {"batch_size": batch_size, "repeats": repeats, "limit": limit, "cycle": cycle}
        check_batches(len(images), rank=rank, world=world, workers=workers, **counts)
        self.images, self.preprocess, self.augment = images, preprocess, augment
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.rank, self.world, self.drop_last, self.limit, self.repeats = rank, world, drop_last, limit, repeats
        self.sampler, self.cycle, self.workers = sampler, cycle, workers
        self._check_sampler()

    def _check_sampler(self) -> None:
        if self.sampler not in SAMPLERS:
            text = f"no {self.sampler!r}; {closest(self.sampler, SAMPLERS)}Known: {', '.join(SAMPLERS)}"
            raise OptionError("sampler", text)
        if self.sampler == "official" and self.limit is not None:
            raise OptionError("sampler", "official takes what it takes: leave the limit of images out, or use full")
        if self.sampler == "official" and self.samples_per_epoch == 0:
            text = f"official serves whole runs of {orders.RUN} pictures, and there are {len(self.images)}: use full"
            raise OptionError("sampler", text)

    @property
    def samples_per_epoch(self) -> int:
        """Over all ranks, without what fills up the last step."""
        if self.sampler == "official":
            return orders.official_count(len(self.images), self.world)
        return min(len(self.images), self.limit or len(self.images))

    @property
    def steps_per_epoch(self) -> int:
        """The same on each rank; at least 1."""
        per_step = self.batch_size * self.world
        whole, rest = divmod(self.samples_per_epoch, per_step)
        return max(1, whole if self.drop_last else whole + (rest > 0))

    def shard(self, rank: int, world: int) -> Batches:
        """These batches as process `rank` of `world` takes them."""
        check_rank(rank, world)
        mine = copy.copy(self)
        mine.rank, mine.world = rank, world
        mine._check_sampler()
        return mine

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self.epoch(0)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The epoch's samples over all ranks: rows of (index, how often it came before)."""
        n, total = self.samples_per_epoch, len(self.images)
        if self.sampler == "official":
            seed = (self.seed << 32) + epoch if self.shuffle else None
            return orders.official(total, repeats=self.repeats, world=self.world, seed=seed)
        if self.shuffle:
            indices = generator(self.seed, epoch, 0, ORDER).permutation(total)
        else:
            indices = np.arange(n) * total // n
        return orders.full(indices, n, repeats=self.repeats, world=self.world)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """This rank's batches of an epoch, from step `start` on."""
        epoch = epoch % self.cycle if self.cycle else epoch
        rows = self.order(epoch)
        places = np.arange(self.rank, len(rows), self.world)
        steps = [places[s * self.batch_size : (s + 1) * self.batch_size] for s in range(start, self.steps_per_epoch)]
        batches = made(self.collate, [(epoch, rows[where]) for where in steps], self.workers)
        for mine, batch in zip(steps, batches, strict=True):
            yield {**batch, "place": torch.from_numpy(epoch * len(rows) + mine)} if self.cycle else batch

    def collate(self, epoch: int, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Rows of (index, repeat) -> one batch."""
        pictures, labels, moves = [], [], []
        for index, repeat in rows.tolist():
            picture, label = self.images[index]
            geometry = Geometry()
            if self.augment is not None:
                rng = generator(self.seed, epoch, index, SAMPLE, repeat)
                picture = self.augment.picture(picture, rng, size=self.preprocess.size, geometry=geometry)
            geometry.window(self.preprocess.window(*picture.shape[:2]))
            pictures.append(self.preprocess.fit(picture))
            labels.append(label)
            moves.append(geometry)
        batch: dict[str, Any] = {
            "image": torch.from_numpy(self.preprocess.normalize(np.stack(pictures))),
            "label": torch.tensor(labels, dtype=torch.int64),
            "index": torch.from_numpy(rows[:, 0].copy()),
            "geometry": torch.from_numpy(np.stack([geometry.matrix for geometry in moves])),
            "crop": torch.tensor([geometry.crop for geometry in moves]),
        }
        if self.augment is not None and self.augment.mixes:
            rngs = [generator(self.seed, epoch, index, MIX, repeat) for index, repeat in rows.tolist()]
            batch = self.augment.mix(batch, rngs)
        return batch
