# SPDX-License-Identifier: Apache-2.0
"""Auxiliary heads and a larger detector's teaching: there while a detector trains, gone when it is finished."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import featherweight
from featherweight import optim
from featherweight.errors import OptionError
from featherweight.method import Method, Pass, answer
from featherweight.methods.aux_heads import AuxHeads
from featherweight.methods.distill_detection import DistillDetection
from featherweight.surgery import Aside
from featherweight.tasks.detection import Detection
from featherweight.train import fit

BATCH = {
    "image": torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
    "targets": torch.tensor([[0, 1, 0.5, 0.5, 0.4, 0.5], [1, 0, 0.3, 0.6, 0.3, 0.3], [1, 2, 0.7, 0.3, 0.2, 0.3]]),
}


class Small(nn.Module):
    """A detector of a few layers, with the interface that the task and the methods ask for."""

    def __init__(self, width: int = 8, strides: tuple[int, ...] = (8, 16), classes: int = 3, anchors: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 8, 8), nn.BatchNorm2d(width), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(width, width, 2, 2), nn.BatchNorm2d(width), nn.ReLU())
        self.head = Head(width, strides, classes, anchors)
        self.aside = Aside()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        fine = self.stem(images)
        maps = [fine, self.down(fine)]
        return self.head([maps[{8: 0, 16: 1}[stride]] for stride in self.head.strides])  # type: ignore[no-any-return]


class Head(nn.Module):
    def __init__(self, width: int, strides: tuple[int, ...], classes: int, anchors: int) -> None:
        super().__init__()
        self.strides, self.num_classes = strides, classes
        sizes = torch.arange(1.0, 1 + 2 * anchors * len(strides)).view(len(strides), anchors, 2)
        self.register_buffer("anchors", 1 + sizes / 4)
        self.m = nn.ModuleList(nn.Conv2d(width, anchors * (5 + classes), 1) for _ in strides)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        return tuple(
            conv(x).unflatten(1, (-1, 5 + self.num_classes)).permute(0, 1, 3, 4, 2)
            for conv, x in zip(self.m, maps, strict=True)
        )


class Twice:
    steps_per_epoch = 2

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, Tensor]]:
        for _ in range(start, 2):
            yield BATCH

    def shard(self, rank: int, world: int) -> Twice:
        return self


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def small(**options: Any) -> Small:
    torch.manual_seed(0)
    return Small(**options)


def run_of(model: nn.Module, task: Detection, output: Any) -> Pass:
    return Pass(model, BATCH, output, lambda other: answer(task, BATCH, model, other), 0.0, ("box", "obj", "cls"))


METHODS = {"aux": AuxHeads(at=("stem", "down")), "distill": DistillDetection(small(width=16))}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_leaves_the_model_as_it_found_it(name: str) -> None:
    method, model = METHODS[name], small()
    before = copy.deepcopy(model.state_dict())
    prepared = method.prepare(model)
    assert hooks(model) == 0 and hooks(prepared) > 0 and prepared.state_dict().keys() > before.keys()
    done = method.finish(copy.deepcopy(prepared))
    assert hooks(done) == 0 and done.state_dict().keys() == before.keys()
    assert all(torch.equal(t, done.state_dict()[k]) for k, t in before.items())
    for a, b in zip(model.eval()(BATCH["image"]), prepared.eval()(BATCH["image"]), strict=True):
        assert torch.equal(a, b)


def test_auxiliary_heads_are_trained_and_only_while_training() -> None:
    task, rows = Detection(3), list[dict[str, Any]]()
    model = AuxHeads(at=("stem", "down")).prepare(small()).train()
    output = task.forward(model, BATCH)
    assert [tuple(m.shape) for m in output.aux] == [tuple(m.shape) for m in output]
    terms = task.loss(output, BATCH)
    assert set(terms) == {"box", "obj", "cls", "aux_box", "aux_obj", "aux_cls"}
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert task.forward(model.eval(), BATCH).aux == ()
    trained = fit(
        small(), Twice(), task, methods=[AuxHeads(at=("stem", "down"))], optimizer=optim.sgd(1e-3), log=rows.append
    )
    assert trained.state_dict().keys() == small().state_dict().keys() and {"aux_obj"} <= rows[0]["terms"].keys()


def test_what_is_added_is_of_the_models_type() -> None:
    for method in (METHODS["aux"], METHODS["distill"]):
        found = {p.dtype for p in method.prepare(small().double()).parameters()}
        assert found == {torch.float64}


def test_the_heads_read_what_the_detector_says() -> None:
    model: Any = featherweight.create("yolov7", variant="yolov7_tiny", num_classes=3, form="training")
    task = Detection(3)
    prepared: Any = AuxHeads().prepare(model).train()
    output = task.forward(prepared, BATCH)
    assert [m.shape for m in output.aux] == [m.shape for m in output]
    assert AuxHeads().finish(prepared).state_dict().keys() == model.state_dict().keys()
    assert next(iter(prepared.aux_heads.parameters())).shape[1] == model.channels(model.graph.aux_sources[0])


PLACES = {
    "1 modules for 2 levels": ("stem",),
    "a map of stride 8 is wanted": ("down", "stem"),
    "does not say which": (),
}


@pytest.mark.parametrize("said", PLACES)
def test_places_that_do_not_fit_are_named(said: str) -> None:
    with pytest.raises(OptionError, match=said):
        AuxHeads(at=PLACES[said]).prepare(small())
    with pytest.raises(TypeError, match="no detector"):
        AuxHeads().prepare(nn.Linear(2, 2))


def test_a_teacher_teaches_answers_and_maps() -> None:
    task, teacher = Detection(3), small(width=16)
    method = DistillDetection(teacher, features=1.0)
    model = method.prepare(small()).train()
    output = task.forward(model, BATCH)
    terms = method.loss(task.loss(output, BATCH), run_of(model, task, output))
    new = {"distill_obj", "distill_box", "distill_cls", "distill_maps"}
    assert new <= terms.keys() and all(float(terms[name].detach()) > 0 for name in new)
    torch.stack([terms[name] for name in new]).sum().backward()
    assert all(p.grad is not None for p in model.parameters()) and all(p.grad is None for p in teacher.parameters())
    assert hooks(teacher) == 0
    mine = task.forward(copy.deepcopy(teacher).eval(), BATCH)
    same = DistillDetection(teacher, features=0).loss({}, run_of(model, task, mine))
    assert float(same["distill_box"].detach()) < 1e-6 < float(terms["distill_box"].detach())


def test_learning_from_a_teacher_comes_nearer_to_it() -> None:
    task, teacher = Detection(3), small(width=16)
    with torch.no_grad():
        for conv in teacher.head.m:
            nn.init.normal_(conv.bias, std=3.0)  # type: ignore[arg-type]
    rows: list[dict[str, Any]] = []
    options: dict[str, Any] = {"optimizer": optim.adamw(2e-2), "epochs": 12, "log": rows.append}
    fit(small(), Twice(), task, methods=[DistillDetection(teacher, features=0.5)], **options)
    means = [row["terms"] for row in rows if row["event"] == "epoch"]
    for name in ("distill_obj", "distill_box", "distill_cls", "distill_maps"):
        assert means[-1][name] < 0.9 * means[0][name], name


def test_nothing_of_the_teacher_is_plain_training() -> None:
    method = DistillDetection(small(width=16), outputs=0.0, features=0.0)
    terms = {"box": torch.ones(())}
    model = small()
    assert method.prepare(model) is model and method.loss(terms, None) is terms  # type: ignore[arg-type]
    assert isinstance(method, Method) and method.finish(model) is model


@pytest.mark.parametrize(
    ("options", "said"), [({"classes": 4}, "4 classes"), ({"anchors": 3}, "3 anchors"), ({"strides": (16,)}, "")]
)
def test_a_teacher_that_does_not_fit_is_named(options: dict[str, Any], said: str) -> None:
    if said:
        with pytest.raises(OptionError, match=said):
            DistillDetection(small(**options)).prepare(small())
    else:
        assert DistillDetection(small(**options)).prepare(small()) is not None
    with pytest.raises(OptionError, match="none in common"):
        DistillDetection(small(strides=(8,))).prepare(small(strides=(16,)))
    with pytest.raises(OptionError, match="features"):
        DistillDetection(small(), features=-1.0)
