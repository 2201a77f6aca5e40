# SPDX-License-Identifier: Apache-2.0
"""Recipes that prune weights, channels, widths and blocks: what comes out, what stays, which orders are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_runs

from featherweight import artifact, runs
from featherweight.anatomy import blocks_of, embed_dim
from featherweight.counting import macs, parameters
from featherweight.errors import FeatherweightError
from featherweight.explain import explain
from featherweight.methods.masks import masks_of, sparsity
from featherweight.work import Work

RESNET = {"name": "resnet_digits", "config": {"image_size": [24, 24], "widths": [8, 8, 8]}}


def carry_out(project: Path, **changes: Any) -> Work:
    return runs.run(tiny_runs.plan(**changes), project=project)


def test_zeros_stay_through_every_later_training(tmp_path: Path) -> None:
    steps = [
        "teacher",
        "baseline",
        {"sparsify": {"sparsity": 0.5, "how": "gradual", "importance": "movement", "scope": "global"}},
        {"sparsify": {"sparsity": 0.8, "how": "iterative", "rounds": 2}},
        {"sparsify": {"sparsity": 0.9}},
        "train",
        {"distill": {"how": "logits", "restart": False}},
    ]
    work = carry_out(tmp_path, steps=steps)
    assert [round(sparsity(stage.model), 2) for stage in work.stages] == [0.0, 0.5, 0.8, 0.9, 0.9, 0.9]
    left = artifact.load(tmp_path / "tiny" / "model")
    assert {path for path, mask in masks_of(left).items() if not mask.all()} == set(masks_of(left))
    assert sparsity(left) == pytest.approx(0.9, abs=0.005)
    rounds = sorted(path.name for path in (tmp_path / "tiny" / "steps" / "03-sparsify").iterdir() if path.is_dir())
    assert rounds == ["model", "round-0", "round-1"]


def test_channels_under_a_budget_and_blocks(tmp_path: Path) -> None:
    steps = [
        "baseline",
        {"prune_channels": {"macs": 0.6, "round_to": 1, "samples": 16}},
        {"prune_channels": {"ratio": {"layer1*": 0.5}, "round_to": 1, "importance": "taylor", "samples": 16}},
    ]
    work = carry_out(tmp_path, model=RESNET, steps=steps)
    example = work.batches("val", limit=2)
    pictures = next(iter(example.epoch(0)))["image"]
    counted = [macs(stage.model, pictures) for stage in work.stages]
    assert 0.4 * counted[0] < counted[1] <= 0.6 * counted[0]
    assert counted[2] < counted[1]
    assert parameters(artifact.load(tmp_path / "tiny" / "model")) == parameters(work.stages[-1].model)
    told = explain(tiny_runs.plan(model=RESNET, steps=steps[:2]))
    assert told[1].macs == counted[1]


def test_widths_and_blocks_of_a_transformer(tmp_path: Path) -> None:
    widths = {"mlp": 0.5, "heads": 0.34, "head_width": 0.5, "embed": 0.34, "round_to": 4, "samples": 16}
    steps = ["baseline", {"prune": widths}, {"drop": {"count": 1, "samples": 16}}]
    work = carry_out(tmp_path, steps=steps)
    assert [embed_dim(stage.model) for stage in work.stages] == [24, 16, 16]
    assert [len(blocks_of(stage.model)) for stage in work.stages] == [2, 2, 1]
    assert work.stages[1].model.blocks[0].attn.qkv.weight.shape == (3 * 2 * 4, 16)
    told = explain(tiny_runs.plan(steps=steps))
    assert [row.params for row in told] == [parameters(stage.model) for stage in work.stages]


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        (["baseline", "sparsify", "prune_channels"], "the right order is `prune_channels`, then `sparsify`"),
        (["baseline", {"sparsify": {"importance": "movement"}}], "seen while training only"),
        (["baseline", {"sparsify": {"how": "gradual", "importance": "wanda"}}], "'wanda' is taken at once"),
        (["baseline", {"sparsify": {"how": "gradual", "sparsity": {"*": 0.5}}}], "wants one number"),
        (["baseline", {"sparsify": {"quality": 1.0}}], "a threshold of the rounds"),
        (["baseline", {"sparsify": {"sparsity": 1.0}}], "1.0 is not"),
        (["baseline", {"prune_channels": {"macs": 0.5, "time": 0.5}}], "two budgets"),
        (["baseline", {"prune_channels": {"ratio": {"a": 2}}}], "prune_channels.ratio.a"),
        (["baseline", {"drop": {"rule": "odd"}}], "similarity, even"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, steps: list[Any], says: str) -> None:
    with pytest.raises(FeatherweightError) as error:
        carry_out(tmp_path, steps=steps)
    assert says in str(error.value)
