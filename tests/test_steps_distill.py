# SPDX-License-Identifier: Apache-2.0
"""Recipes that teach in every way, and that average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch
from torch import nn

from featherweight import artifact, runs
from featherweight.errors import InputError, OptionError
from featherweight.methods.dist import DIST
from featherweight.methods.distill import Distill
from featherweight.methods.dkd import DKD
from featherweight.surgery import edits_of
from featherweight.work import Work

SMALL = {"name": "resnet_digits", "config": {"image_size": [24, 24], "widths": [4, 4, 8]}}
DATA = {**tiny_runs.DIGITS, "n_train": 32, "n_val": 16, "n_test": 8}
PAIRS = {"pairs": {"layer2": "layer2", "layer3": "layer3"}}


def carry_out(project: Path, told: Any = None, **changes: Any) -> Work:
    return runs.run(tiny_runs.plan(**{"data": DATA, **changes}), project=project, progress=told)


def same(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


def test_a_teacher_teaches_in_every_way(tmp_path: Path) -> None:
    steps = [
        "teacher", "baseline", {"fitnets": {"hint": "layer2", "guided": "layer2", "stage": 0.4}},
        {"attention_transfer": PAIRS}, {"similarity": PAIRS}, {"rkd": PAIRS}, {"dkd": {"restart": False}}, "dist",
    ]  # fmt: skip
    told = tiny_runs.Told()
    work = carry_out(tmp_path, told, steps=steps, model=SMALL)
    terms: dict[str, set[str]] = {}
    for row in told.of("step"):
        if "terms" in row:
            terms.setdefault(row["step_name"], set()).update(row["terms"])
    assert terms["02-fitnets"] == {"task", "hint", "distill"}
    assert terms["03-attention_transfer"] == {"task", "attentiontransfer"}
    assert terms["04-similarity"] == {"task", "similaritypreserving"}
    assert terms["05-rkd"] == {"task", "rkd"}
    assert terms["06-dkd"] == {"task", "dkd_target", "dkd_others"}
    assert terms["07-dist"] == terms["06-dkd"] | {"dist_inter", "dist_intra"}  # what teaches by its answer goes on
    assert [type(method) for method in work.methods] == [DKD, DIST]
    assert work.origin is not None
    assert all(list(stage.model.state_dict()) == list(work.origin.state_dict()) for stage in work.stages)
    assert not any(edits_of(stage.model) for stage in work.stages)


def test_models_teach_each_other_and_are_averaged(tmp_path: Path) -> None:
    steps = [
        "baseline", {"one": {"at": ["layer3", "fc"], "count": 2, "restart": False}}, "mutual", "mean_teacher",
        {"swa": {"epochs": 1, "samples": 16}}, {"soup": {"count": 2, "how": "uniform", "rates": [1e-4, 1e-3]}},
    ]  # fmt: skip
    told = tiny_runs.Told()
    work = carry_out(tmp_path, told, steps=steps, model=SMALL)
    assert [stage.title for stage in work.stages] == [
        "baseline", "ONE (2 branches)", "mutual learning (2)", "self-distillation", "SWA", "soup (uniform, 2)",
    ]  # fmt: skip
    assert work.stages[2].model is not work.stages[1].model
    members = [artifact.load(tmp_path / "tiny" / "steps" / "05-soup" / f"member-{number}") for number in (0, 1)]
    weight = torch.stack([member.state_dict()["fc.weight"] for member in members]).mean(0)
    torch.testing.assert_close(work.stages[-1].model.state_dict()["fc.weight"], weight)
    assert not same(*members)
    again = carry_out(tmp_path, steps=steps, model=SMALL)  # nothing is trained again
    assert same(again.stages[-1].model, work.stages[-1].model)


def test_transformers_learn_from_transformers(tmp_path: Path) -> None:
    teacher = {"name": "vit_digits", "config": {**tiny_runs.CONFIG, "depth": 3}}
    steps = ["teacher", "baseline", {"tinybert": {"stage": None}}, "minilm", {"soup": {"count": 2}}]
    told = tiny_runs.Told()
    carry_out(tmp_path, told, steps=steps, teacher=teacher)
    terms = {row["step_name"]: set(row["terms"]) for row in told.of("step") if "terms" in row}
    assert terms["02-tinybert"] == {"task", "distill", "hidden", "embedding", "attention"}
    assert terms["03-minilm"] == {"task", "relations"}
    assert any("in the soup are" in row["text"] for row in told.of("note"))


def test_an_ensemble_may_stay(tmp_path: Path) -> None:
    steps = ["baseline", {"one": {"at": ["layer3", "fc"], "count": 2, "deploy": "ensemble"}}]
    work = carry_out(tmp_path, steps=steps, model=SMALL)
    assert work.model is not None
    assert [edit.kind for edit in edits_of(artifact.load(tmp_path / "tiny" / "model"))] == ["branches"]


@pytest.mark.parametrize(
    ("steps", "error", "says"),
    [
        (["baseline", "dkd"], InputError, r"steps\[1\].dkd: there is no teacher yet: put a step `teacher` before it"),
        (["teacher", "baseline", "attention_transfer"], InputError, "needs 'pairs'"),
        (["teacher", "baseline", {"one": {"at": []}}], InputError, "at least one"),
        (["teacher", "baseline", {"tokens": {"at": [1]}}, {"minilm": {"restart": False}}], InputError, "a token for"),
        (["teacher", "baseline", {"similarity": {"pairs": {"layer9": "layer2"}}}], OptionError, "no module 'layer9'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(tmp_path: Path, steps: list[Any], error: type[Exception], says: str) -> None:
    vit = any(isinstance(step, dict) and "tokens" in step for step in steps)
    with pytest.raises(error, match=says):
        carry_out(tmp_path, steps=steps, **({} if vit else {"model": SMALL}))


def test_hinton_stays_what_it_was(tmp_path: Path) -> None:
    work = carry_out(tmp_path, steps=["teacher", "baseline", {"distill": {"how": "logits"}}], model=SMALL)
    assert isinstance(work.methods[0], Distill)
