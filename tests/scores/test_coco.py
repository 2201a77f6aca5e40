# SPDX-License-Identifier: Apache-2.0
"""COCO's numbers: equal to pycocotools on sets with crowds, ties, more than 100 detections and empty classes."""

import contextlib
import io

import numpy as np
import pytest
from detection_sets import random_set

from featherweight.errors import Diverged, OptionError

pytest.importorskip("faster_coco_eval")
from featherweight.data.objects import Objects
from featherweight.scores import coco


def official(truth, found, classes):
    """The same by pycocotools."""
    tools = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()) as said:
        theirs, ours = tools.COCO(), tools.COCO()
        theirs.dataset = coco._dataset(truth, classes)
        ours.dataset = {**theirs.dataset, "annotations": coco._results(found)}
        theirs.createIndex(), ours.createIndex()
        evaluator = COCOeval(theirs, ours, "bbox")
        evaluator.evaluate(), evaluator.accumulate()
        said.truncate(0), said.seek(0)
        evaluator.summarize()
    return evaluator.stats, said.getvalue()


@pytest.mark.parametrize("seed", range(4))
def test_the_twelve_numbers_are_those_of_pycocotools(seed):
    truth, found = random_set(seed)
    scores = coco.evaluate(truth, found, classes=5)
    stats, text = official(truth, found, 5)
    assert tuple(scores.stats) == coco.NAMES
    assert np.abs(np.array(list(scores.stats.values())) - stats).max() < 1e-9
    assert scores.text() == text.rstrip("\n")
    assert scores.per_class()["4"]["AP"] == -1 and scores.per_class()["4"]["boxes"] == 0


def test_nothing_found_and_nothing_there():
    truth, found = random_set(0)
    nothing = [np.zeros((0, 6))] * len(truth)
    empty = [Objects.of(np.zeros((0, 4)), np.zeros(0))] * len(truth)
    assert set(coco.evaluate(truth, nothing, classes=5).stats.values()) == {0.0}
    assert set(coco.evaluate(empty, found, classes=5).stats.values()) == {-1.0}
    assert set(coco.evaluate(empty, nothing, classes=5).stats.values()) == {-1.0}


def test_what_cannot_be_scored_is_refused():
    truth, found = random_set(0)
    with pytest.raises(OptionError, match="7 pictures"):
        coco.evaluate(truth, found[1:], classes=5)
    with pytest.raises(OptionError, match="class"):
        coco.evaluate(truth, found, classes=3)
    found[1][0, 4] = np.nan
    with pytest.raises(Diverged, match="picture 1"):
        coco.evaluate(truth, found, classes=5)
    with pytest.raises(OptionError, match="no pictures"):
        coco.evaluate([], [], classes=5)


def test_two_classes_of_one_name_keep_a_row_each():
    truth, found = random_set(1)
    names = coco.evaluate(truth, found, classes=("cell", "cell", "a", "b", "c")).per_class()
    assert list(names) == ["cell", "cell (2)", "a", "b", "c"]
