# SPDX-License-Identifier: Apache-2.0
"""Anchors: the metric by hand, and that fitted ones are better than what they replace, the same for the same seed."""

import numpy as np
import pytest

from featherweight.data import anchors
from featherweight.errors import OptionError

TINY = np.array([[10, 13], [16, 30], [33, 23], [30, 61], [62, 45], [59, 119], [116, 90], [156, 198], [373, 326]], float)


def test_the_metric_by_hand():
    fit = anchors.fit_of(np.array([[10.0, 10], [100, 10], [1, 1]]), np.array([[10.0, 10], [20, 10]]))
    # best ratios 1, 0.2, 0.1; usable: both, none, none
    assert fit.best_possible_recall == pytest.approx(1 / 3) and fit.anchors_above_threshold == pytest.approx(2 / 3)
    assert fit.fitness == pytest.approx(1 / 3) and not fit.enough
    assert anchors.fit_of(TINY, TINY).enough


@pytest.mark.parametrize("seed", [0, 1])
def test_fitted_anchors_are_better_and_deterministic(seed):
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.normal(np.log(9), 0.3, (300, 2)))  # small cells: the usual anchors are far too large
    before = anchors.fit_of(sides, TINY)
    found = anchors.fitted(sides, generations=200, seed=seed)
    after = anchors.fit_of(sides, found)
    assert not before.enough or after.fitness > before.fitness
    assert after.enough and after.fitness > before.fitness + 0.1
    assert np.array_equal(found, anchors.fitted(sides, generations=200, seed=seed))
    assert anchors.fit_of(sides, anchors.fitted(sides, generations=0, seed=seed)).fitness <= after.fitness
    shaped = anchors.levels(found, 3)
    assert shaped.shape == (3, 3, 2) and (np.diff(shaped.reshape(-1, 2).prod(1)) >= 0).all()


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(OptionError, match="9 anchors"):
        anchors.fitted(np.ones((50, 2)) * 20)
    with pytest.raises(OptionError, match="no boxes"):
        anchors.fit_of(np.zeros((0, 2)), TINY)
    with pytest.raises(OptionError, match="evenly"):
        anchors.levels(TINY, 4)
