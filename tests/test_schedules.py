# SPDX-License-Identifier: Apache-2.0
"""Gradients that add up, warm-ups that end, groups in the order of the recipe, ramped averages; exact resume."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featherweight import optim
from featherweight.errors import OptionError
from featherweight.method import Method
from featherweight.schedules import Ramp, Setting, Young, by_epoch, nominal_decay
from featherweight.tasks.classification import Classification
from featherweight.train import fit


class Drawn:
    """Batches of made-up pictures: `steps` of them an epoch."""

    def __init__(self, size: int, steps: int) -> None:
        self.size, self.steps_per_epoch = size, steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, Tensor]]:
        count = self.size * self.steps_per_epoch
        drawn = torch.Generator().manual_seed(epoch)
        images, labels = torch.randn(count, 3, 4, 4, generator=drawn), torch.randint(3, (count,), generator=drawn)
        for step in range(start, self.steps_per_epoch):
            part = slice(step * self.size, (step + 1) * self.size)
            yield {"image": images[part], "label": labels[part]}

    def shard(self, rank: int, world: int) -> Drawn:
        return self


class Every:
    """A schedule that adds up the gradients of so many steps."""

    def __init__(self, accumulate: int) -> None:
        self.accumulate = accumulate

    def __call__(self, progress: float) -> Setting:
        return Setting(1.0, accumulate=self.accumulate)


def net(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 4, 3))


def trained(size: int, steps: int, accumulate: int, **options: Any) -> nn.Module:
    known: dict[str, Any] = {"optimizer": optim.sgd(0.05, nesterov=True), "clip": None, **options}
    return fit(net(), Drawn(size, steps), Classification(3), schedule=Every(accumulate), **known)


def same(a: nn.Module, b: nn.Module, *, within: float = 0.0) -> None:
    for name, tensor in a.state_dict().items():
        torch.testing.assert_close(tensor, b.state_dict()[name], rtol=within, atol=within)


class Changes(Method):
    """Remembers the weights after each change."""

    def __init__(self) -> None:
        self.seen: list[nn.Module] = []

    def after_step(self, model: nn.Module, progress: float) -> None:
        self.seen.append(copy.deepcopy(model))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_of_small_batches_add_up_to_those_of_a_large_one(reduction: str) -> None:
    """A change is due at steps 0, 4, 8: the first of one small batch, the others of four."""

    class Whole(Drawn):
        steps_per_epoch = 3

        def __init__(self) -> None:
            super().__init__(2, 9)
            self.steps_per_epoch = 3

        def epoch(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, Tensor]]:
            parts = list(Drawn(2, 9).epoch(epoch))
            for group in (parts[:1], parts[1:5], parts[5:9]):
                yield {name: torch.cat([part[name] for part in group]) for name in group[0]}

    def first_of_one(progress: float) -> Setting:
        return Setting(1.0 if progress > 0.4 or reduction == "sum" else 0.25)  # one batch of the four that a mean is of

    options: dict[str, Any] = {
        "optimizer": optim.sgd(0.05, momentum=0.0, weight_decay=0.0),
        "clip": None,
        "reduction": reduction,
    }
    small, large = Changes(), Changes()
    fit(net(), Drawn(2, 9), Classification(3), schedule=Every(4), methods=[small], **options)
    fit(net(), Whole(), Classification(3), schedule=first_of_one, methods=[large], **options)
    assert len(small.seen) == len(large.seen) == 3
    for a, b in zip(small.seen, large.seen, strict=True):
        same(a, b, within=1e-6)


@pytest.mark.parametrize("stop_at", [2, 3, 5])
def test_a_run_stopped_between_two_changes_goes_on_to_the_same_bits(tmp_path: Path, stop_at: int) -> None:
    options: dict[str, Any] = {"ema": Ramp(0.9, 5), "reduction": "sum", "epochs": 2}
    whole = trained(2, 5, 3, **options)

    class Stopped(RuntimeError):
        pass

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == stop_at + 1 and row["event"] == "step":
            raise Stopped

    kept: dict[str, Any] = {"checkpoint": tmp_path, "checkpoint_every": 1}
    with pytest.raises(Stopped):
        trained(2, 5, 3, log=stop, **kept, **options)
    assert len(list(tmp_path.glob("step-*"))) > 0
    same(trained(2, 5, 3, **kept, **options), whole)


def test_the_groups_are_norms_then_weights_then_biases() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model.register_parameter("implicit", nn.Parameter(torch.zeros(1, 4, 1, 1)))
    built = optim.sgd(0.01, weight_decay=0.1, decay="yolo").build(model)
    named = {id(p): name for name, p in model.named_parameters()}
    names = [[named[id(p)] for p in group["params"]] for group in built.param_groups]
    assert names == [["implicit", "1.weight"], ["0.weight", "2.weight"], ["0.bias", "1.bias", "2.bias"]]
    assert [group["weight_decay"] for group in built.param_groups] == [0.0, 0.1, 0.0]
    optim.set_lr(built, Setting(0.5, 3.0, 0.85), 0.1)
    assert [group["lr"] for group in built.param_groups] == pytest.approx([0.005, 0.005, 0.03])
    assert {group["momentum"] for group in built.param_groups} == {0.85}


def test_the_warm_up_of_a_small_training_is_over_early() -> None:
    official = by_epoch(epochs=100, steps_per_epoch=13, batch_size=16, warmup_share=1.0)
    ours = by_epoch(epochs=100, steps_per_epoch=13, batch_size=16)
    assert official.warmup == 1000 and ours.warmup == 130
    assert by_epoch(epochs=300, steps_per_epoch=924, batch_size=128).warmup == 2772
    assert ours.at(0) == Setting(0.0, 10.0, 0.8, 1) and ours.at(131).accumulate == 4
    assert ours(1.0).factor == pytest.approx(ours.factor(99)) and ours.factor(99) == pytest.approx(0.1, abs=1e-3)
    assert by_epoch(epochs=1, steps_per_epoch=3, batch_size=8, linear=True)(1.0).factor == 1.0
    assert by_epoch(epochs=2, steps_per_epoch=3, batch_size=8, warmup_epochs=0).at(0).momentum == 0.937


def test_the_decay_of_weights_follows_the_batch_that_is_really_made() -> None:
    assert nominal_decay(5e-4, batch_size=16) == nominal_decay(5e-4, batch_size=64) == 5e-4
    assert nominal_decay(5e-4, batch_size=128) == 1e-3
    assert nominal_decay(5e-4, batch_size=24) == pytest.approx(5e-4 * 72 / 64)


def test_averages_begin_fast() -> None:
    assert Ramp()(1) == pytest.approx(4.998e-4, rel=1e-3) and Ramp()(10**6) == pytest.approx(0.9999)
    assert Young(0.999)(1) == 0.1 and Young(0.5)(1000) == 0.5


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"lr": 0.0}, {"final": 1.5}, {"momentum": float("nan")}])
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"schedule.{next(iter(wrong))}"):
        by_epoch(**{"epochs": 3, "steps_per_epoch": 3, "batch_size": 3, **wrong})
    with pytest.raises(OptionError):
        Ramp(1.0)
    with pytest.raises(OptionError, match="reduction"):
        trained(2, 2, 1, reduction="median")


def test_validation_is_due_after_so_many_epochs_and_at_the_end() -> None:
    rows: list[dict[str, Any]] = []
    trained(2, 1, 1, epochs=5, validate=lambda model: {"top1": 0.5}, validate_every=2, log=rows.append)
    assert [row["epoch"] for row in rows if "validation" in row] == [1, 3, 4]
