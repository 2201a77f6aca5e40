# SPDX-License-Identifier: Apache-2.0
"""Recipes that put something with fewer weights in place of layers, or train with more; and the race that judges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fill
import pytest
import tiny_runs
import torch
from torch import nn

from featherweight import artifact, counting, explain, runs
from featherweight.errors import InputError, OptionError
from featherweight.latency import Latency, Times
from featherweight.layers import Compact, Factors
from featherweight.methods.equivariant import invariance_error
from featherweight.surgery import all_of, edits_of

NET = {"name": "resnet_digits", "config": {"image_size": [24, 24], "widths": [8, 8, 16]}}
FEW: dict[str, Any] = {"train.images": 32}


def carry_out(project: Path, **changes: Any) -> Any:
    return runs.run(tiny_runs.plan(**FEW, **changes), project=project)


def test_factors_and_matrices_in_a_recipe(tmp_path: Path) -> None:
    steps = [
        "baseline",
        {"lowrank": {"ranks": "budget", "keep": 0.8, "by": "macs", "samples": 16}},
        {"structured": {"keep": 0.5, "restart": True}},
        {"quantize": {"calibration_images": 16}},
    ]
    recipe = tiny_runs.plan(**FEW, steps=steps)
    said = explain.explain(recipe)
    work = runs.run(recipe, project=tmp_path)
    baseline, factors, matrices, _ = (stage.model for stage in work.stages)
    assert [s.title for s in work.stages[1:]] == ["low rank (budget 0.8)", "monarch matrices", "int8"]
    image = torch.zeros(1, 3, 24, 24)
    assert counting.macs(factors, image) < 0.85 * counting.macs(baseline, image)
    assert all_of(factors, Factors) and not all_of(matrices, Factors)
    assert said[2].params == counting.parameters(matrices)
    assert said[1].estimated and said[1].params is not None


def test_nets_of_convolutions_in_a_recipe(tmp_path: Path) -> None:
    steps = [
        "baseline",
        {"equivariant": {"symmetric": True}},
        "write_out",
        {"overparameterize": {"block": "acb", "gamma": 1.0, "restart": True}},
        {"crelu": {"restart": True}},
        {"fuse": {}},
    ]
    laid_out = {"train.channels_last": True}  # of weights with four dimensions; those of group convolutions have five
    recipe = tiny_runs.plan(**FEW, **laid_out, steps=steps, model=NET)
    said = explain.explain(recipe)
    work = runs.run(recipe, project=tmp_path)
    models = [stage.model for stage in work.stages]
    baseline, turning, written, branched, paired = models[:5]
    assert [stage.title for stage in work.stages[1:4]] == ["p4 equivariant", "written out", "over-parameterized (acb)"]
    assert not all_of(written, Compact) and all_of(turning, Compact)
    assert invariance_error(turning, fill.normal("pictures", (2, 3, 24, 24))) < 1e-4
    assert {edit.kind for edit in edits_of(branched)} == {"with_bias"}
    sizes = [counting.parameters(model) for model in (baseline, turning, branched, paired)]
    assert sizes[1] < 0.3 * sizes[0] < sizes[0] < sizes[2] < 1.02 * sizes[0]
    assert sizes[3] < 0.6 * sizes[0]
    assert [said[number].params for number in (1, 3, 4)] == sizes[1:]
    loaded = artifact.load(tmp_path / "tiny" / "model")
    assert list(loaded.state_dict()) == list(models[-1].state_dict())


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        (["baseline", {"lowrank": {"rank": 0.5}}], "no 'rank' here; did you mean 'ranks'"),
        (["baseline", {"lowrank": {"keep": 0.0}}], "keep"),
        (["baseline", {"structured": {"matrix": "hankel"}}], "matrix"),
        ([{"lowrank": {}}], "there is no model yet"),
        (["baseline", "quantize", "lowrank"], "the right order is `lowrank`, then `quantize`"),
        (["baseline", "lowrank", "prune"], "the right order is `prune`, then `lowrank`"),
        (["baseline", {"sparsify": {}}, "lowrank"], "the right order is `lowrank`, then `sparsify`"),
        (["baseline", "equivariant"], "VisionTransformer has no form for fields"),
        (["baseline", {"overparameterize": {"skip": ["*"]}}], "no convolution of 3 x 3 or more that keeps the size"),
        (["baseline", {"lowrank": {"skip": ["blok*"]}}], "skip: 'blok.' covers no linear or convolution layer"),
        (["baseline", {"crelu": {"skip": ["*"]}}], "no plain convolution without groups left"),
        (["baseline", "structured", "crelu"], "use one of the two"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(steps: list[Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        tiny_runs.plan(steps=steps)


def test_a_race_decides_which_factors_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    from featherweight import layer_race

    seen: list[list[str]] = []
    interval = (1.2, 1.4)

    def race(runners: Any, **options: Any) -> Times:
        for run in runners.values():
            run()
        seen.append(list(runners))
        found = {name: Latency(1.0, 1.0, 1.0, ratio=1.3, ratio_interval=interval) for name in runners}
        return Times(found, {})

    monkeypatch.setattr(layer_race, "race", race)
    layer, factors = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 2, False), nn.Linear(2, 8))
    example = torch.randn(4, 3, 8)
    for runtime in ("torch", "onnxruntime", "openvino"):
        assert layer_race.Faster(runtime)(layer, factors, example)  # type: ignore[arg-type]
    assert not layer_race.Faster("torch", margin=1.25)(layer, factors, example)
    judge = layer_race.Faster("torch")
    assert judge(layer, factors, example) and judge(nn.Linear(8, 8), factors, example)
    assert seen == [["layer", "factors"]] * 5  # the same sizes once
    with pytest.raises(OptionError, match="a race needs the layers' inputs"):
        layer_race.Faster()(layer, factors, None)


def test_a_real_race_tells_a_large_layer_from_small_factors() -> None:
    from featherweight.layer_race import Faster

    layer, factors = nn.Linear(512, 512), nn.Sequential(nn.Linear(512, 4, False), nn.Linear(4, 512))
    example = torch.randn(1, 64, 512)
    assert Faster("torch")(layer, factors, example)
    assert not Faster("torch")(factors, layer, example)
