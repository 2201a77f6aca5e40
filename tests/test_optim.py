# SPDX-License-Identifier: Apache-2.0
"""Parameter groups, frozen parameters, weight decay and schedules; every option is checked when it is written down."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from featherweight import optim
from featherweight.errors import OptionError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 6))
        self.body = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.predictors = nn.ModuleList([nn.Linear(6, 2)])


def groups_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, float]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


def test_what_decays() -> None:
    model = Net()
    found = groups_by_name(model, optim.adamw(weight_decay=0.1).build(model))
    assert {name for name, group in found.items() if group["weight_decay"] == 0.1} == {
        "body.weight",
        "predictors.0.weight",
    }
    assert len(found) == len(list(model.parameters()))


def test_rates_by_pattern_the_first_that_fits_counts() -> None:
    model = Net()
    optimizer = optim.adamw(1e-2, groups={"predictors.*": 1.0, "*": 0.01}).build(model)
    assert optim.set_lr(optimizer, 0.5, 0.3) == 5e-3
    found = groups_by_name(model, optimizer)
    assert found["predictors.0.weight"]["lr"] == 5e-3
    assert found["body.weight"]["lr"] == pytest.approx(5e-5)
    other = optim.adamw(1e-2, groups={"*": 0.01, "predictors.*": 1.0}).build(model)
    assert groups_by_name(model, other)["predictors.0.weight"]["lr"] == pytest.approx(1e-4)


def test_a_parameter_without_pattern_has_the_plain_rate() -> None:
    model = Net()
    found = groups_by_name(model, optim.sgd(0.1, groups={"body.*": 0.5}).build(model))
    assert (found["norm.weight"]["lr"], found["body.bias"]["lr"]) == (0.1, 0.05)


def test_frozen_for_good() -> None:
    model = Net()
    found = groups_by_name(model, optim.adamw(freeze=["body.*", "pos_embed"]).build(model))
    assert set(found) == {"norm.weight", "norm.bias", "predictors.0.weight", "predictors.0.bias"}
    assert not model.body.weight.requires_grad


def test_frozen_until() -> None:
    model = Net()
    optimizer = optim.adamw(1e-2, freeze={"body.*": 0.2}).build(model)
    found = groups_by_name(model, optimizer)
    for progress, rate in ((0.1, 0.0), (0.19, 0.0), (0.2, 1e-2), (1.0, 1e-2)):
        optim.set_lr(optimizer, 1.0, progress)
        assert (found["body.weight"]["lr"], found["norm.weight"]["lr"]) == (rate, 1e-2)


def test_cosine() -> None:
    schedule = optim.cosine(warmup=0.1, min_ratio=0.2)
    assert schedule(0.05) == pytest.approx(0.5)
    assert schedule(0.1) == 1.0
    assert schedule(0.55) == pytest.approx(0.6)
    assert schedule(1.0) == pytest.approx(0.2)
    assert optim.cosine(warmup=0, min_ratio=0)(0.25) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_constant() -> None:
    assert [optim.constant(warmup=0.5)(p) for p in (0.25, 0.5, 1.0)] == [0.5, 1.0, 1.0]
    assert optim.constant()(0.0) == 1.0


@pytest.mark.parametrize(
    ("where", "make"),
    [
        ("optimizer.lr", lambda: optim.adamw(0)),
        ("optimizer.lr", lambda: optim.sgd(math.nan)),
        ("optimizer.lr", lambda: optim.sgd("0.1")),  # type: ignore[arg-type]
        ("optimizer.weight_decay", lambda: optim.adamw(weight_decay=-1)),
        ("optimizer.betas", lambda: optim.adamw(betas=(0.9, 1.0))),
        ("optimizer.eps", lambda: optim.adamw(eps=0)),
        ("optimizer.momentum", lambda: optim.sgd(momentum=1)),
        ("optimizer.nesterov", lambda: optim.sgd(momentum=0, nesterov=True)),
        ("optimizer.groups['head']", lambda: optim.adamw(groups={"head": -1})),
        ("optimizer.freeze", lambda: optim.adamw(freeze="head.*")),
        ("optimizer.freeze['head']", lambda: optim.adamw(freeze={"head": 1.5})),
        ("schedule.warmup", lambda: optim.cosine(warmup=1)),
        ("schedule.min_ratio", lambda: optim.cosine(min_ratio=2)),
        ("schedule.warmup", lambda: optim.constant(warmup=True)),
        ("optimizer.groups", lambda: optim.adamw(groups={"haed.*": 2}).build(Net())),
        ("optimizer.freeze", lambda: optim.adamw(freeze=["haed.*"]).build(Net())),
        ("optimizer.freeze", lambda: optim.adamw(freeze=["*"]).build(Net())),
    ],
)
def test_a_wrong_option_is_named(where: str, make: object) -> None:
    with pytest.raises(OptionError) as error:
        make()  # type: ignore[operator]
    assert error.value.where == where
    assert "\n" not in str(error.value)
