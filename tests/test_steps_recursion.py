# SPDX-License-Identifier: Apache-2.0
"""Recipes that share blocks, group attention and mix depths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch

from featherweight import artifact, counting, runs
from featherweight.anatomy import blocks_of
from featherweight.errors import InputError
from featherweight.methods.grouping import Grouped
from featherweight.recurrence import Looped, NonLinearProjection
from featherweight.surgery import all_of
from featherweight.work import Work

SRET = {
    "name": "sret_t",
    "config": {
        "image_size": [24, 24], "base_dim": 8, "depths": [2, 2], "unique_blocks": [1, 1], "num_heads": [1, 2],
        "groups": [3, 1], "groups_recursive": [3, 1],
    },
}  # fmt: skip


def carry_out(project: Path, told: Any = None, **changes: Any) -> Work:
    return runs.run(tiny_runs.plan(**changes), project=project, progress=told)


def test_recursion_grouping_and_mixed_depth_in_a_recipe(tmp_path: Path) -> None:
    steps = [
        "baseline",
        {"recursion": {"loops": 2, "nll_ratio": 0.5, "coefficients": True}},
        {"grouping": {"groups": 4, "at": [0]}},
        {"mixed_depth": {"teach": 0.5}},
        {"depth": {"loops": 1}},
    ]
    told = tiny_runs.Told()
    work = carry_out(tmp_path, told, steps=steps)
    baseline, shared, grouped, mixed, shallow = (stage.model for stage in work.stages)
    assert [s.title for s in work.stages[1:]] == [
        "recursion (2 loops)",
        "grouping (4 groups)",
        "mixed depth",
        "depth (1 loops)",
    ]
    assert (len(blocks_of(baseline)), len(blocks_of(shared))) == (2, 1)
    assert counting.parameters(shared) < counting.parameters(baseline)
    assert len(all_of(grouped, Grouped)) == 1
    assert [m.loops for model in (mixed, shallow) for m in all_of(model, Looped).values()] == [2, 1]
    assert [len(all_of(model, NonLinearProjection)) for model in (mixed, shallow)] == [2, 1]
    terms = {row["step_name"]: set(row["terms"]) for row in told.of("step") if "terms" in row}
    assert terms["01-recursion"] == {"task", "distill"}  # the model as it was teaches the one that shares
    assert terms["03-mixed_depth"] == {"task", "mixed_depth"}
    left = artifact.load(tmp_path / "tiny" / "model")
    assert list(left.state_dict()) == list(shallow.state_dict())


def test_srets_depths_are_mixed_and_cut_and_a_restart_begins_at_the_beginning(tmp_path: Path) -> None:
    steps: list[Any] = ["baseline", {"mixed_depth": {"restart": True}}, {"depth": {"loops": 1}}]
    work = carry_out(tmp_path / "mixed", model=SRET, steps=steps)
    assert counting.parameters(work.stages[2].model) < counting.parameters(work.stages[1].model)
    again = carry_out(tmp_path / "again", model=SRET, steps=[*steps[:1], "train", *steps[1:]])
    for a, b in zip(work.stages[1].model.parameters(), again.stages[2].model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        (["baseline", {"grouping": {"groups": 5}}], r"steps\[1\].grouping: groups: 5 does not divide the 36 patches"),
        (["baseline", {"recursion": {"loops": 3}}], r"steps\[1\].recursion: loops: 3 does not divide the 2 blocks"),
        (["baseline", "recursion", {"tokens": {"at": [1]}}], r"steps\[2\].tokens: at: no block 1: the model has 1"),
        (["baseline", {"grouping": {"at": [0]}}, "tokens"], "groups have a fixed number of tokens"),
        (["baseline", "mixed_depth"], "steps.1..mixed_depth: VisionTransformer runs no block several times"),
        (["baseline", "recursion", {"depth": {"loops": 3}}], r"steps\[2\].depth: loops: 3 is not from 1 to 2"),
        ([{"recursion": {"loops": 2}}], "there is no model yet"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(steps: list[Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        tiny_runs.plan(steps=steps)


def test_a_restart_is_of_the_model_as_it_was() -> None:
    tiny_runs.plan(steps=["baseline", "recursion", {"recursion": {"loops": 1, "unique": 2, "restart": True}}])
    with pytest.raises(InputError, match="once is enough"):
        tiny_runs.plan(steps=["baseline", "recursion", {"recursion": {"loops": 1, "unique": 1}}])
