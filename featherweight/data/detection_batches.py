# SPDX-License-Identifier: Apache-2.0
"""Batches for detectors: order and augmentation are pure functions of (seed, epoch, index).

What a batch holds stands in `data.detection`. Any number of workers, a restart at any step and any number of processes
give the same samples: batch s of size B on each of W ranks covers the same samples as batch s of size W x B on one.
Rectangular batches (for evaluation) put pictures of a like shape together, each batch as small as its pictures allow.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from featherweight.data import orders
from featherweight.data.batches import ORDER, SAMPLE, check_batches, check_rank, generator, made
from featherweight.data.detection_augment import DetectionAugment
from featherweight.data.memory import MOST
from featherweight.data.scenes import Scenes
from featherweight.data.warp import Scene
from featherweight.errors import OptionError
from featherweight.runtime.letterbox import Letterbox, Placement, put
from featherweight.runtime.resize import area, bilinear

SCALE = 7  # a stream of random numbers beside those of `batches`
Batch = dict[str, torch.Tensor]
Size = tuple[int, int]


class Loader:
    """Scenes with their longer side at the size of training, read again each time or kept in memory."""

    def __init__(self, scenes: Scenes, size: Size, *, training: bool, in_memory: bool) -> None:
        self.scenes, self.size, self.training, self.in_memory = scenes, size, training, in_memory
        self._kept: dict[int, NDArray[np.uint8]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.scenes)

    def load(self, i: int) -> Scene:
        """Scene i, resized; its objects in pixels of the resized picture."""
        height, width = (int(n) for n in self.scenes.sizes[i])
        picture = self._resized(i, height, width)
        gain = (picture.shape[1] / width, picture.shape[0] / height)
        return Scene.of(picture, self.scenes.objects(i)).moved(gain, (0.0, 0.0), picture)

    def resized(self, height: int, width: int) -> Size:
        """The size a picture gets: the longer side fits, the other is cut to whole pixels."""
        gain = min(self.size[0] / height, self.size[1] / width)
        return max(1, int(height * gain + 1e-9)), max(1, int(width * gain + 1e-9))

    def _resized(self, i: int, height: int, width: int) -> NDArray[np.uint8]:
        found = self._kept.get(i)
        if found is None:
            wanted = self.resized(height, width)
            shrink = area if not self.training and wanted < (height, width) else bilinear
            found = shrink(self.scenes.picture(i), *wanted)
            if self.in_memory and self._bytes + found.nbytes <= MOST:
                found.flags.writeable = False
                self._kept[i] = found
                self._bytes += found.nbytes
        return found


class DetectionBatches:
    """Batches of one part of a detection set; iterating gives epoch 0."""

    def __init__(
        self,
        scenes: Scenes,
        *,
        size: int | Size,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        augment: DetectionAugment | None = None,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        limit: int | None = None,
        workers: int = 0,
        stride: int = 32,
        rectangular: bool = False,
        rectangular_pad: float = 0.5,
        multi_scale: float = 0.0,
        in_memory: bool = False,
        as_uint8: bool = False,
    ) -> None:
        """size: of the input, one number or (height, width), multiples of `stride`. limit: pictures per epoch.

        rectangular: pictures ordered by shape, every batch of the smallest shape that holds them; not to be shuffled or
        augmented. multi_scale: each batch is resized by 1 - x .. 1 + x, in multiples of `stride`. in_memory: keep the
        resized pictures. as_uint8: leave the division by 255 to whoever takes the batch.
        """
        self.size: Size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.scenes, self.batch_size, self.seed, self.shuffle = scenes, batch_size, seed, shuffle
        self.rank, self.world, self.drop_last, self.limit, self.workers = rank, world, drop_last, limit, workers
        self.stride, self.rectangular, self.multi_scale, self.as_uint8 = stride, rectangular, multi_scale, as_uint8
        self.pad = rectangular_pad
        self._check(augment)
        self.augment = augment.possible(outlined=scenes.outlined) if augment is not None else None
        self.loader = Loader(scenes, self.size, training=augment is not None, in_memory=in_memory)

    def _check(self, augment: DetectionAugment | None) -> None:
        """OptionError for what cannot be, before any work."""
        counts = {"batch_size": self.batch_size, "limit": self.limit, "stride": self.stride}
        check_batches(len(self.scenes), rank=self.rank, world=self.world, workers=self.workers, **counts)
        if any(n < self.stride or n % self.stride for n in self.size):
            text = f"must be a multiple of {self.stride}, the detector's largest stride, not {self.size}"
            raise OptionError("size", text)
        if not 0 <= self.multi_scale < 1:
            raise OptionError("multi_scale", f"must be 0 or more and below 1, not {self.multi_scale!r}")
        if self.rectangular and (self.shuffle or augment is not None or self.multi_scale):
            raise OptionError("rectangular", "is for evaluation: without shuffle, augment and multi_scale")

    @property
    def images(self) -> Scenes:
        """The part these batches are of."""
        return self.scenes

    @property
    def samples_per_epoch(self) -> int:
        """Over all ranks, without what fills up the last step."""
        return min(len(self.scenes), self.limit or len(self.scenes))

    @property
    def steps_per_epoch(self) -> int:
        """The same on each rank; at least 1."""
        whole, rest = divmod(self.samples_per_epoch, self.batch_size * self.world)
        return max(1, whole if self.drop_last else whole + (rest > 0))

    def shard(self, rank: int, world: int) -> DetectionBatches:
        """These batches as process `rank` of `world` takes them."""
        check_rank(rank, world)
        mine = copy.copy(self)
        mine.rank, mine.world = rank, world
        return mine

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The epoch's pictures over all ranks: rows of (index, 0)."""
        n, total = self.samples_per_epoch, len(self.scenes)
        if self.shuffle:
            indices = generator(self.seed, epoch, 0, ORDER).permutation(total)
        else:
            indices = np.arange(n) * total // n
        if self.rectangular:
            sizes = self.scenes.sizes[indices]
            indices = indices[np.argsort(sizes[:, 0] / sizes[:, 1], kind="stable")]
        return orders.full(indices, n, repeats=1, world=self.world)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's batches of an epoch, from step `start` on."""
        rows = self.order(epoch)[:, 0]
        span = self.batch_size * self.world
        steps = [(epoch, s, rows[s * span : (s + 1) * span]) for s in range(start, self.steps_per_epoch)]
        yield from made(self.collate, steps, self.workers)

    def collate(self, epoch: int, step: int, together: NDArray[np.int64]) -> Batch:
        """One batch of this rank; `together` are the pictures of all ranks in this step."""
        mine = together[self.rank :: self.world].tolist()
        net = self.net_of(together) if self.rectangular else self.size
        samples = [self.sample(epoch, i, net) for i in mine]
        targets = [targets_of(scene, k) for k, (scene, _) in enumerate(samples)]
        stacked = np.empty((len(mine), 3, *net), np.uint8)
        for k, (scene, _) in enumerate(samples):
            for c in range(3):
                stacked[k, c] = scene.picture[..., c]
        pictures = torch.from_numpy(stacked)
        batch = {
            "image": pictures if self.as_uint8 else pictures.float().div_(255),
            "targets": torch.from_numpy(np.concatenate(targets)),
            "size": torch.from_numpy(self.scenes.sizes[mine].copy()),
            "shape": torch.tensor([placement.row() for _, placement in samples], dtype=torch.float32),
            "index": torch.tensor(mine, dtype=torch.int64),
        }
        return self._rescaled(batch, epoch, step) if self.multi_scale else batch

    def net_of(self, together: NDArray[np.int64]) -> Size:
        """Height and width of a rectangular batch of these pictures."""
        sizes = self.scenes.sizes[together]
        ratios, longest = sizes[:, 0] / sizes[:, 1], max(self.size)
        shape = (1.0, 1.0)
        if ratios.max() < 1:
            shape = (float(ratios.max()), 1.0)
        elif ratios.min() > 1:
            shape = (1.0, 1 / float(ratios.min()))
        high, wide = (math.ceil(share * longest / self.stride + self.pad) * self.stride for share in shape)
        return high, wide

    def sample(self, epoch: int, index: int, net: Size) -> tuple[Scene, Placement]:
        """Picture `index` as the network sees it, and where its own pixels went (of the letterbox alone)."""
        original = (int(self.scenes.sizes[index][0]), int(self.scenes.sizes[index][1]))
        if self.augment is not None:
            rng = generator(self.seed, epoch, index, SAMPLE)
            return self.augment.scene(self.loader, index, rng), self._placed(original, net)
        scene = self.loader.load(index)
        box = Letterbox(net, scale_up=False)
        shape = scene.picture.shape[:2]
        inner = box.place(*shape)
        picture = put(scene.picture, box.inner(*shape), inner)
        return scene.moved(inner.gain, inner.pad, picture), self._placed(original, net)

    def _placed(self, original: Size, net: Size) -> Placement:
        """From the picture as it was read into the input: the resizing and the letterbox together."""
        inner = Letterbox(net, scale_up=False).place(*self.loader.resized(*original))
        shape = inner.image
        gain = (shape[1] / original[1] * inner.gain[0], shape[0] / original[0] * inner.gain[1])
        return Placement(original, inner.net, gain, inner.pad)

    def _rescaled(self, batch: Batch, epoch: int, step: int) -> Batch:
        """The batch at another size, drawn for the step, the same on every rank."""
        rng = generator(self.seed, epoch, step, SCALE)
        longest, stride = max(self.size), self.stride
        low, high = (1 - self.multi_scale) * longest, (1 + self.multi_scale) * longest
        drawn = int(rng.integers(max(stride, int(low)), int(high) + stride)) // stride * stride
        gain = drawn / longest
        net = [max(stride, math.ceil(n * gain / stride) * stride) for n in self.size]
        if net == list(self.size):
            return batch
        image = batch["image"].float()
        image = F.interpolate(image, size=net, mode="bilinear", align_corners=False)
        image = image.round().to(torch.uint8) if self.as_uint8 else image
        ratio = torch.tensor([net[1] / self.size[1], net[0] / self.size[0]])
        return {**batch, "image": image, "shape": batch["shape"] * torch.cat([ratio, ratio, ratio.flip(0)])}


def targets_of(scene: Scene, k: int) -> NDArray[np.float32]:
    """Rows (n, 6) of picture k of a batch: [k, class, xc, yc, w, h] as shares of the picture."""
    height, width = scene.picture.shape[:2]
    boxes = scene.boxes.clip(0, (width, height, width, height))
    center, side = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    head = np.stack([np.full(len(boxes), k), scene.labels], axis=1)
    found = np.concatenate([head, center / (width, height), side / (width, height)], axis=1).astype(np.float32)
    return found[(side > 0).all(1)]
