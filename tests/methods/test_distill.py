# SPDX-License-Identifier: Apache-2.0
"""Distances to a teacher, alone and beside the task's own loss."""

from __future__ import annotations

import fill
import pytest
import tiny_training as tiny
import torch
from families import PLAIN, Images
from golden_files import agrees, golden
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.data import Augment
from featherweight.errors import OptionError
from featherweight.methods.deit import TokenDistill
from featherweight.methods.dist import DIST
from featherweight.methods.distill import (
    DISTANCES,
    Distill,
    classes_of,
    hard,
    kl,
    kl_per_class,
    mse,
    soft_cross_entropy,
)  # fmt: skip
from featherweight.methods.dkd import DKD
from featherweight.methods.dynamicvit import DynamicViT
from featherweight.models import zoo
from featherweight.tasks.classification import Classification
from featherweight.train import Pass, fit

STUDENT = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
TEACHER = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 4.0]])


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_kl_is_that_of_the_definition(temperature: float) -> None:
    p, q = (TEACHER / temperature).softmax(-1), (STUDENT / temperature).softmax(-1)
    wanted = (p * (p / q).log()).sum(-1).mean() * temperature**2
    torch.testing.assert_close(kl(STUDENT, TEACHER, temperature), wanted)
    torch.testing.assert_close(kl_per_class(STUDENT, TEACHER, temperature), wanted / 3)


def test_hard_and_mse() -> None:
    torch.testing.assert_close(hard(STUDENT, TEACHER), F.cross_entropy(STUDENT, torch.tensor([1, 2])))
    torch.testing.assert_close(mse(STUDENT, TEACHER), (STUDENT - TEACHER).square().mean())
    known = {"soft": kl, "soft_per_class": kl_per_class, "hard": hard, "mse": mse}
    assert {**known, "soft_cross_entropy": soft_cross_entropy} == DISTANCES


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_soft_cross_entropy_is_that_of_srets_authors(temperature: float) -> None:
    wanted = golden("functions_sret")["kd_loss"][f"T={temperature}"]
    student = (2 * fill.normal("kd:student", (4, 10))).requires_grad_()
    teacher = 3 * fill.normal("kd:teacher", (4, 10))
    loss = soft_cross_entropy(student, teacher, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(wanted["loss"], abs=1e-6)
    assert student.grad is not None
    agrees(student.grad, wanted["grad_student"], atol=1e-7)


@pytest.mark.parametrize("distance", [kl, kl_per_class, mse])
def test_nothing_to_learn_from_oneself(distance: object) -> None:
    assert float(distance(TEACHER, TEACHER, 3.0)) == pytest.approx(0.0, abs=1e-6)  # type: ignore[operator]


def test_logits_of_half_precision_are_compared_in_full() -> None:
    assert kl(STUDENT.bfloat16(), TEACHER.bfloat16()).dtype == torch.float32


def test_the_tasks_terms_shrink_and_others_do_not() -> None:
    teacher = nn.Identity()
    run = Pass(nn.Identity(), {}, STUDENT, lambda model: TEACHER, 0.0, ("box", "class"))
    terms = {"box": torch.tensor(1.0), "class": torch.tensor(2.0), "ratio": torch.tensor(3.0)}
    found = Distill(teacher, alpha=0.25, temperature=2.0).loss(terms, run)
    assert {name: float(t) for name, t in found.items() if name != "distill"} == {
        "box": 0.75,
        "class": 1.5,
        "ratio": 3.0,
    }
    torch.testing.assert_close(found["distill"], 0.25 * kl(STUDENT, TEACHER, 2.0))
    assert float(terms["box"]) == 1.0  # what was given is not changed


def test_a_student_comes_nearer_to_its_teacher() -> None:
    student, teacher, images = PLAIN.make(), PLAIN.make("teacher"), Images(steps=1)
    image = next(images.epoch(0))["image"]

    def distance(model: nn.Module) -> float:
        return float(kl(PLAIN.logits(model, image), PLAIN.logits(teacher, image)))

    learned = fit(student, images, PLAIN.task, methods=[Distill(teacher, alpha=1.0)], epochs=20)
    assert distance(learned) < 0.7 * distance(student)


def test_the_teacher_answers_in_evaluation_mode_without_gradient() -> None:
    modes: list[tuple[bool, bool]] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = PLAIN.make()

        def forward(self, x: Tensor) -> Tensor:
            modes.append((self.training, torch.is_grad_enabled()))
            return self.model(x)

    fit(PLAIN.make(), Images(steps=1), PLAIN.task, methods=[Distill(Watched().train())], epochs=1)
    assert modes == [(False, False)]


@pytest.mark.parametrize(
    ("options", "says"),
    [({"alpha": 1.1}, "alpha: 1.1 is not in 0..1"), ({"temperature": 0.0}, "temperature: 0.0 is not above 0")],
)
def test_mistakes_are_named_before_training(options: dict[str, float], says: str) -> None:
    with pytest.raises(OptionError) as error:
        Distill(nn.Identity(), **options)
    assert says in str(error.value)


def test_a_teacher_of_other_classes_is_refused_before_anything_is_learned() -> None:
    model = tiny.network(dropout=0.0, norm=False)
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, 7))
    rows: list[dict[str, object]] = []
    with pytest.raises(OptionError, match="teacher: answers with 7 classes, the student with 4"):
        fit(model, tiny.batches(8), Classification(4), methods=[Distill(other)], log=rows.append)
    assert not rows


