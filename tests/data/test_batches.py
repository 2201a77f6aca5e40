# SPDX-License-Identifier: Apache-2.0
"""Batches: order and augmentation from (seed, epoch, index) alone."""

import threading

import numpy as np
import pytest
import torch
from golden_files import golden

from featherweight.data import Augment, Batches
from featherweight.errors import InputError, OptionError
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
        ({"batch_size": 1, "workers": -1}, "workers: must be"),
        ({"batch_size": 1, "cycle": 0}, "cycle: must be"),
        ({"batch_size": 1, "sampler": "offical"}, "sampler: no 'offical'; did you mean 'official'"),
        ({"batch_size": 1, "sampler": "official", "limit": 2}, "sampler: official takes what it takes"),
    ],
)
def test_wrong_options(options, told):
    with pytest.raises(OptionError, match=told):
        Batches(Some(3), FIT, **options)


def test_an_empty_part_is_refused():
    with pytest.raises(OptionError, match="no pictures"):
        Batches(Some(0), FIT, batch_size=1)


SAMPLER = golden("functions_deit")["repeated_augmentation_sampler"]


@pytest.mark.parametrize("case", [case for case in SAMPLER if not case.startswith(("n=200|", "n=1281167|replicas=8"))])
def test_the_official_sampler_is_deits(case):
    n, world, shuffle, epoch, repeats = (part.partition("=")[2] for part in case.split("|"))
    for rank, wanted in SAMPLER[case].items():
        if wanted["first12"] is None:
            continue
        images = Sized(int(n))
        options = {"shuffle": shuffle == "True", "rank": int(rank[4:]), "world": int(world)}
        batches = Batches(images, FIT, batch_size=64, repeats=int(repeats), sampler="official", **options)
        mine = batches.order(int(epoch))[batches.rank :: batches.world, 0]
        assert len(mine) == wanted["len"] and len(set(mine.tolist())) == wanted["distinct"]
        assert mine[:12].tolist() == wanted["first12"] and mine[-3:].tolist() == wanted["last3"]


class Sized(Some):
    """So many pictures that nobody looks at."""

    def __init__(self, n):
        self.labels = np.broadcast_to(np.int64(0), n)


def test_the_official_sampler_would_be_empty_and_ours_is_not():
    assert SAMPLER["n=200|replicas=1|shuffle=True|epoch=1|repeats=3"]["rank0"]["len"] == 0
    with pytest.raises(OptionError, match=r"sampler: official serves whole runs of 256 pictures, and there are 200"):
        Batches(Some(200), FIT, batch_size=8, repeats=3, sampler="official")
    assert Batches(Some(200), FIT, batch_size=8, repeats=3).samples_per_epoch == 200


def test_repeats_put_the_copies_on_different_processes():
    ranks = [
        torch.cat([b["index"] for b in Batches(Some(60), FIT, batch_size=5, shuffle=True, repeats=3, rank=r, world=3)])
        for r in range(3)
    ]
    assert torch.equal(ranks[0], ranks[1]) and torch.equal(ranks[1], ranks[2]) and len(set(ranks[0].tolist())) == 20


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("augment", [AUGMENT, MIX])
def test_workers_make_the_same_batches(workers, augment):
    options = {"batch_size": 4, "shuffle": True, "augment": augment, "repeats": 2, "cycle": 2}
    alone = Batches(Some(23), FIT, **options)
    helped = Batches(Some(23), FIT, **options, workers=workers)
    for start in (0, 2):
        found = list(zip(alone.epoch(1, start), helped.epoch(1, start), strict=True))
        assert len(found) == 6 - start and all(same(one, two) for one, two in found)


def test_workers_end_with_their_loop_and_tell_what_went_wrong():
    before = threading.active_count()
    for _ in Batches(Some(40), FIT, batch_size=4, workers=2).epoch(0):
        break
    assert threading.active_count() == before

    class Broken(Some):
        def __getitem__(self, i):
            if i == 9:
                raise InputError("nine.png", "truncated", "stops early")
            return super().__getitem__(i)

    with pytest.raises(InputError, match=r"nine.png: truncated"):
        list(Batches(Broken(20), FIT, batch_size=4, workers=2).epoch(0))
    assert threading.active_count() == before


def test_a_cycle_shows_the_first_epoch_again():
    batches = Batches(Some(10), FIT, batch_size=4, shuffle=True, augment=AUGMENT, cycle=2, rank=1, world=2)
    first, second, third = (list(batches.epoch(e)) for e in range(3))
    assert all(same(a, b) for a, b in zip(first, third, strict=True))
    assert not all(same(a, b) for a, b in zip(first, second, strict=True))
    assert [b["place"].tolist() for b in first + second] == [[1, 3, 5, 7], [9], [11, 13, 15, 17], [19]]
