# SPDX-License-Identifier: Apache-2.0
"""Repair: an intact model stays to the bit, statistics are really matched, and mistakes are named."""

from __future__ import annotations

import copy

import fill
import pytest
import torch
from families import FAMILIES, PLAIN, Family, everything, same
from torch import Tensor, nn

from featherweight.errors import Diverged, InputError, OptionError
from featherweight.methods.narrow import edits_for
from featherweight.methods.repair import Channels, repair, together
from featherweight.methods.share import share
from featherweight.modes import evaluating
from featherweight.surgery import apply
from featherweight.tasks.classification import Classification

TASK = Classification(5)


def batches(count: int = 24, size: int = 8) -> list[dict[str, Tensor]]:
    images = fill.normal("calibration", (count, 3, 16, 16))
    return [
        {"image": images[i : i + size], "label": torch.zeros(size, dtype=torch.long)} for i in range(0, count, size)
    ]


class Net(nn.Module):
    """Convolutions with batch norms, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def net() -> nn.Module:
    """With statistics that fit."""
    torch.manual_seed(0)
    model = Net()
    model.train()
    for _ in range(30):
        model(torch.cat([batch["image"] for batch in batches()]))
    return model.eval()


def damaged(model: nn.Module) -> nn.Module:
    """Each channel's weights scaled and moved by its own amount, as rounding does."""
    new = copy.deepcopy(model)
    with torch.no_grad():
        for number, module in enumerate(new.modules()):
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(fill.normal(f"factor {number}", (len(module.weight), 1, 1, 1)) * 0.2 + 1)
                module.weight.add_(fill.normal(f"shift {number}", (len(module.weight), 1, 1, 1)) * 0.05)
    return new


def answers(model: nn.Module) -> Tensor:
    with evaluating(model), torch.no_grad():
        return model(torch.cat([batch["image"] for batch in batches()]))


@pytest.mark.parametrize("name", [*FAMILIES, "plain"])
def test_an_intact_model_is_unchanged_to_the_bit(name: str) -> None:
    family: Family = {**FAMILIES, "plain": PLAIN}[name]
    model = family.make()
    new = repair(model, family.make(), batches(), family.task)
    assert same(everything(model), everything(new))


def test_channels_that_were_scaled_and_moved_are_fully_repaired() -> None:
    """A batch norm takes a factor and a shift of its input out again, so nothing may be left of the damage."""
    model = net()
    broken = copy.deepcopy(model)
    with torch.no_grad():
        for module in broken.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(torch.linspace(0.5, 2, len(module.weight)).reshape(-1, 1, 1, 1))
    off = (answers(broken) - answers(model)).norm()
    new = repair(broken, model, batches(), TASK)
    assert off > 0.1 * answers(model).norm()
    assert (answers(new) - answers(model)).norm() < 1e-3 * off


def test_statistics_of_every_channel_are_matched_and_answers_nearer() -> None:
    model = net()
    broken = damaged(model)
    before = everything(broken), everything(model)
    new = repair(broken, model, batches(), TASK)
    assert same(before[0], everything(broken))
    assert same(before[1], everything(model))
    error = {name: (answers(m) - answers(model)).norm() for name, m in {"broken": broken, "new": new}.items()}
    assert error["new"] < 0.5 * error["broken"]
    for place in (1, 4, 7):  # what leaves each batch norm
        images = torch.cat([batch["image"] for batch in batches()])
        wanted, found = (Channels.of(m.body[: place + 1](images), 1) for m in (model, new))
        torch.testing.assert_close(found.mean, wanted.mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.variance, wanted.variance, atol=1e-4, rtol=2e-3)


def test_replacing_statistics_would_not_leave_an_intact_model_alone() -> None:
    """The control: what `repair` is not."""
    model = net()
    model.body[1].running_mean.add_(0.2)  # statistics of a training set, not of these pictures
    naive = copy.deepcopy(model)
    for module in naive.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    naive.train()(torch.cat([batch["image"] for batch in batches()]))
    assert (answers(naive) - answers(model)).norm() > 0.01 * answers(model).norm()
    assert torch.equal(answers(repair(model, model, batches(), TASK)), answers(model))


