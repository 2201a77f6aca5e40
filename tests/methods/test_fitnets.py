# SPDX-License-Identifier: Apache-2.0
"""Hints first, for which nothing behind the guided layer moves; then the teacher's answer, less and less of it."""

from __future__ import annotations

import pytest
import torch
from families import CLASSES, PLAIN, SIZE, Images
from torch import Tensor, nn

from featherweight import optim
from featherweight.errors import OptionError
from featherweight.methods.features import seen
from featherweight.methods.fitnets import FitNets, Regressor
from featherweight.train import fit

IMAGE = (3, SIZE, SIZE)


class Wide(nn.Module):
    """A teacher whose maps are wider and smaller or larger than the student's."""

    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 12, 3, stride, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1))
        self.classifier = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def method(teacher: nn.Module | None = None, **options: float) -> FitNets:
    torch.manual_seed(5)
    return FitNets(teacher or Wide(), "features.2", "features.3", IMAGE, **options)


def logged(one: FitNets, epochs: int = 4) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    told = lambda row: rows.append(row["terms"]) if row["event"] == "step" else None  # noqa: E731
    fit(PLAIN.make(), Images(), PLAIN.task, methods=[one], epochs=epochs, log=told)
    return rows


def test_hints_come_first_and_then_the_answer_with_a_falling_weight() -> None:
    rows = logged(method(stage=0.5, start=4.0, end=1.0))
    assert len(rows) == 8
    assert all(row["hint"] > 0 and row["task"] == 0 and "distill" not in row for row in rows[:4])
    assert all(row["hint"] == 0 and row["task"] > 0 for row in rows[4:])
    doubled = logged(method(stage=0.5, start=8.0, end=2.0))
    assert doubled[4]["distill"] == pytest.approx(2 * rows[4]["distill"])
    constant = logged(method(stage=0.5, start=4.0, end=4.0))  # the first step of stage 2 has the weight `start`
    assert constant[4]["distill"] == pytest.approx(rows[4]["distill"])


def test_nothing_behind_the_guided_layer_moves_for_hints() -> None:
    student = PLAIN.make()
    plain = optim.adamw(weight_decay=0.0)
    led = fit(student, Images(), PLAIN.task, methods=[method(stage=0.99)], epochs=1, optimizer=plain)
    moved = {name for name, p in led.named_parameters() if not torch.equal(p, student.get_parameter(name))}
    assert moved == {"features.0.weight", "features.0.bias", "features.1.weight", "features.1.bias",
                     "features.3.weight", "features.3.bias"}  # fmt: skip


def test_the_student_is_led_to_the_hint() -> None:
    teacher, images = Wide(), Images(steps=1)
    image = next(images.epoch(0))["image"]
    one = method(teacher, stage=0.9)
    first, *_, last = (row["hint"] for row in logged(one, epochs=16) if row["hint"])
    assert last < 0.9 * first
    with torch.no_grad(), seen(teacher, ["features.2"]) as found:
        teacher(image)
    assert found["features.2"].shape == (4, 16, 4, 4)


def test_all_0_is_plain_training() -> None:
    plain = fit(PLAIN.make(), Images(), PLAIN.task).state_dict()
    led = fit(PLAIN.make(), Images(), PLAIN.task, methods=[method(stage=0.0, start=0.0, end=0.0)]).state_dict()
    assert list(plain) == list(led)
    assert all(torch.equal(plain[name], led[name]) for name in plain)


@pytest.mark.parametrize(
    ("guided", "hint", "kernel"),
    [((4, 8, 8), (6, 8, 8), (1, 1)), ((4, 8, 8), (6, 6, 5), (3, 4)), ((4, 4, 4), (6, 8, 8), (1, 1))],
)
def test_the_regressor_makes_the_hints_shape(
    guided: tuple[int, ...], hint: tuple[int, ...], kernel: tuple[int, int]
) -> None:
    made = Regressor(guided, hint, "x")
    assert isinstance(made.fit, nn.Conv2d)
    assert made.fit.kernel_size == kernel
    assert made.shaped(torch.zeros(2, *guided)).shape == (2, *hint)


def test_tokens_and_vectors_have_regressors_too() -> None:
    assert Regressor((5, 4), (5, 6), "x").shaped(torch.zeros(2, 5, 4)).shape == (2, 5, 6)
    assert Regressor((4,), (6,), "x").shaped(torch.zeros(2, 4)).shape == (2, 6)
    with pytest.raises(OptionError, match="has 5 tokens, the hint 6"):
        Regressor((5, 4), (6, 4), "x")
    with pytest.raises(OptionError, match="do not fit"):
        Regressor((5, 4), (6,), "x")


def test_options_are_checked() -> None:
    with pytest.raises(OptionError, match="stage: 1"):
        method(stage=1.0)
    with pytest.raises(OptionError, match="end: -1"):
        method(end=-1.0)
    with pytest.raises(LookupError, match=r"no module 'features.7'"):
        FitNets(Wide(), "features.7", "features.3", IMAGE)
    unused = PLAIN.make()
    unused.spare = nn.Linear(2, 2)
    with pytest.raises(OptionError, match="does not run in Plain"):
        FitNets(Wide(), "features.2", "spare", IMAGE).prepare(unused)
