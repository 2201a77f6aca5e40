# SPDX-License-Identifier: Apache-2.0
"""Letterbox and the way back: the corners of a picture are its corners again; resizing as the arithmetic says."""

import numpy as np
import pytest

from featherweight.errors import InputError, OptionError
from featherweight.runtime import resize
from featherweight.runtime.letterbox import GRAY, Letterbox, Placement
from featherweight.runtime.preprocess import Preprocess


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("options", [{}, {"auto": True}, {"scale_up": False}, {"stretch": True}])
@pytest.mark.parametrize("shape", [(48, 64), (97, 31), (17, 200), (333, 500), (1, 9), (320, 320)])
def test_corners_come_back_exactly(shape, options):
    box = Letterbox((96, 128), stride=32, **options)
    out, placement = box(noise(*shape))
    assert out.shape[:2] == placement.net
    whole = np.array([[0, 0, shape[1], shape[0]]])
    assert np.allclose(placement.back(placement.forward(whole), clip=False), whole, atol=1e-9)
    inside = placement.forward(whole)[0]
    assert np.allclose(inside, inside.round(), atol=1e-9), "the picture covers whole pixels"
    left, top, right, bottom = inside.round().astype(int)
    outside = np.ones(out.shape[:2], bool)
    outside[top:bottom, left:right] = False
    assert (out[outside] == GRAY).all()
    again = Placement.from_row(np.array(placement.row()), shape)
    assert again == placement


def test_a_box_outside_is_clipped_and_detections_keep_score_and_class():
    placement = Letterbox((64, 64)).place(32, 64)
    rows = placement.detections(np.array([[-9.0, 0, 70, 64, 0.5, 3]]))
    assert rows.tolist() == [[0, 0, 64, 32, 0.5, 3]]


def test_bilinear_is_the_arithmetic_to_one_level():
    image = noise(37, 53)
    out = resize.bilinear(image, 61, 29)
    y, x = ((np.arange(n) + 0.5) * old / n - 0.5 for n, old in ((61, 37), (29, 53)))
    rows = [np.interp(y, np.arange(37), image[:, i, 0]) for i in range(53)]
    exact = np.stack([np.interp(x, np.arange(53), row) for row in np.stack(rows, 1)])
    assert np.abs(out[:, :, 0].astype(float) - exact).max() <= 1
    assert resize.bilinear(image, 37, 53) is image
    assert (resize.bilinear(np.full((5, 7, 3), 200, np.uint8), 90, 33) == 200).all()
    tall = noise(400, 12)  # many rows that are not looked at
    assert np.array_equal(resize.bilinear(tall, 10, 12), resize.bilinear(np.tile(tall, (1, 1, 1)), 10, 12))


def test_area_is_the_mean():
    image = noise(60, 90)
    assert np.array_equal(resize.area(image, 20, 30), np.rint(image.reshape(20, 3, 30, 3, 3).mean((1, 3))))
    assert abs(resize.area(image, 17, 23).mean() - image.mean()) < 0.5


def test_what_cannot_be_is_refused():
    with pytest.raises(OptionError, match=r"letterbox\.size"):
        Letterbox((0, 5))
    with pytest.raises(InputError, match="bad_shape"):
        Letterbox()(np.zeros((4, 4), np.uint8))


def test_values_of_0_to_1_are_the_table_s_bits():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    found = Preprocess((16, 16), "letterbox", interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)).normalize(pixels)
    assert found.shape == (3, 16, 16) and found.dtype == np.float32
    assert np.array_equal(found[0].ravel(), np.arange(256, dtype=np.float32) / np.float32(255))
