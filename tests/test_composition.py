# SPDX-License-Identifier: Apache-2.0
"""Steps state what they need and undo; a wrong order is refused with the reason and the right one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from featherweight import artifact, composition, recipe
from featherweight.composition import (
    FACTS,
    FLOATS,
    LOOKS,
    MASKS,
    MODEL,
    NORMS,
    PLAIN,
    RANGES,
    TRAINS,
    Effect,
    WrongOrder,
    also,
    composes,
    walk,
)
from featherweight.errors import InputError
from featherweight.models import zoo
from featherweight.steps import STEPS
from featherweight.surgery import Edit, apply


@pytest.fixture(autouse=True)
def own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of this file's own, forgotten afterwards."""
    for table in ("_EFFECTS", "_OUTLINES", "_MARKS"):
        monkeypatch.setattr(composition, table, dict(getattr(composition, table)))

    @composes(also(LOOKS, gives=(MASKS,)), marks={"mask": Effect(gives=(MASKS,))})
    def sparsify() -> None: ...

    @composes(
        also(LOOKS, needs={PLAIN: "it takes them apart"}, breaks={MASKS: "factors are dense", PLAIN: "there are two"})
    )
    def factorize() -> None: ...

    @composes(also(LOOKS, breaks={NORMS: "channels are gone"}))
    def cut() -> None: ...

    @composes(also(LOOKS, gives=(NORMS,)))
    def repair() -> None: ...


def order(*names: str | tuple[str, dict[str, Any]], done: tuple[str, ...] = ()) -> list[composition.Moment]:
    steps = [(name, {}) if isinstance(name, str) else name for name in names]
    return walk(
        [(name, {**(recipe.defaults(name) if name in STEPS else {}), **given}) for name, given in steps], done=done
    )


WRONG = [
    (["sparsify"], "steps[0].sparsify", "there is no model yet: put a step `baseline`, `load`, `train` before it"),
    (
        ["load", "sparsify", "factorize"],
        "steps[2].factorize",
        "stay so of steps[1].sparsify (factors are dense); the right order is `factorize`, then `sparsify`",
    ),
    (
        ["load", "factorize", "prune"],
        "steps[2].prune",
        "which steps[1].factorize has not left: there are two; the right order is `prune`, then `factorize`",
    ),
    (
        ["load", "cut", "quantize"],
        "steps[2].quantize",
        "which steps[1].cut has not left: channels are gone; put `repair` or a training between them",
    ),
    (["load", "quantize", "train"], "steps[2].train", "floats (training moves them), which steps[1].quantize has not"),
    (["load", "quantize", "sparsify", "prune"], "steps[3].prune", "the right order is `prune`, then `quantize`"),
    (["load", "tokens", "grouping"], "steps[2].grouping", "some are dropped or merged; use one of the two"),
    (["load", "grouping", "tokens"], "steps[2].tokens", "steps[1].grouping has not left: it is in groups; use one of"),
    (["load", "tokens", "tokens"], "steps[2].tokens", "once is enough"),
    (["load", "tokens", "drop"], "steps[2].drop", "the right order is `drop`, then `tokens`"),
    (["load", "sparsify", "prune"], "steps[2].prune", "are solved anew); the right order is `prune`, then `sparsify`"),
]
RIGHT = [
    ["load", "factorize", "sparsify", "quantize", "export", "measure", "report"],
    ["load", "cut", "repair", "quantize"],
    ["load", "cut", "train", "quantize"],
    ["load", "prune", "sparsify", "sparsify"],
    ["teacher", "baseline", "distill", "tokens", "prune", "quantize", "export"],
]  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "where", "says"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_wrong_order_says_why_and_the_right_one(steps: list[str], where: str, says: str) -> None:
    with pytest.raises(WrongOrder) as caught:
        order(*steps)
    assert caught.value.where == where
    assert says in caught.value.text


@pytest.mark.parametrize("steps", RIGHT, ids=" ".join)
def test_a_right_order_is_let_through(steps: list[str]) -> None:
    assert [moment.step for moment in order(*steps)] == steps


def test_what_holds_is_known_after_each_step() -> None:
    load, sparsify, cut, repair, quantize = order("load", "sparsify", "cut", "repair", "quantize")
    assert MODEL in load.holds and MASKS not in load.holds
    assert MASKS in sparsify.holds
    assert cut.lost == (NORMS,)
    assert NORMS not in cut.holds
    assert NORMS in repair.holds
    assert {MASKS, RANGES} <= quantize.holds and FLOATS not in quantize.holds


def test_a_step_that_begins_anew_leaves_earlier_work_behind() -> None:
    steps = ["teacher", "baseline", "sparsify", ("distill", {"restart": True})]
    *_, last = order(*steps)
    assert last.dropped == (2,)
    assert MASKS not in last.holds
    *_, last = order(*steps[:3], ("distill", {"restart": False}))
    assert last.dropped == () and MASKS in last.holds


def test_a_saved_model_says_what_was_done_to_it() -> None:
    assert MASKS in order("load", done=("mask",))[0].holds
    with pytest.raises(
        WrongOrder, match=r"of the model it starts from .factors are dense.; start from a model that has not"
    ):
        order("load", "factorize", done=("mask",))
    with pytest.raises(WrongOrder, match="which the model it starts from has not left"):
        order("load", "train", done=("int8",))


def test_every_step_states_its_effect() -> None:
    for name in STEPS:
        assert isinstance(composition.effect_of(name, recipe.defaults(name)), Effect), name
    with pytest.raises(LookupError, match="does not state its effect"):
        composition.effect_of("nothing", {})


def test_a_statement_may_hang_on_the_options() -> None:
    assert NORMS not in composition.effect_of("merge", {"epochs": None}).gives
    assert NORMS in composition.effect_of("merge", {"epochs": 1}).gives


def test_facts_have_makers_that_exist() -> None:
    for name, fact in FACTS.items():
        assert set(fact.makers) <= set(STEPS), name
        assert fact.natural or fact.made or (fact.missing and fact.makers), name


def test_effects_are_joined() -> None:
    both = also(TRAINS, needs={PLAIN: "why"}, gives=(MASKS,), breaks={NORMS: ""})
    assert set(both.needs) == {MODEL, FLOATS, PLAIN}
    assert both.gives == (NORMS, MASKS)
    assert set(TRAINS.needs) == {MODEL, FLOATS}


def parsed(model: Any, steps: list[Any]) -> recipe.Recipe:
    plan: Mapping[str, Any] = {"model": model, "data": "digits", "steps": steps}
    return recipe.parse(plan, "my.yaml")


def test_a_recipe_in_a_wrong_order_is_refused_when_it_is_read(tmp_path: Path) -> None:
    shipped = {"name": "vit_digits", "weights": "shipped"}
    parsed(shipped, ["load", "prune", "quantize"])
    with pytest.raises(
        InputError, match=r"steps\[2\].prune: needs .* the right order is `prune`, then `quantize`"
    ) as caught:
        parsed(shipped, ["load", "quantize", "prune"])
    assert caught.value.reason == "wrong_order"
    model = zoo.create("vit_digits")
    folder = artifact.save(apply(model, [Edit("head", "int8")]), tmp_path / "model")
    with pytest.raises(InputError, match=r"steps\[1\].prune: needs .* which the model it starts from has not left"):
        parsed(str(folder), ["load", "prune"])
