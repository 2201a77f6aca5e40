# SPDX-License-Identifier: Apache-2.0
"""Pictures kept in memory: the same pictures, decoded once."""

import numpy as np
import pytest
from PIL import Image

from featherweight.data import Batches, load
from featherweight.data.memory import Held
from featherweight.runtime.preprocess import Preprocess


class Counted:
    """Random pictures that count how often each is asked for."""

    def __init__(self, count=5):
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        self.labels = np.arange(count) % 2
        self.asked = [0] * count

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        self.asked[i] += 1
        return self.pixels[i].copy(), int(self.labels[i])

    def names(self, i):
        return f"picture {i}"


def test_a_picture_is_decoded_once_and_is_the_same():
    source = Counted()
    held = Held(source)
    for _ in range(3):
        for i in range(len(held)):
            pixels, label = held[i]
            assert np.array_equal(pixels, source.pixels[i]) and label == source.labels[i]
    assert source.asked == [1] * 5 and held.names(2) == "picture 2"
    with pytest.raises(ValueError, match="read-only"):
        held[0][0][:] = 0
    with pytest.raises(IndexError):
        held[5]
    assert np.array_equal(held[-1][0], source.pixels[4]) and source.asked[4] == 1


def test_what_does_not_fit_is_decoded_again():
    source = Counted()
    held = Held(source, most=2 * 8 * 8 * 3)
    for _ in range(2):
        for i in range(5):
            assert np.array_equal(held[i][0], source.pixels[i])
    assert source.asked == [1, 1, 2, 2, 2]


def test_the_option_changes_nothing_but_the_time(tmp_path):
    for i in range(8):
        for part in ("train", "test"):
            (tmp_path / part / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 8, 3), 30 * i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / "ab"[i % 2] / f"{i}.png")
    plain, held = load(tmp_path), load(tmp_path, in_memory=True)
    assert held.fingerprint == plain.fingerprint
    preprocess = Preprocess(size=(8, 8), resize="none")
    for part in ("train", "val", "test"):
        options = {"batch_size": 3, "shuffle": True}
        left, right = (Batches(getattr(data, part), preprocess, **options).epoch(1) for data in (plain, held))
        for one, other in zip(left, right, strict=True):
            assert all(bool((one[key] == other[key]).all()) for key in one)
