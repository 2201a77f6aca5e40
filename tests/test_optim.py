# SPDX-License-Identifier: Apache-2.0
"""Parameter groups, frozen parameters, weight decay and schedules; every option is checked when it is written down."""

from __future__ import annotations

import math
import re

import pytest
import torch
from golden_files import golden
from torch import nn

from featherweight import optim
from featherweight.errors import OptionError
from featherweight.models import zoo


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
        ("optimizer.decay", lambda: optim.adamw(decay="offical")),
        ("schedule.warmup_epochs", lambda: optim.official(1e-3, 3)),
        ("schedule.min_lr", lambda: optim.official(1e-3, 30, min_lr=0)),
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


DEIT = golden("functions_deit")["lr_schedule"]


def test_the_official_schedule_is_deits() -> None:
    lr = optim.scaled_lr(5e-4, batch_size=256, world=4)
    schedule = optim.official(lr, 300)
    for epoch, wanted in zip(DEIT["epoch"], DEIT["lr"], strict=True):
        for step in (0, 1, 6, 7):  # all steps of an epoch alike, also the last, after which it is over
            assert lr * schedule((8 * epoch + step + 1) / (8 * 300)) == pytest.approx(wanted, rel=1e-12)


def test_the_official_schedule_of_fine_tuning_is_deits() -> None:
    wanted = DEIT["finetune_384"]
    schedule = optim.official(wanted["lr"], wanted["epochs"], min_lr=wanted["min_lr"])
    found = [wanted["lr"] * schedule((epoch + 1) / wanted["epochs"]) for epoch in range(wanted["epochs"])]
    assert found[:8] == pytest.approx(wanted["first8"], rel=1e-12)
    assert found[-1] == pytest.approx(wanted["last"])


def test_ours_does_not_lag() -> None:
    """The first epoch already rises, and the last step of the warm-up has the whole rate."""
    ours, theirs = optim.cosine(warmup=5 / 300), optim.official(1e-3, 300)
    assert ours(5 / 300) == 1.0
    assert theirs(5 / 300) < 0.7
    assert ours(1 / 300) > 0.1 > theirs(1 / 300)


@pytest.mark.parametrize("decay", ["official", "matrices"])
def test_what_decays_is_what_deit_decays(decay: str) -> None:
    wanted = golden("functions_deit")["weight_decay_groups"]
    config = {"image_size": [32, 32], "patch_size": 16, "embed_dim": 8, "num_heads": 2, "depth": 2, "distilled": True}
    model = zoo.build({"name": "vit", "config": config})
    found: dict[float, set[str]] = {0.0: set(), 0.05: set()}
    for name, group in groups_by_name(model, optim.adamw(decay=decay).build(model)).items():
        found[group["weight_decay"]].add(re.sub(r"\.\d+\.", ".*.", name))
    moved = set() if decay == "official" else {"dist_token"}  # the later rule spares it
    assert found[0.05] == set(wanted["decay"]) - moved
    assert found[0.0] == set(wanted["no_decay"]) | moved
