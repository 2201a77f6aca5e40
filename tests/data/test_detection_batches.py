# SPDX-License-Identifier: Apache-2.0
"""Detection batches: pure in (seed, epoch, index), whatever the workers, ranks and restarts; boxes follow pixels."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from featherweight.data import detection, mosaic
from featherweight.data.batches import Batches
from featherweight.data.detection_augment import PRESETS, DetectionAugment
from featherweight.data.detection_batches import DetectionBatches
from featherweight.data.objects import Objects
from featherweight.data.warp import Move, Scene, warped
from featherweight.errors import OptionError
from featherweight.runtime.letterbox import Placement
from featherweight.runtime.preprocess import Preprocess

EVERYTHING = DetectionAugment(
    mosaic=0.7, mosaic9=0.4, mixup=0.3, copy_paste=0.5, paste_in=0.5, degrees=5, translate=0.1, scale=0.5, shear=2,
    perspective=0.0002, hue=0.015, saturation=0.7, value=0.4, flip=0.5, flip_ud=0.3,
)  # fmt: skip


class Blocks:
    """Pictures with one bright rectangle each, whose box and outline are known."""

    def __init__(self, n, outlined=True):
        rng = np.random.default_rng(0)
        self.sizes = np.stack([rng.integers(40, 90, n), rng.integers(40, 90, n)], 1)
        self.ids, self.outlined = np.arange(n), outlined
        self.boxes = [np.array([[w // 4, h // 4, w // 2 + 9, h // 2 + 7]], float) for h, w in self.sizes.tolist()]

    def __len__(self):
        return len(self.sizes)

    def picture(self, i):
        found = np.full((*self.sizes[i], 3), 20, np.uint8)
        x1, y1, x2, y2 = self.boxes[i][0].astype(int)
        found[y1:y2, x1:x2] = 250
        return found

    def objects(self, i):
        x1, y1, x2, y2 = self.boxes[i][0]
        ring = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
        one = Objects.of(self.boxes[i], np.array([i % 3]))
        return Objects(one.boxes, one.labels, one.crowd, one.areas, ((ring,),) if self.outlined else ())

    def names(self, i):
        return str(i)


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def batches(scenes=None, **options):
    standard = {"size": 64, "batch_size": 4, "shuffle": True, "augment": EVERYTHING, "seed": 3}
    return DetectionBatches(scenes or Blocks(13), **{**standard, **options})


def test_workers_restarts_and_memory_change_nothing():
    plain = list(batches().epoch(2))
    assert len(plain) == batches().steps_per_epoch == 4
    for other in (batches(workers=3), batches(in_memory=True)):
        list(other.epoch(0))
        assert all(same(a, b) for a, b in zip(plain, other.epoch(2), strict=True))
    assert all(same(a, b) for a, b in zip(plain[2:], batches().epoch(2, start=2), strict=True))
    assert not torch.equal(plain[0]["image"], next(batches().epoch(3))["image"])


def test_two_ranks_take_the_batches_of_one():
    whole = list(batches(Blocks(16), batch_size=8, multi_scale=0.4).epoch(1))
    halves = [list(batches(Blocks(16), multi_scale=0.4).shard(rank, 2).epoch(1)) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        for rank in (0, 1):
            mine = halves[rank][step]
            assert torch.equal(mine["image"], batch["image"][rank::2])
            assert torch.equal(mine["index"], batch["index"][rank::2])


def test_a_batch_has_the_agreed_form():
    batch = next(batches().epoch(0))
    assert batch["image"].shape == (4, 3, 64, 64) and batch["image"].dtype == torch.float32
    assert batch["image"].min() >= 0 and batch["image"].max() <= 1
    targets = batch["targets"]
    assert targets.dtype == torch.float32 and targets.shape[1] == 6 and len(targets) > 4
    assert set(targets[:, 0].tolist()) <= {0, 1, 2, 3}
    assert (targets[:, 2:] >= 0).all() and (targets[:, 2:] <= 1).all() and (targets[:, 4:] > 0).all()
    raw = next(batches(as_uint8=True).epoch(0))
    assert raw["image"].dtype == torch.uint8 and torch.equal(raw["image"].float() / 255, batch["image"])


@pytest.mark.parametrize("size", [64, (64, 96)])
def test_boxes_follow_the_bright_pixels_through_letterbox_and_back(size):
    scenes = Blocks(9)
    for batch in batches(scenes, size=size, augment=None, shuffle=False).epoch(0):
        for k, index in enumerate(batch["index"].tolist()):
            bright = np.argwhere(batch["image"][k].numpy().max(0) > 0.7)
            height, width = batch["image"].shape[2:]
            (row,) = batch["targets"][batch["targets"][:, 0] == k].numpy()
            box = np.array([row[2] - row[4] / 2, row[3] - row[5] / 2, row[2] + row[4] / 2, row[3] + row[5] / 2])
            box *= (width, height, width, height)
            pixels = np.array([bright[:, 1].min(), bright[:, 0].min(), bright[:, 1].max() + 1, bright[:, 0].max() + 1])
            assert np.abs(box - pixels).max() <= 1.01
            placement = Placement.from_row(batch["shape"][k].numpy(), tuple(batch["size"][k].tolist()))
            assert np.allclose(placement.back(box[None]), scenes.boxes[index], atol=1e-3)


def test_boxes_follow_the_bright_pixels_through_moves_flips_and_mosaics():
    rng = np.random.default_rng(1)
    scenes = Blocks(4)
    tiles = [Scene.of(scenes.picture(i), scenes.objects(i)) for i in range(4)]
    one = warped(tiles[0], Move(degrees=0, scale=1.3, middle=(0.55, 0.5)), (96, 96))
    for scene in (one, one.flipped(across=True), one.flipped(across=False).flipped(across=True)):
        bright = np.argwhere(scene.picture[..., 0] > 200)
        wanted = np.array([[*bright.min(0)[::-1], *(bright.max(0) + 1)[::-1]]])
        assert np.abs(scene.boxes - wanted).max() <= 1.5
    four = mosaic.mosaic4(tiles, (70, 60), (64, 64))
    assert len(four.boxes) == 4 and four.picture.shape == (128, 128, 3)
    for x1, y1, x2, y2 in four.boxes.astype(int):
        assert (four.picture[y1:y2, x1:x2] == 250).all()
    pasted = mosaic.paste_in(four, mosaic.cutouts(four, rng, share=1.0), rng)
    assert len(pasted.boxes) > 4 and np.array_equal(pasted.boxes[:4], four.boxes)
    twice = mosaic.copy_paste(tiles[0], rng, 1.0)
    assert len(twice.boxes) in (1, 2) and len(twice.outlines) == len(twice.boxes)


def test_rectangular_batches_hold_their_pictures_and_cover_all():
    found = list(batches(Blocks(30), augment=None, shuffle=False, rectangular=True).epoch(0))
    assert sorted(i for batch in found for i in batch["index"].tolist()) == list(range(30))
    shapes = {tuple(batch["image"].shape[2:]) for batch in found}
    assert len(shapes) > 1 and all(n % 32 == 0 for shape in shapes for n in shape)
    with pytest.raises(OptionError, match="rectangular"):
        batches(rectangular=True)


def test_multi_scale_draws_multiples_of_the_stride():
    sides = {next(batches(multi_scale=0.5).epoch(e))["image"].shape[2] for e in range(12)}
    assert len(sides) > 1 and all(side % 32 == 0 and 32 <= side <= 96 for side in sides)


def test_without_outlines_pasting_is_off_and_says_so_once():
    with pytest.warns(UserWarning, match="copy_paste and paste_in"):
        made = batches(Blocks(5, outlined=False))
    assert made.augment.paste_in == made.augment.copy_paste == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(made.epoch(0))


def test_the_defaults_change_nothing_and_options_are_checked():
    scenes = Blocks(3)
    plain, neutral = (list(batches(scenes, augment=a, shuffle=False).epoch(0)) for a in (None, DetectionAugment()))
    assert all(torch.equal(a["targets"], b["targets"]) for a, b in zip(plain, neutral, strict=True))
    assert {DetectionAugment.of({"preset": name}) for name in PRESETS}
    assert DetectionAugment.of({"preset": "tiny", "flip": 0}).flip == 0
    for wrong, text in (({"preset": "p7"}, "p5"), ({"mosiac": 1}, "mosaic"), ({"flip": 2}, "flip")):
        with pytest.raises(OptionError, match=text):
            DetectionAugment.of(wrong)
    with pytest.raises(OptionError, match="multiple of 32"):
        batches(size=100)


@pytest.mark.parametrize("kind", ["classifier", "detector"])
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batch_size": 0}, "batch_size: must be 1 or more, not 0"),
        ({"limit": 0}, "limit: must be 1 or more"),
        ({"world": 0}, "world: must be 1 or more"),
        ({"workers": -1}, "workers: must be 0 or more"),
        ({"rank": 2, "world": 2}, "rank: must be 0..1, not 2"),
    ],
)
def test_both_kinds_of_batches_refuse_the_same(kind, options, told):
    whole = {"batch_size": 2, **options}
    make = (lambda n: DetectionBatches(Blocks(n), size=64, **whole)) if kind == "detector" else None
    make = make or (lambda n: Batches(Blocks(n), Preprocess(), **whole))
    with pytest.raises(OptionError, match=told):
        make(3)
    whole = {"batch_size": 2}
    with pytest.raises(OptionError, match="data: this part has no pictures"):
        make(0)
    with pytest.raises(OptionError, match=r"rank: must be 0\.\.1, not 2"):
        make(3).shard(2, 2)


def test_digits_det_needs_no_file_and_its_parts_are_apart():
    pytest.importorskip("sklearn")
    pytest.importorskip("skimage")
    data = detection.load("digits-det", n_train=12, n_val=4, n_test=4)
    assert data.classes == tuple("0123456789") and len(data.train) == 12
    objects = data.train.objects(5)
    assert 1 <= len(objects) <= 4 and (objects.boxes[:, 2:] - objects.boxes[:, :2]).min() > 5
    again = detection.load("digits-det", n_train=12, n_val=4, n_test=4)
    assert np.array_equal(again.train.picture(5), data.train.picture(5)) and again.fingerprint == data.fingerprint
    batch = next(iter(batches(data.train, size=96, augment=DetectionAugment.of({"preset": "custom"}))))
    assert batch["image"].shape == (4, 3, 96, 96)


def test_sizes_need_not_be_square():
    batch = next(batches(size=(64, 128)).epoch(0))
    assert batch["image"].shape == (4, 3, 64, 128) and (batch["targets"][:, 2:] <= 1).all() and len(batch["targets"])
