# SPDX-License-Identifier: Apache-2.0
"""What models let vary: only what they can have, and every choice is a recipe that can be checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny_runs
import torch
from torch import nn

from featherweight import counting
from featherweight import recipe as recipes
from featherweight.errors import OptionError
from featherweight.explain import Outline
from featherweight.models import zoo
from featherweight.search.forecast import amounts
from featherweight.search.knobs import ASKED, _with_own, space_of
from featherweight.search.space import Space

VIT, NET = ("vit_digits", tiny_runs.CONFIG), ("resnet_digits", {"image_size": [24, 24], "widths": [8, 16, 16]})


def space(name: str, config: dict[str, Any], *, full: int = 64, small: bool = False) -> tuple[Space, Outline]:
    torch.manual_seed(0)
    model = zoo.create(name, num_classes=10, **config).eval()
    given = {"model": {"name": name, "config": config}, "data": tiny_runs.DIGITS, "steps": ["load"]}
    base = recipes.read("compress", given=given)
    preprocess = zoo.preprocess_of(name, model, config)
    start = Outline(model, (3, 24, 24))
    return space_of(base, start, preprocess=preprocess, images=64, full=full, small=small), start


def strongest(here: Space) -> dict[str, Any]:
    return here.point(**{knob.name: knob.choices[-1] for knob in here.knobs if knob.step not in ("student", "bits")})


def test_a_transformer() -> None:
    here, start = space(*VIT, small=True)
    knobs = {knob.name: knob for knob in here.knobs}
    first, last = ["student", "resolution", "blocks dropped", "tokens kept"], ["rank kept", "bits", "learning rate"]
    assert list(knobs) == [*first, "mlp cut", "heads cut", "width cut", *last]
    assert knobs["resolution"].choices == (24, 20, 16, 12)
    assert knobs["blocks dropped"].choices == (0, 1)  # of two blocks
    assert knobs["bits"].choices == ("float32", "int8", "float16", "int4")
    assert knobs["learning rate"].choices[0] == here.base.train.lr
    assert here.outline(start, here.point()).macs() == start.macs()
    everything = {**strongest(here), "bits": "int8"}
    small = here.outline(start, everything)
    assert small.macs() < start.macs() / 4
    names = [step.name for step in here.recipe(everything, 640, "x").steps]
    assert names == ["load", "resolution", "drop", "prune", "tokens", "prune", "lowrank", "quantize"]


def test_the_recipe_s_own_value_is_a_choice() -> None:
    kept, cut = ASKED[2:4]
    given = {"tokens": {"keep": 0.72}, "prune": {"mlp": 0.72, "heads": [0.1]}}
    assert _with_own(kept, given).choices[5:8] == (0.75, 0.72, 0.7)
    assert _with_own(cut, given).choices[-3:] == (0.7, 0.72, 0.8)
    assert _with_own(kept, {"tokens": {"keep": 0.1}}) == kept  # beyond what is searched
    assert _with_own(ASKED[4], given) == ASKED[4]


def test_a_convolutional_network() -> None:
    here, start = space(*NET)
    knobs = {knob.name: knob for knob in here.knobs}
    assert "channels cut" in knobs
    assert not {"tokens kept", "mlp cut", "heads cut", "width cut"} & set(knobs)
    assert "int4" not in knobs["bits"].choices
    assert here.outline(start, here.point(**{"channels cut": 0.5})).macs() < start.macs()
    assert [s.name for s in here.recipe(here.point(**{"channels cut": 0.5}), 64, "x").steps] == [
        "load",
        "prune_channels",
    ]


@pytest.mark.parametrize(("name", "config"), [VIT, NET])
def test_a_student_learns_from_the_start(name: str, config: dict[str, Any]) -> None:
    here, start = space(name, config)
    students = next(knob for knob in here.knobs if knob.step == "student").choices[1:]
    assert students
    for student in students:
        point = here.point(student=student)
        assert here.outline(start, point).macs() < start.macs()
        plan = here.recipe(point, 640, "x")
        assert [step.name for step in plan.steps] == ["load", "teacher", "distill"]
        assert plan.teacher is not None and plan.teacher.name == name
        assert plan.model is not None and plan.model.weights is None
        assert counting.parameters(zoo.create(plan.model.name, **plan.model.config)) < counting.parameters(start.model)
        assert plan.steps[-1].options["images"] * plan.steps[-1].options["epochs"] == 640
    assert all(knob.step != "student" for knob in space(name, config, full=32)[0].knobs)


def test_a_model_that_lets_nothing_vary_is_refused() -> None:
    here, start = space(*VIT)
    bare = replace(start, model=nn.Sequential(nn.Flatten(), nn.Softmax(dim=1)))
    preprocess = zoo.preprocess_of("vit_digits", start.model, tiny_runs.CONFIG)
    with pytest.raises(OptionError, match="Sequential has nothing that the search could vary"):
        space_of(here.base, bare, preprocess=preprocess, images=64, full=32, small=False)


def test_amounts_are_those_of_the_counter() -> None:
    model = zoo.create(*NET[:1], num_classes=10, **NET[1]).eval()
    example = torch.zeros(2, 3, 24, 24)
    found = amounts(model, example)
    assert found["conv"] + found["product"] == counting.macs(model, example)
    assert found["product"] == 16 * 10  # the classifier
    assert found["rest"] > 8 * 24 * 24
    assert found == amounts(model, example[:1])
