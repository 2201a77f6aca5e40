# SPDX-License-Identifier: Apache-2.0
"""Recipes that leave fewer bits: every step runs, its model is found again, and a wrong order is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_runs

from featherweight import artifact, runs
from featherweight.errors import InputError, OptionError
from featherweight.steps_quantize import bytes_of
from featherweight.surgery import edits_of

RESNET = {"name": "resnet_digits", "config": {"image_size": [24, 24], "widths": [8, 8, 8]}}


def carry_out(folder: Path, *steps: Any, **changes: Any) -> Any:
    return runs.run(tiny_runs.plan(steps=["load", *steps], **changes), project=folder)


@pytest.mark.parametrize(
    ("step", "options", "kinds"),
    [
        ("half", {"dtype": "bfloat16"}, {"half"}),
        ("quantize_dynamic", {"skip": ["head"]}, {"dynamic_int8"}),
        ("quantize_weights", {"weights": "int4", "adaround": 2, "calibration_images": 8}, {"packed"}),
        ("quantize", {"reduce_range": True, "calibration_images": 8}, {"int8"}),
        ("mixed_precision", {"size": "30kB", "calibration_images": 8, "choices": ["int4"]}, {"packed"}),
        ("qat", {"weights": "int4", "calibration_images": 8}, {"packed", "int8"}),
        ("binarize", {"how": "xnor"}, {"binary"}),
    ],
)
def test_a_step_leaves_its_edits_in_the_model_it_saves(
    step: str, options: dict[str, Any], kinds: set[str], tmp_path: Path
) -> None:
    work = carry_out(tmp_path, {step: options})
    left = artifact.load(tmp_path / "tiny" / "model")
    assert {edit.kind for edit in edits_of(left)} == kinds
    assert edits_of(left) == edits_of(work.stages[-1].model)


def test_smoothing_and_equalization_come_before_8_bits(tmp_path: Path) -> None:
    carry_out(tmp_path / "vit", {"smooth": {"calibration_images": 8}}, {"quantize": {"calibration_images": 8}})
    carry_out(tmp_path / "net", "equalize", {"quantize": {"calibration_images": 8}}, model=RESNET)
    kinds = {edit.kind for edit in edits_of(artifact.load(tmp_path / "net" / "tiny" / "model"))}
    assert kinds == {"fold_norm", "int8"}


@pytest.mark.parametrize(
    ("steps", "right"),
    [
        (["quantize", "qat"], "use one of the two"),
        (["half", "equalize"], "the right order is `equalize`, then `half`"),
        (["quantize_weights", "train"], "the right order is `train`, then `quantize_weights`"),
    ],
)
def test_a_wrong_order_says_the_right_one(steps: list[str], right: str) -> None:
    with pytest.raises(InputError, match=right):
        tiny_runs.plan(steps=["load", *steps])


def test_zeros_of_a_pruned_model_stay_in_4_bits(tmp_path: Path) -> None:
    work = carry_out(
        tmp_path, {"sparsify": {"sparsity": 0.5}}, {"qat": {"weights": "int4", "ends": "int4", "calibration_images": 8}}
    )
    before, after = (stage.model for stage in work.stages[-2:])
    packed = [edit.path for edit in edits_of(after) if edit.kind == "packed"]
    assert packed
    for path in packed:
        gone = before.get_submodule(path).weight == 0
        assert bool((after.get_submodule(path).weight[gone] == 0).all())


def test_sizes_are_read() -> None:
    assert bytes_of("1.5MB") == 1_500_000
    assert bytes_of("300 kB") == 300_000
    with pytest.raises(OptionError, match="is not a size such as"):
        bytes_of("a lot")
