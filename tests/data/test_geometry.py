# SPDX-License-Identifier: Apache-2.0
"""Where a place of an augmented picture was in the file: painted into the picture itself, and read back."""

import numpy as np
import pytest
import torch
from PIL import Image

from featherweight.data import Augment, Batches
from featherweight.data.geometry import Geometry
from featherweight.data.randaugment import OPERATIONS, Move
from featherweight.runtime.preprocess import Preprocess

HEIGHT, WIDTH = 96, 128


class Ramps:
    """Pictures whose red says how far right a place is, and whose green how far down; blue is full."""

    def __init__(self, n=4, size=(HEIGHT, WIDTH)):
        down, right = np.meshgrid(*((np.arange(side) + 0.5) / side for side in size), indexing="ij")
        self.picture = np.round(np.stack([right * 250, down * 250, np.full_like(right, 255)], axis=2)).astype(np.uint8)
        self.labels = np.zeros(n, np.int64)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.picture, 0

    def names(self, i):
        return str(i)


def check(picture, matrix, tolerance=0.015, crop=(0, 0, 1, 1)):
    """Every place was where the matrix says, but for what came in from outside the crop, or is gray instead of blue."""
    height, width = picture.shape[:2]
    down, right = np.meshgrid(*((np.arange(side) + 0.5) / side for side in (height, width)), indexing="ij")
    x, y = np.einsum("ij,jhw->ihw", matrix, np.stack([right, down, np.ones_like(down)]))
    left, top, right, bottom = crop
    inside = (x > left + 0.02) & (x < right - 0.02) & (y > top + 0.02) & (y < bottom - 0.02) & (picture[..., 2] > 250)
    assert inside.mean() > 0.2
    found = picture[..., :2].astype(float) / 250
    for axis, where in enumerate((x, y)):  # places beside the gray are mixed; Pillow cuts fractions off
        assert np.quantile(np.abs(found[..., axis] - where)[inside], 0.97) < tolerance


@pytest.mark.parametrize(
    "options",
    [
        {"crop_min": 0.2},
        {"flip": 1.0},
        {"shift": 0.2, "rotate": 25.0, "zoom": 0.3},
        {"crop_min": 0.3, "flip": 1.0, "rotate": 20.0, "shift": 0.1},
    ],
    ids=lambda options: " ".join(options),
)
@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(size=(64, 64)),
        Preprocess(size=(48, 72), crop_pct=0.75),
        Preprocess(size=(40, 64), resize="exact", crop_pct=0.8),
    ],
    ids=["shorter", "cropped", "exact"],
)
def test_the_geometry_of_a_batch_is_what_was_done(options, preprocess):
    batches = Batches(Ramps(), preprocess, batch_size=4, augment=Augment(**options))
    batch = next(batches.epoch(3))
    assert batch["geometry"].shape == (4, 2, 3)
    assert batch["geometry"].dtype == batch["crop"].dtype == torch.float32
    for image, matrix, crop in zip(batch["image"], batch["geometry"], batch["crop"].tolist(), strict=True):
        pixels = ((image.numpy().transpose(1, 2, 0) * 0.5 + 0.5) * 255).round()
        check(pixels, matrix.numpy(), tolerance=0.015, crop=crop)


@pytest.mark.parametrize("name", [name for name, operation in OPERATIONS.items() if isinstance(operation, Move)])
def test_operations_that_move_say_where(name, monkeypatch):
    from featherweight.data import randaugment

    monkeypatch.setattr(randaugment, "OPERATIONS", {name: OPERATIONS[name]})
    for seed in range(4):
        geometry, rng = Geometry(), np.random.default_rng(seed)
        picture = randaugment.randaugment(Ramps().picture, rng, magnitude=6, ops=3, geometry=geometry)
        check(picture, geometry.matrix)
        again = randaugment.randaugment(Ramps().picture, np.random.default_rng(seed), magnitude=6, ops=3)
        assert np.array_equal(again, picture)  # to be told of it changes nothing


def test_color_operations_move_nothing():
    geometry = Geometry()
    Augment(brightness=0.3, erase=1.0).picture(
        Ramps().picture, np.random.default_rng(0), size=(8, 8), geometry=geometry
    )
    assert np.array_equal(geometry.matrix, np.eye(3)[:2])
    assert {n for n, o in OPERATIONS.items() if isinstance(o, Move)} == {
        "rotate", "shear_x", "shear_y", "translate_x", "translate_y"
    }  # fmt: skip


def test_a_rotation_is_pillows():
    image = Image.fromarray(Ramps().picture)
    for level in (0.0, 0.31, 1.0):
        for sign in (0.2, 0.9):
            wanted = image.rotate(
                30 * level * (-1 if sign < 0.5 else 1), Image.Resampling.BILINEAR, fillcolor=(128,) * 3
            )
            rng = type("Rng", (), {"random": lambda self, sign=sign: sign})()
            assert np.array_equal(np.asarray(OPERATIONS["rotate"](image, level, True, rng)), np.asarray(wanted))


def test_the_window_is_what_fit_keeps():
    for size, how in (((50, 50), {"crop_pct": 0.6}), ((96, 30), {}), ((30, 60), {"resize": "exact", "crop_pct": 0.5})):
        geometry, preprocess = Geometry(), Preprocess(size=size, **how)
        geometry.window(preprocess.window(HEIGHT, WIDTH))
        check(preprocess.fit(Ramps().picture), geometry.matrix, tolerance=0.015)
    assert Preprocess(size=(8, 9), resize="none").window(8, 9) == (0, 0, 1, 1)


def test_the_crop_is_kept_apart():
    geometry = Geometry()
    geometry.random_crop((0.5, 0.0, 1.0, 0.5))  # the quarter at the top right
    geometry.flip()
    assert geometry.crop == (0.5, 0.0, 1.0, 0.5)
    np.testing.assert_allclose(geometry.matrix @ [0, 0, 1], [1.0, 0.0])
    np.testing.assert_allclose(geometry.matrix @ [1, 1, 1], [0.5, 0.5])
