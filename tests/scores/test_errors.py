# SPDX-License-Identifier: Apache-2.0
"""Curves, confusion and kinds of errors: by hand where it can be, and AP50 equal to COCO's."""

import numpy as np
import pytest
from detection_sets import random_set

from featherweight.data.objects import Objects
from featherweight.scores import curves, errors

BOX = np.array([10.0, 10, 30, 30])


def truth_of(*labels, crowd=()):
    boxes = np.stack([BOX + np.array([100 * i, 0, 100 * i, 0]) for i in range(len(labels))])
    one = Objects.of(boxes, np.array(labels))
    return Objects(one.boxes, one.labels, np.isin(np.arange(len(labels)), crowd), one.areas)


def row(place, label, score, shift=0.0):
    return [*(BOX + np.array([100 * place + shift, 0, 100 * place + shift, 0])), score, label]


CASES = {  # what is detected beside one right detection of object 0 -> the kind of error
    "class": [row(1, 0, 0.8)],
    "place": [row(1, 1, 0.8, shift=10)],
    "both": [row(1, 0, 0.8, shift=10)],
    "double": [row(0, 0, 0.8, shift=1)],
    "background": [row(5, 0, 0.8)],
    "missed": [],
}


@pytest.mark.parametrize("kind", CASES)
def test_each_kind_of_error_is_told_and_mended(kind):
    truth = [truth_of(0, 1) if kind not in ("double", "background") else truth_of(0)]
    found = [np.array([row(0, 0, 0.9), *CASES[kind]])]
    told = errors.split(truth, found, classes=2)
    expected = {kind: 1} | ({"missed": 1} if kind == "both" else {})
    assert {name: n for name, n in told.counts.items() if n} == expected
    assert told.gains[kind] >= 0 and all(gain >= -1e-12 for gain in told.gains.values())
    if kind in ("class", "place", "missed"):
        assert told.ap50 == pytest.approx(0.5) and told.ap50 + told.gains[kind] == pytest.approx(1)


@pytest.mark.parametrize("seed", range(3))
def test_ap50_is_that_of_coco(seed):
    pytest.importorskip("faster_coco_eval")
    from featherweight.scores import coco

    truth, found = random_set(seed)
    scores = coco.evaluate(truth, found, classes=5)
    assert errors.split(truth, found, classes=5).ap50 == pytest.approx(scores.stats["AP50"], abs=1e-9)
    drawn = curves.curves(truth, found, classes=5)
    there = scores.boxes > 0
    assert np.allclose(drawn.precision_at_recall[there], scores.precision[0, :, :, 0, 2].T[there], atol=1e-9)
    assert np.isnan(drawn.f1[~there]).all() and 0 <= drawn.best_confidence <= 1


def test_curves_by_hand():
    truth = [truth_of(0, 0)]
    found = [np.array([row(0, 0, 0.9), row(7, 0, 0.5), row(1, 0, 0.3)])]
    drawn = curves.curves(truth, found, classes=1)
    at = {c: round(c * 100) for c in (0.0, 0.4, 0.8, 0.95)}
    assert [drawn.precision[0, i] for i in at.values()] == pytest.approx([2 / 3, 1 / 2, 1, 1])
    assert [drawn.recall[0, i] for i in at.values()] == pytest.approx([1, 0.5, 0.5, 0])
    assert drawn.best_confidence < 0.3


def test_confusion_counts_every_object_and_detection_once():
    truth = [truth_of(0, 1, 1, crowd=(2,))]
    found = [np.array([row(0, 1, 0.9), row(1, 1, 0.8), row(2, 1, 0.7), row(9, 0, 0.6), row(1, 0, 0.1)])]
    table = errors.confusion(truth, found, classes=2)
    assert table.tolist() == [[0, 1, 0], [0, 1, 0], [1, 0, 0]]
    nothing = errors.confusion(truth, [np.zeros((0, 6))], classes=2)
    assert nothing.tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 0]]
