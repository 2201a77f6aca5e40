# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression: equal to the plain loop, whatever the classes, sizes and ties."""

import numpy as np
import pytest

from featherweight.errors import OptionError
from featherweight.runtime import nms
from featherweight.runtime.nms import Nms


def plain(boxes, groups, iou, most):
    """The textbook's loop."""
    pairs, kept = nms.overlaps(boxes, boxes), []
    for i in range(len(boxes)):
        if all(groups[i] != groups[j] or pairs[i, j] <= iou for j in kept):
            kept.append(i)
        if len(kept) == most:
            break
    return kept


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("span", [100, 9000])
def test_greedy_is_the_plain_loop(seed, span):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, span, (700, 2)).round(rng.integers(0, 3))
    boxes = np.concatenate([corner, corner + rng.uniform(0, span / 4, (700, 2)).round(1)], axis=1)
    groups = rng.integers(0, 4, 700)
    for most in (300, 7):
        assert nms.greedy(boxes, groups, iou=0.3, most=most).tolist() == plain(boxes, groups, 0.3, most)


def predictions(rows):
    return np.array(rows, np.float32)


def test_boxes_larger_than_any_offset_stay_apart():
    big = [6000, 6000, 12000, 12000, 0.9]
    found = Nms()(predictions([[*big, 1, 0, 0], [*big, 0, 0.9, 0], [*big, 0, 0, 0.8]]))
    assert found[:, 5].tolist() == [0, 1, 2]
    assert len(Nms(agnostic=True)(predictions([[*big, 1, 0], [*big, 0, 1]]))) == 1


def test_equal_scores_keep_their_order_and_thresholds_are_strict():
    rows = predictions([[10, 10, 4, 4, 0.5, 0.5], [30, 30, 4, 4, 0.5, 0.5], [50, 50, 4, 4, 0.25, 1]])
    found = Nms(confidence=0.25)(rows)
    assert found[:, 0].tolist() == [8, 28]
    assert found[:, 4].tolist() == [0.5, 0.5], "one class: the score is the objectness"
    half = predictions([[5, 5, 10, 10, 0.9, 1], [5, 2.5, 10, 5, 0.8, 1]])
    assert len(Nms(iou=0.5)(half)) == 2, "an overlap of exactly the threshold stays"


def test_limits_filters_and_what_is_not_finite():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.uniform(0, 5000, (900, 2)), np.full((900, 2), 3.0), rng.uniform(0.3, 1, (900, 4))], 1)
    assert len(Nms(max_kept=11)(rows)) == 11
    few = Nms(max_candidates=20, multi_label=True)(rows)
    every = Nms(multi_label=True)(rows)
    assert len(few) == 20 and np.array_equal(few, every[:20])
    assert set(Nms(classes=(2,))(rows)[:, 5]) == {2.0}
    rows[:5, 0], rows[5:10, 4] = np.nan, np.nan
    assert np.isfinite(Nms()(rows)).all()
    assert Nms()(rows[:0]).shape == (0, 6)
    with pytest.raises(OptionError, match=r"must be 0\.\.1"):
        Nms(iou=45)
