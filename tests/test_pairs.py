# SPDX-License-Identifier: Apache-2.0
"""Pairs: what steps state of themselves is true of the methods behind them, one after the other and in one training.

Every ordered pair of changes that the statements allow must work, keep what it says it keeps, and be saved; a pair that
does not must be refused by the statements. Every two methods of training must go together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, IMAGES, PLAIN, SIZE, Family, Images
from torch import nn

from featherweight import artifact, recipe
from featherweight.anatomy import blocks_of
from featherweight.composition import (
    CODEBOOK,
    FACTS,
    FLOATS,
    MASKS,
    MEASURED,
    MODEL,
    NORMS,
    TEACHER,
    Fact,
    WrongOrder,
    walk,
)
from featherweight.errors import OptionError
from featherweight.methods import (
    deit,
    dynamicvit,
    fuse,
    grouping,
    lowrank,
    prune,
    quantize,
    recursion,
    structured,
    tome,
)
from featherweight.methods.attention_transfer import AttentionTransfer
from featherweight.methods.channels import prune_channels
from featherweight.methods.dist import DIST
from featherweight.methods.distill import Distill
from featherweight.methods.dkd import DKD
from featherweight.methods.drop_blocks import drop_blocks
from featherweight.methods.fitnets import FitNets
from featherweight.methods.half import to_half
from featherweight.methods.masks import KeepMasks, masks_of
from featherweight.methods.mean_teacher import MeanTeacher
from featherweight.methods.mutual import Mutual
from featherweight.methods.one import ONE
from featherweight.methods.repair import repair
from featherweight.methods.rkd import RKD
from featherweight.methods.share import share
from featherweight.methods.similarity import SimilarityPreserving
from featherweight.methods.sparsify import sparsify
from featherweight.methods.swa import SWA
from featherweight.methods.weight_only import weight_only
from featherweight.steps import STEPS
from featherweight.surgery import all_of, apply, edits_of
from featherweight.train import Method, fit

OURS = FAMILIES["ours"]
DATA = list(Images().epoch(0))
Change = Callable[[nn.Module, Family], nn.Module]
# step -> its options here, and what it does to the structure
EVERYWHERE: dict[str, tuple[dict[str, Any], Change]] = {
    "sparsify": ({}, lambda m, f: sparsify(m, sparsity=0.5)),
    "lowrank": ({}, lambda m, f: lowrank.factorize(m, keep=0.5, ranks="share")),
    "structured": ({}, lambda m, f: structured.structure(m, keep=0.5)),
    "share": ({}, lambda m, f: share(m, bits=3)),
    "repair": ({}, lambda m, f: repair(m, m, DATA, f.task)),
    "quantize": ({}, lambda m, f: quantize.quantize(m, DATA, f.task)),
    "quantize_weights": ({}, lambda m, f: weight_only(m, weights="int8", ends=None)),
    "half": ({}, lambda m, f: to_half(m)),
}
OF_CONVS: dict[str, tuple[dict[str, Any], Change]] = {
    **EVERYWHERE,
    "prune_channels": ({}, lambda m, f: prune_channels(m, IMAGES, ratio=0.5, round_to=1)),
    "fuse": ({}, lambda m, f: fuse.fuse(m, IMAGES)),
}
OF_TRANSFORMERS: dict[str, tuple[dict[str, Any], Change]] = {
    **EVERYWHERE,
    "prune": ({}, lambda m, f: prune.prune(m, mlp=0.5, heads=0.5)),
    "distill": ({"restart": False}, lambda m, f: apply(m, deit.plan(m))),
    "tokens": ({}, lambda m, f: apply(m, dynamicvit.plan(m, keep=0.7, at=[0]))),
    "merge": ({}, lambda m, f: apply(m, tome.plan(m, r=1))),
    "grouping": ({}, lambda m, f: grouping.group(m, groups=4)),
    "recursion": ({}, lambda m, f: recursion.share(m, loops=2, unique=len(blocks_of(m)))),
    "drop": ({}, lambda m, f: drop_blocks(m, count=1, batches=DATA, task=f.task)),
}
CASES = [
    *(("plain", a, b) for a, b in itertools.product(OF_CONVS, repeat=2)),
    *(("ours", a, b) for a, b in itertools.product(OF_TRANSFORMERS, repeat=2)),
]


def facts(*steps: tuple[str, dict[str, Any]], done: tuple[str, ...] = (), bare: bool = False) -> frozenset[Fact]:
    """What holds after these steps. WrongOrder where they do not go together."""
    whole = [("teacher", {}), ("load", {}), *((name, {**recipe.defaults(name), **given}) for name, given in steps)]
    return walk(whole, done=done, lasting=[NORMS] if bare else [])[-1].holds


def test_the_changes_are_steps() -> None:
    assert {*OF_CONVS, *OF_TRANSFORMERS} <= set(STEPS)


def holds(fact: Fact, model: nn.Module, after: frozenset[Fact]) -> bool:
    """Whether a fact that a step worked for is still true of the model."""
    if fact is MASKS and FLOATS in after:  # integers are trained no more
        masks = masks_of(model)
        return bool(masks) and sum(int((~m.bool()).sum()) for m in masks.values()) > 0
    if fact is CODEBOOK:
        return any(hasattr(module, "codes") for module in model.modules())
    return True


def family_of(name: str) -> tuple[Family, dict[str, tuple[dict[str, Any], Change]]]:
    return (PLAIN, OF_CONVS) if name == "plain" else (OURS, OF_TRANSFORMERS)


@pytest.mark.parametrize("name", ["plain", pytest.param("ours", marks=pytest.mark.slow)])
def test_what_the_statements_allow_works_and_keeps_what_it_says(name: str, tmp_path: Path) -> None:
    """Every ordered pair; the failures are told together."""
    family, table = family_of(name)
    wrong, refused = [], 0
    alone = {step: change(family.make(), family) for step, (_, change) in table.items()}
    for first, second in itertools.product(table, repeat=2):
        try:
            after = facts((first, table[first][0]), (second, table[second][0]), bare=name == "ours")
        except WrongOrder:
            refused += 1
            continue
        try:
            both = table[second][1](alone[first], family).eval()
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            wrong.append(f"{first}, {second}: allowed, but {type(error).__name__}: {error}")
            continue
        lost = [fact.says for fact in after if fact.made and not holds(fact, both, after)]
        if lost:
            wrong.append(f"{first}, {second}: {lost[0]} no more")
        if not family.logits(both).isfinite().all():
            wrong.append(f"{first}, {second}: answers that are not finite")
        if edits_of(both)[: len(edits_of(alone[first]))] != edits_of(alone[first]):
            wrong.append(f"{first}, {second}: the first's edits are not recorded any more")
        elif not saved(both, family, tmp_path):
            wrong.append(f"{first}, {second}: another model when it is loaded")
    assert not wrong, "\n".join(wrong)
    assert 0 < refused < len(table) ** 2 / 2


def saved(model: nn.Module, family: Family, folder: Path) -> bool:
    """Whether the model is the same after it was saved and loaded."""
    loaded = artifact.load(artifact.save(model, folder), base=family.build() if family is PLAIN else None)
    return torch.equal(family.logits(loaded), family.logits(model))


SHOWN = {fact for fact in FACTS.values() if fact not in (MODEL, TEACHER, MEASURED, NORMS)}


@pytest.mark.parametrize(("name", "step"), [(n, step) for n in ("plain", "ours") for step in family_of(n)[1]])
def test_a_saved_model_shows_what_the_step_states(name: str, step: str) -> None:
    """The facts read off its edits are those that the step says it leaves, but for what no edit can show."""
    family, table = family_of(name)
    options, change = table[step]
    kinds = tuple(edit.kind for edit in edits_of(change(family.make(), family)))
    assert facts(done=kinds) & SHOWN == facts((step, options)) & SHOWN


# Methods of training --------------------------------------------------------------------------------------------------
MIDDLE = {"features.3": "features.3"}
TRAINED: dict[str, Callable[[nn.Module], Method]] = {  # in an order in which all of them go together
    "attention transfer": lambda t: AttentionTransfer(t, MIDDLE),
    "similarity": lambda t: SimilarityPreserving(t, MIDDLE),
    "rkd": lambda t: RKD(t, MIDDLE),
    "fitnets": lambda t: FitNets(t, "features.0", "features.0", (3, SIZE, SIZE)),
    "masks": lambda t: KeepMasks(),
    "one": lambda t: ONE(("features.3", "classifier"), 2),
    "distill": lambda t: Distill(t, temperature=2.0),
    "dkd": lambda t: DKD(t),
    "dist": lambda t: DIST(t),
    "mutual": lambda t: Mutual((t,)),
    "mean teacher": lambda t: MeanTeacher(),
    "swa": lambda t: SWA(0.0, 0.0, DATA, PLAIN.task),
}


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(TRAINED, 2)))
def test_two_methods_train_together_and_leave_nothing_behind(first: str, second: str) -> None:
    teacher, student = PLAIN.make("teacher"), PLAIN.make()
    rows: list[dict[str, float]] = []
    told = lambda row: rows.append(row["terms"]) if row["event"] == "step" else None  # noqa: E731
    methods = [TRAINED[name](teacher) for name in (first, second)]
    found = fit(student, Images(size=2), PLAIN.task, methods=methods, log=told)
    assert list(found.state_dict()) == list(student.state_dict())
    assert repr(found) == repr(student.eval())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in found.modules())
    single = [set(terms_of(name, teacher)) for name in (first, second)]
    assert set(rows[0]) == single[0] | single[1]
    assert not all_of(found, nn.ModuleList)


_TERMS: dict[str, set[str]] = {}


def terms_of(name: str, teacher: nn.Module) -> set[str]:
    """The terms of a method's loss when it trains alone, in the first step."""
    if name not in _TERMS:
        rows: list[dict[str, float]] = []
        told = lambda row: rows.append(row["terms"]) if row["event"] == "step" else None  # noqa: E731
        fit(PLAIN.make(), Images(steps=1, size=2), PLAIN.task, methods=[TRAINED[name](teacher)], log=told)
        _TERMS[name] = set(rows[0])
    return _TERMS[name]


@pytest.mark.parametrize("average", ["swa", "mean teacher"])
def test_an_average_comes_after_what_changes_the_structure(average: str) -> None:
    teacher = PLAIN.make("teacher")
    with pytest.raises(OptionError, match="put it last"):
        fit(PLAIN.make(), Images(), PLAIN.task, methods=[TRAINED[average](teacher), TRAINED["one"](teacher)])
