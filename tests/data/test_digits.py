# SPDX-License-Identifier: Apache-2.0
"""Digits on photographs: pure canvases, disjoint parts, tight boxes."""

from itertools import combinations

import numpy as np
import pytest

from featherweight.data import digits, load
from featherweight.errors import OptionError


def test_all_the_handwriting_is_read():
    ink, labels = digits.handwriting()
    assert ink.shape == (1797, 12, 12) and ink.dtype == np.uint8 and ink.max() == 255
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as scikit-learn says


def test_a_canvas_does_not_depend_on_what_was_asked_before():
    one, two = digits.Digits("train", 40, seed=3), digits.Digits("train", 40, seed=3)
    forward = [one[i][0].copy() for i in range(40)]
    for i in reversed(range(40)):
        assert np.array_equal(two[i][0], forward[i])
    assert np.array_equal(digits.Digits("train", 7, seed=3)[6][0], forward[6])
    assert one[5][1] == two.labels[5]


def test_another_seed_or_part_is_another_picture():
    pictures = [digits.Digits(part, 1, seed=seed)[0][0] for part in digits.SHARES for seed in (0, 1)]
    for a, b in combinations(pictures, 2):
        assert not np.array_equal(a, b)


def test_parts_share_no_digit_and_no_photograph():
    parts = digits.split()
    assert sum(map(len, parts.values())) == 1797
    ink = digits.handwriting()[0]
    for a, b in combinations(parts, 2):
        assert not set(parts[a]) & set(parts[b])
        assert not {ink[i].tobytes() for i in parts[a]} & {ink[i].tobytes() for i in parts[b]}
        assert not set(digits.PHOTOS[a]) & set(digits.PHOTOS[b])
    for part, which in parts.items():  # of each class the same share
        shares = np.bincount(digits.handwriting()[1][which]) / np.bincount(digits.handwriting()[1])
        assert np.abs(shares - digits.SHARES[part]).max() < 0.01


def test_both_halves_of_the_stereo_pair_are_in_one_part():
    assert sum(any("motorcycle" in name for name in names) for names in digits.PHOTOS.values()) == 1


def test_a_canvas_of_a_part_uses_only_its_photographs(monkeypatch):
    asked = []
    real = digits.photographs
    monkeypatch.setattr(digits, "photographs", lambda part: asked.append(part) or real(part))
    for i in range(5):
        digits.canvas(0, "val", i, digits.Look())
    assert set(asked) == {"val"}


@pytest.mark.parametrize("count", [1, 4])
def test_boxes_are_tight_apart_and_inside(count):
    # black background, full white ink: what is drawn can be seen in the picture itself
    look = digits.Look(size=96, glyph_max=34, background=0.0, color_min=1.0, digits_per_image=count)
    part = digits.Digits("train", 30, look=look)
    numbers = set()
    for i in range(30):
        picture, label = part[i]
        boxes, labels = part.boxes(i)
        numbers.add(len(boxes))
        assert labels[0] == label and len(labels) == len(boxes) and boxes.dtype == np.float32
        assert boxes.min() >= 0 and boxes.max() <= 96
        left = picture.max(2).copy()
        for x0, y0, x1, y1 in boxes.astype(int):
            inside = picture[y0:y1, x0:x1].max(2) >= digits.INK * 0.84
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
            left[y0:y1, x0:x1] = 0
        assert left.max() < digits.INK  # nothing of a digit sticks out
        for a, b in combinations(boxes, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    assert numbers == ({1} if count == 1 else {1, 2, 3, 4})


def test_the_digit_outshines_the_background():
    part = digits.Digits("train", 50)
    for i in range(50):
        picture = part[i][0].max(2)
        x0, y0, x1, y1 = part.boxes(i)[0][0].astype(int)
        outside = np.ones(picture.shape, bool)
        outside[y0 - 2 if y0 > 2 else 0 : y1 + 2, x0 - 2 if x0 > 2 else 0 : x1 + 2] = False
        assert picture[outside].max() <= 255 * 0.45 + 1
        assert picture[y0:y1, x0:x1].max() > 255 * 0.55


def test_load_and_its_fingerprint():
    data = load("digits", n_train=12, n_val=11, n_test=10)
    assert (len(data.train), len(data.val), len(data.test)) == (12, 11, 10)
    assert data.classes == tuple("0123456789") and data.format == "digits" and not data.skipped
    assert data.train[0][0].shape == (48, 48, 3) and data.train.names(3) == "digits/train/00003"
    assert data.fingerprint == load("digits", n_train=12, n_val=11, n_test=10).fingerprint
    others = [{"seed": 1}, {"rotation": 5.0}, {"n_train": 13}]
    assert len({load("digits", **{"n_train": 12, "n_val": 11, "n_test": 10, **o}).fingerprint for o in others}) == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"glyph_mx": 20}, "did you mean 'glyph_max'?"),
        ({"n_train": 0}, "data.digits.n_train"),
        ({"seed": -1}, "data.digits.seed"),
        ({"glyph_max": 60}, "glyph_max <= size"),
        ({"digits_per_image": 9}, "must be 1..4"),
    ],
)
def test_wrong_options(options, told):
    with pytest.raises(OptionError, match="digits") as error:
        load("digits", **options)
    assert told in str(error.value)


def test_without_the_packages_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs scikit-learn: pip install 'featherweight\[demo\]'"):
        digits.packaged(digits.DIGITS_FILE)
