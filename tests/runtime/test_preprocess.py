# SPDX-License-Identifier: Apache-2.0
"""Preprocessing: torchvision's answer to the bit, small memory for long strips, strict record."""

import numpy as np
import pytest
from PIL import Image

from featherweight.errors import InputError, OptionError
from featherweight.runtime import preprocess
from featherweight.runtime.preprocess import Preprocess

SHAPES = [(300, 400), (400, 300), (224, 224), (97, 1500), (33, 40), (1000, 60), (256, 341)]
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def noise(height, width, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("side", "crop_pct"), [(224, 0.875), (224, 0.9), (48, 1.0), (33, 0.95)])
def test_equals_torchvision_to_the_bit(shape, interpolation, side, crop_pct):
    transforms = pytest.importorskip("torchvision.transforms")
    mode = transforms.InterpolationMode(interpolation)
    reference = transforms.Compose(
        [transforms.Resize(int(side / crop_pct), interpolation=mode), transforms.CenterCrop(side)]
    )
    picture = noise(*shape)
    ours = Preprocess(size=(side, side), crop_pct=crop_pct, interpolation=interpolation, **IMAGENET)
    cropped = reference(Image.fromarray(picture))
    assert np.array_equal(ours.fit(picture), np.asarray(cropped))
    finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*IMAGENET.values())])
    assert np.array_equal(ours(picture), finish(cropped).numpy())


def test_one_picture_and_a_batch_have_the_same_bits():
    ours = Preprocess(size=(20, 30), **IMAGENET)
    pictures = [noise(20, 30, seed) for seed in range(5)]
    batch = ours.normalize(np.stack(pictures))
    assert batch.shape == (5, 3, 20, 30) and batch.dtype == np.float32 and batch.flags.c_contiguous
    for one, picture in zip(batch, pictures, strict=True):
        assert np.array_equal(one, ours(picture))


def test_a_picture_that_fits_is_not_copied():
    picture = noise(48, 48)
    assert Preprocess(size=(48, 48)).fit(picture) is picture


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1), (2, 3000)])
def test_long_strips_stay_small(shape, monkeypatch):
    biggest = []
    real = Image.Image.resize

    def noted(self, size, *args, **options):
        biggest.append(size[0] * size[1])
        return real(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", noted)
    out = Preprocess(crop_pct=0.875)(noise(*shape))
    assert out.shape == (3, 224, 224) and np.isfinite(out).all() and max(biggest) <= preprocess.BUDGET


def test_cropping_first_shows_the_same_part(monkeypatch):
    picture = noise(60, 400)
    ours = Preprocess(size=(224, 224), crop_pct=0.875)
    expected = ours.fit(picture).astype(int)
    monkeypatch.setattr(preprocess, "BUDGET", 1000)
    found = ours.fit(picture).astype(int)
    # the crop's corner is the same point of the source up to rounding; whole-pixel errors would be far larger
    assert np.abs(found - expected).max() <= 2
    assert np.abs(np.roll(expected, 1, 1) - expected).mean() > 5 * np.abs(found - expected).mean()


def test_exact_stretches_and_none_refuses():
    assert Preprocess(size=(10, 20), resize="exact").fit(noise(7, 300)).shape == (10, 20, 3)
    assert Preprocess(size=(10, 20), resize="exact", crop_pct=0.5).fit(noise(7, 300)).shape == (10, 20, 3)
    strict = Preprocess(size=(10, 20), resize="none")
    assert strict.fit(noise(10, 20)).shape == (10, 20, 3)
    with pytest.raises(InputError, match="bad_dimensions: is 7 x 300"):
        strict.fit(noise(7, 300))


@pytest.mark.parametrize("size", [(32, 64), (64, 32), (17, 90)])
@pytest.mark.parametrize("shape", SHAPES)
def test_sizes_that_are_not_square_are_covered(size, shape):
    assert Preprocess(size=size, crop_pct=0.9).fit(noise(*shape)).shape == (*size, 3)


@pytest.mark.parametrize(
    "picture", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32),
                np.zeros((0, 4, 3), np.uint8)]
)  # fmt: skip
def test_only_rgb_bytes_are_taken(picture):
    with pytest.raises(InputError, match="bad_shape"):
        Preprocess()(picture)


def test_the_record_comes_back_equal():
    ours = Preprocess(size=(48, 32), resize="exact", crop_pct=0.9, interpolation="bilinear", **IMAGENET)
    record = ours.to_dict()
    assert record["size"] == [48, 32] and Preprocess.from_dict(record) == ours


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"crop_pctt": 1}, "unknown_key: preprocess has no 'crop_pctt'; did you mean 'crop_pct'?"),
        ({"crop_pct": None}, "missing_key"),
        ({"crop_pct": 0}, "must be 0.05..1"),
        ({"crop_pct": "1"}, "out_of_range"),
        ({"size": [0, 4]}, "must be .height, width."),
        ({"size": [2.0, 4]}, "must be .height, width."),
        ({"size": 4}, "out_of_range"),
        ({"mean": [0, 0, float("nan")]}, "three finite numbers"),
        ({"std": [1, 1, 0]}, "must be above 0"),
        ({"interpolation": "bicubik"}, "did you mean 'bicubic'?"),
        ({"resize": ["shorter"]}, "preprocess.resize"),
    ],
)
def test_a_record_that_is_not_ours_is_refused(change, told):
    record = {**Preprocess().to_dict(), **change}
    if change == {"crop_pct": None}:
        del record["crop_pct"]
    with pytest.raises(InputError, match=told) as error:
        Preprocess.from_dict(record, name="model.json")
    assert str(error.value).startswith("model.json: ") and "\n" not in str(error.value)


def test_options_are_checked():
    with pytest.raises(OptionError, match=r"preprocess.interpolation: no 'nearst' here"):
        Preprocess(interpolation="nearst")
