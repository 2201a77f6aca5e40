# SPDX-License-Identifier: Apache-2.0
"""The two parts of a teacher's answer add up to Hinton's distance, and each is its definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featherweight.errors import OptionError
from featherweight.methods.distill import kl
from featherweight.methods.dkd import DKD, decoupled, label_of
from featherweight.train import Pass

STUDENT = torch.tensor([[2.0, 0.0, -1.0, 0.3], [0.5, 0.5, 3.0, -2.0]])
TEACHER = torch.tensor([[0.0, 1.0, 0.0, 0.7], [0.0, 0.0, 4.0, 1.0]])
LABEL = torch.tensor([1, 2])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_parts_make_hintons_distance(temperature: float) -> None:
    """KL = target + (1 - p_t) * non-target, sample by sample (equation 6 of the paper)."""
    for row in range(2):
        one, other, label = STUDENT[row : row + 1], TEACHER[row : row + 1], LABEL[row : row + 1]
        target, others = decoupled(one, other, label, temperature)
        sure = (other / temperature).softmax(1)[0, label[0]]
        torch.testing.assert_close(target + (1 - sure) * others, kl(one, other, temperature))


def test_the_parts_are_those_of_the_definition() -> None:
    target, others = decoupled(STUDENT, TEACHER, LABEL, 2.0)
    wanted = []
    for row in range(2):
        p, q = (TEACHER[row] / 2).softmax(0), (STUDENT[row] / 2).softmax(0)
        keep = [k for k in range(4) if k != int(LABEL[row])]
        p_rest, q_rest = p[keep] / p[keep].sum(), q[keep] / q[keep].sum()
        t, s = p[LABEL[row]], q[LABEL[row]]
        first = t * (t / s).log() + (1 - t) * ((1 - t) / (1 - s)).log()
        wanted.append(torch.stack([first, (p_rest * (p_rest / q_rest).log()).sum()]))
    mean = torch.stack(wanted).mean(0) * 4
    torch.testing.assert_close(torch.stack([target, others]), mean)


def test_nothing_to_learn_from_oneself() -> None:
    assert torch.stack(decoupled(TEACHER, TEACHER, LABEL)).abs().max() < 1e-6


def terms(method: DKD, progress: float) -> dict[str, float]:
    run = Pass(nn.Identity(), {"label": LABEL}, STUDENT, lambda model: TEACHER, progress, ("task",))
    return {name: float(term) for name, term in method.loss({"task": torch.tensor(1.0)}, run).items()}


def test_weights_and_warmup() -> None:
    whole = terms(DKD(nn.Identity(), alpha=1.0, beta=8.0, warmup=0.5), 0.5)
    half = terms(DKD(nn.Identity(), alpha=2.0, beta=8.0, warmup=0.5), 0.25)
    assert whole["task"] == half["task"] == 1.0
    assert half["dkd_target"] == pytest.approx(whole["dkd_target"])
    assert half["dkd_others"] == pytest.approx(whole["dkd_others"] / 2)
    assert set(terms(DKD(nn.Identity(), alpha=0.0, beta=0.0), 0.0).values()) == {1.0, 0.0}


def test_a_mixed_label_is_the_class_that_counts_most() -> None:
    soft = torch.tensor([[0.2, 0.8, 0.0], [0.6, 0.0, 0.4]])
    assert label_of({"soft_label": soft, "label": torch.tensor([2, 2])}).tolist() == [1, 0]


@pytest.mark.parametrize("wrong", [{"alpha": -1.0}, {"beta": float("nan")}, {"temperature": 0.0}, {"warmup": 2.0}])
def test_options_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        DKD(nn.Identity(), **wrong)
    two = Pass(nn.Identity(), {"label": LABEL * 0}, STUDENT[:, :2], lambda model: TEACHER[:, :2], 0.0, ("task",))
    with pytest.raises(OptionError, match="3 classes or more"):
        DKD(nn.Identity()).loss({}, two)