class Half(nn.Module):
    """A classifier that does not say how many classes it knows."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.last = nn.Linear(192, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.flatten(1))


def test_every_method_refuses_such_a_teacher_when_it_prepares() -> None:
    vit = zoo.create("vit_digits", image_size=[16, 16], depth=2, num_classes=5)
    others = [
        zoo.create("resnet_digits", image_size=[16, 16], num_classes=7),
        nn.Sequential(nn.Flatten(), nn.Sequential(nn.ReLU(), nn.Linear(768, 7))),
        pytest.importorskip("timm").create_model("resnet10t", num_classes=7),
    ]
    for other in others:
        assert classes_of(other) == 7
        for method in (Distill(other), DKD(other), DIST(other), TokenDistill(other), DynamicViT(other, at=[1])):
            with pytest.raises(OptionError, match="teacher: answers with 7 classes, the student with 5"):
                method.prepare(vit)
    fit_to = zoo.create("resnet_digits", image_size=[16, 16], num_classes=5)
    assert classes_of(fit_to) == classes_of(vit) == 5
    assert Distill(fit_to).prepare(vit) is vit


def test_where_nobody_tells_the_first_loss_does() -> None:
    assert classes_of(Half(7)) is None
    model = tiny.network(dropout=0.0, norm=False)
    with pytest.raises(OptionError, match="teacher: answers with 7 classes, the student with 4"):
        fit(model, tiny.batches(8), Classification(4), methods=[Distill(Half(7))])


def test_the_teacher_sees_the_mixed_and_augmented_pictures_of_the_student() -> None:
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}

    class Looks(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name, self.head = name, nn.Linear(192, 4)

        def forward(self, x: Tensor) -> Tensor:
            seen[self.name].append(x.clone())
            return self.head(x.flatten(1))

    augment = Augment(crop_min=0.3, flip=0.5, mixup=0.8, cutmix=1.0, erase=0.5, num_classes=4)
    fit(Looks("student"), tiny.batches(12, augment=augment), Classification(4), methods=[Distill(Looks("teacher"))])
    assert len(seen["student"]) == 3
    assert all(torch.equal(a, b) for a, b in zip(seen["student"], seen["teacher"], strict=True))
    plain = torch.cat([batch["image"] for batch in tiny.batches(12).epoch(0)])
    assert not torch.equal(torch.cat(seen["teacher"]), plain), "the control: the pictures were changed"
