# SPDX-License-Identifier: Apache-2.0
"""Batches: order and augmentation from (seed, epoch, index) alone."""

import numpy as np
import pytest
import torch

from featherweight.data import Augment, Batches
from featherweight.errors import OptionError
from featherweight.runtime.preprocess import Preprocess

FIT = Preprocess(size=(8, 8))


class Some:
    """n pictures of noise; picture i of another size where i is odd and `mixed`."""

    def __init__(self, n, mixed=False):
        rng = np.random.default_rng(0)
        self.labels = np.arange(n) % 3
        self._pictures = [rng.integers(0, 256, (8, 8 + 3 * (mixed and i % 2), 3), dtype=np.uint8) for i in range(n)]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self._pictures[i], int(self.labels[i])

    def names(self, i):
        return str(i)


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def indices(batches, epoch=0, start=0):
    return [batch["index"].tolist() for batch in batches.epoch(epoch, start)]


def test_what_a_batch_holds():
    images = Some(10, mixed=True)
    batches = Batches(images, FIT, batch_size=4)
    found = list(batches.epoch(0))
    assert [len(b["label"]) for b in found] == [4, 4, 2] and batches.steps_per_epoch == len(batches) == 3
    assert found[0]["image"].shape == (4, 3, 8, 8) and found[0]["image"].dtype == torch.float32
    assert found[0]["label"].dtype == found[0]["index"].dtype == torch.int64
    for batch in found:
        for picture, label, index in zip(batch["image"], batch["label"], batch["index"], strict=True):
            assert np.array_equal(picture.numpy(), FIT(images[int(index)][0])) and label == images.labels[index]
    assert indices(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


AUGMENT = Augment(crop_min=0.5, flip=0.5, shift=0.1, brightness=0.3, erase=0.5)
MIX = Augment(crop_min=0.5, mixup=1.0, cutmix=1.0, num_classes=3)


@pytest.mark.parametrize("augment", [None, AUGMENT, MIX])
def test_starting_at_step_k_gives_the_tail(augment):
    batches = Batches(Some(23), FIT, batch_size=4, shuffle=True, augment=augment, seed=5)
    whole = list(batches.epoch(2))
    for k in range(len(whole) + 1):
        fresh = Batches(Some(23), FIT, batch_size=4, shuffle=True, augment=augment, seed=5)
        tail = list(fresh.epoch(2, start=k))
        assert len(tail) == len(whole) - k
        assert all(same(a, b) for a, b in zip(whole[k:], tail, strict=True))


def test_epochs_and_seeds_shuffle_anew():
    batches = Batches(Some(50), FIT, batch_size=50, shuffle=True)
    first, again, second = indices(batches, 0)[0], indices(batches, 0)[0], indices(batches, 1)[0]
    other = indices(Batches(Some(50), FIT, batch_size=50, shuffle=True, seed=1), 0)[0]
    assert first == again and sorted(first) == list(range(50)) and len({*map(tuple, (first, second, other))}) == 3


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_same_batches(world):
    one = Batches(Some(48), FIT, batch_size=12, shuffle=True, augment=AUGMENT)
    ranks = [
        Batches(Some(48), FIT, batch_size=12 // world, shuffle=True, augment=AUGMENT, rank=r, world=world)
        for r in range(world)
    ]
    for whole, *shares in zip(one.epoch(1), *(b.epoch(1) for b in ranks), strict=True):
        pictures = {int(i): p for i, p in zip(whole["index"], whole["image"], strict=True)}
        assert sorted(pictures) == sorted(int(i) for share in shares for i in share["index"])
        for share in shares:
            for index, picture in zip(share["index"], share["image"], strict=True):
                assert torch.equal(picture, pictures[int(index)])  # the same augmentation, wherever it is done


@pytest.mark.parametrize("n", [1, 2, 7, 33])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_take_as_many_steps(n, drop_last):
    found = [
        indices(Batches(Some(n), FIT, batch_size=4, shuffle=True, drop_last=drop_last, rank=r, world=3))
        for r in range(3)
    ]
    steps = Batches(Some(n), FIT, batch_size=4, drop_last=drop_last, world=3).steps_per_epoch
    assert steps >= 1 and all(len(steps_of) == steps and all(steps_of) for steps_of in found)
    assert len({tuple(map(len, steps_of)) for steps_of in found}) == 1  # batch by batch as large
    if not drop_last:
        assert {i for steps_of in found for batch in steps_of for i in batch} == set(range(n))


def test_limit():
    spread = Batches(Some(100), FIT, batch_size=10, limit=10)
    assert indices(spread) == [[0, 10, 20, 30, 40, 50, 60, 70, 80, 90]] == indices(spread, 7)
    drawn = Batches(Some(100), FIT, batch_size=5, limit=10, shuffle=True)
    assert drawn.steps_per_epoch == 2 and drawn.samples_per_epoch == 10
    assert indices(drawn, 0) != indices(drawn, 1)
    assert Batches(Some(5), FIT, batch_size=5, limit=10).samples_per_epoch == 5


@pytest.mark.parametrize("n", [1, 5, 20])
def test_repeats_keep_the_length_and_augment_anew(n):
    batches = Batches(Some(n), FIT, batch_size=4, shuffle=True, repeats=3, augment=Augment(brightness=0.9))
    found = list(batches.epoch(0))
    index = torch.cat([b["index"] for b in found]).tolist()
    assert len(index) == n and len(set(index)) == -(-n // 3)
    if n == 20:
        images = torch.cat([b["image"] for b in found])
        assert index[0] == index[1] and not torch.equal(images[0], images[1])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batch_size": 0}, "batch_size: must be 1 or more"),
        ({"batch_size": 1, "limit": 0}, "limit: must be"),
        ({"batch_size": 1, "repeats": 0}, "repeats: must be"),
        ({"batch_size": 1, "rank": 2, "world": 2}, "rank: must be 0..1"),
    ],
)
def test_wrong_options(options, told):
    with pytest.raises(OptionError, match=told):
        Batches(Some(3), FIT, **options)


def test_an_empty_part_is_refused():
    with pytest.raises(OptionError, match="no images"):
        Batches(Some(0), FIT, batch_size=1)
