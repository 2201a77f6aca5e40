# SPDX-License-Identifier: Apache-2.0
"""DIST's distances are correlations, whatever the scale of the answers."""

from __future__ import annotations

import fill
import numpy as np
import pytest
import torch
from torch import nn

from featherweight.errors import OptionError
from featherweight.methods.dist import DIST, relations, uncorrelated
from featherweight.train import Pass

A, B = fill.normal("dist a", (4, 6)), fill.normal("dist b", (4, 6))


def test_uncorrelated_is_one_minus_pearson() -> None:
    wanted = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(A.numpy(), B.numpy(), strict=True)])
    assert float(uncorrelated(A, B)) == pytest.approx(wanted, abs=1e-6)


def test_scale_and_shift_do_not_matter() -> None:
    assert float(uncorrelated(3 * A + 2, A)) == pytest.approx(0.0, abs=1e-6)
    assert float(uncorrelated(-A, A)) == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_by_picture_and_by_class(temperature: float) -> None:
    p, q = ((x / temperature).softmax(1) for x in (A, B))
    inter, intra = relations(A, B, temperature)
    torch.testing.assert_close(inter, uncorrelated(p, q) * temperature**2)
    torch.testing.assert_close(intra, uncorrelated(p.T, q.T) * temperature**2)


def test_one_picture_has_no_relation_to_others() -> None:
    student = A[:1].clone().requires_grad_()
    inter, intra = relations(student, B[:1])
    (inter + intra).backward()
    assert float(intra.detach()) == 0
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


def test_weights() -> None:
    run = Pass(nn.Identity(), {}, A, lambda model: B, 0.0, ("task",))
    found = DIST(nn.Identity(), beta=2.0, gamma=3.0).loss({"task": torch.tensor(1.0)}, run)
    inter, intra = relations(A, B)
    torch.testing.assert_close(found["dist_inter"], 2 * inter)
    torch.testing.assert_close(found["dist_intra"], 3 * intra)
    assert float(found["task"]) == 1.0


@pytest.mark.parametrize("wrong", [{"beta": -1.0}, {"gamma": float("nan")}, {"temperature": 0.0}])
def test_options_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        DIST(nn.Identity(), **wrong)