@pytest.mark.parametrize("name", list(FAMILIES))
def test_layer_norms_and_biases_bring_a_shared_transformer_nearer(name: str) -> None:
    family = FAMILIES[name]
    model = family.make()
    broken = share(model, bits=3, scaled=True)
    new = repair(broken, model, batches(), family.task)
    images = torch.cat([batch["image"] for batch in batches()])
    wanted = family.logits(model, images)
    off = [(family.logits(m, images) - wanted).norm() for m in (broken, new)]
    assert off[1] < off[0]
    mean = [(family.logits(m, images).mean(0) - wanted.mean(0)).abs().max() for m in (broken, new)]
    assert mean[1] < 0.1 * mean[0] or mean[1] < 1e-3


def test_biases_stay_where_they_are_not_wanted() -> None:
    model = net()
    new = repair(damaged(model), model, batches(), TASK, bias=False)
    assert torch.equal(new.head.bias, model.head.bias)
    assert not torch.equal(repair(damaged(model), model, batches(), TASK).head.bias, model.head.bias)


def test_a_model_with_fewer_channels_is_compared_with_those_that_were_kept() -> None:
    model, kept = net(), [0, 2, 3, 7]
    small = copy.deepcopy(model)
    small.body[0].weight = nn.Parameter(model.body[0].weight[kept] * 1.5)
    small.body[1] = nn.BatchNorm2d(4).eval()
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(small.body[1], name).data.copy_(getattr(model.body[1], name)[kept])
    small.body[3] = nn.Conv2d(4, 8, 3, padding=1, bias=False)
    new = repair(small, model, batches(), TASK, kept={"body.1": kept})
    images = torch.cat([batch["image"] for batch in batches()])
    torch.testing.assert_close(new.body[:2](images), model.body[:2](images)[:, kept], atol=1e-4, rtol=1e-4)
    passed_over = repair(small, model, batches(), TASK)  # 4 channels are not 8, and nobody says which
    assert torch.equal(passed_over.body[1].running_mean, small.body[1].running_mean)
    assert not torch.equal(passed_over.body[4].running_mean, small.body[4].running_mean)


def test_channels_that_an_edit_cut_are_found_by_it() -> None:
    model, kept = net(), [0, 2, 3, 7]
    keep = {"body.0.weight": {0: kept}, "body.3.weight": {0: kept}}
    keep |= {f"body.1.{name}": {0: kept} for name in ("weight", "bias", "running_mean", "running_var")}
    keep |= {f"body.4.{name}": {0: kept} for name in ("weight", "bias", "running_mean", "running_var")}
    small = apply(model, edits_for({**keep, "body.6.weight": {1: kept}}))
    with torch.no_grad():
        small.body[0].weight.mul_(1.5)
    new = repair(small, model, batches(), TASK)
    images = torch.cat([batch["image"] for batch in batches()])
    torch.testing.assert_close(new.body[:2](images), model.body[:2](images)[:, kept], atol=1e-4, rtol=1e-4)
    wanted, found = (Channels.of(m.body[:8](images), 1) for m in (model, new))
    torch.testing.assert_close(found.variance, wanted.variance, atol=1e-3, rtol=1e-2)


def test_dead_channels_are_left_alone() -> None:
    model = net()
    with torch.no_grad():
        model.body[0].weight[3].zero_()
    broken = damaged(model)
    with torch.no_grad():
        broken.body[0].weight[3].zero_()
    new = repair(broken, model, batches(), TASK)
    assert all(t.isfinite().all() for t in new.state_dict().values())
    assert new.body[1].running_var[3] == broken.body[1].running_var[3]


def test_batches_are_put_together_up_to_so_many_pictures() -> None:
    whole = together(batches(), 13)
    assert torch.equal(whole["image"], fill.normal("calibration", (24, 3, 16, 16))[:13])
    assert len(whole["label"]) == 13


def test_mistakes_are_named() -> None:
    model = net()
    with pytest.raises(OptionError, match="at least 2"):
        repair(model, model, batches(), TASK, images=1)
    with pytest.raises(OptionError, match="hold 1 pictures"):
        repair(model, model, [{"image": torch.zeros(1, 3, 16, 16)}], TASK)
    with pytest.raises(OptionError, match="hold 0 pictures"):
        repair(model, model, [], TASK)
    with pytest.raises(OptionError, match="no norm and no bias at the same path"):
        repair(nn.Flatten(), nn.Flatten(), batches(), TASK)
    bad = [{"image": torch.full((4, 3, 16, 16), float("nan"))}]
    with pytest.raises(InputError, match="NaN or infinity"):
        repair(model, model, bad, TASK)
    broken = copy.deepcopy(model)
    broken.body[0].weight.data[0, 0, 0, 0] = float("inf")
    with pytest.raises(Diverged, match=r"body\.1"):
        repair(model, broken, batches(), TASK)
