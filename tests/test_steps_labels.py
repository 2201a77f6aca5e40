# SPDX-License-Identifier: Apache-2.0
"""The step `token_labelling` of a recipe: maps in the step's folder, found again; what must come before it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import Told, plan

from featherweight import runs
from featherweight.errors import InputError, OptionError
from featherweight.layers import AuxLogits
from featherweight.methods.token_labelling import TokenLabelling
from featherweight.recipe import defaults
from featherweight.surgery import find

LVVIT = {
    "name": "lvvit",
    "config": {"image_size": [24, 24], "patch_size": 6, "embed_dim": 24, "depth": 2, "num_heads": 3, "stem_width": 8},
}
STEPS = ["teacher", "load", {"token_labelling": {"top_k": 3, "truth_if_agree": 0.2}}]


def test_tokens_learn_from_the_teachers_maps_and_go_on_after(tmp_path: Path) -> None:
    tiny = plan(model=LVVIT, steps=STEPS, **{"train.label_smoothing": 0.1})
    told = Told()
    work = runs.run(tiny, project=tmp_path, progress=told)
    assert (tmp_path / "tiny" / "steps" / "02-token_labelling" / "labels.safetensors").is_file()
    assert [stage.title for stage in work.stages][-1] == "token labels (teacher, mixed)"
    terms = [event["terms"] for event in told.of("epoch")]
    assert set(terms[-1]) == {"task", "tokens"}
    (method,) = work.methods
    assert isinstance(method, TokenLabelling)
    assert (method.mix_token, method.smoothing, method.truth_if_agree) == (False, 0.1, 0.2)
    assert work.model is not None
    assert not find(work.model, AuxLogits).mix_token
    again = Told()
    second = runs.run(tiny, project=tmp_path, progress=again)
    assert not again.trained
    assert second.model is not None
    assert all(torch.equal(a, b) for a, b in zip(work.model.parameters(), second.model.parameters(), strict=True))


def test_runs_may_share_their_maps(tmp_path: Path) -> None:
    file = tmp_path / "maps.safetensors"

    def taught(name: str, **options: object) -> None:
        steps = ["teacher", "load", {"token_labelling": {"maps": str(file), **options}}]
        runs.run(plan(model=LVVIT, steps=steps, name=name), project=tmp_path)

    taught("first")
    before = file.read_bytes()
    taught("second", lr=1e-4)
    assert file.read_bytes() == before
    with pytest.raises(InputError, match="made from another setting"):
        taught("third", top_k=2)


def test_what_must_come_before() -> None:
    assert defaults("token_labelling")["labels"] == "teacher"
    with pytest.raises(InputError, match=r"steps\[1\]\.token_labelling: there is no teacher yet"):
        plan(model=LVVIT, steps=["load", "token_labelling"])
    assert plan(model=LVVIT, steps=["load", {"token_labelling": {"labels": "image"}}])


def test_a_model_without_a_head_on_every_token_is_refused(tmp_path: Path) -> None:
    tiny = plan(steps=["load", {"token_labelling": {"labels": "image"}}])
    with pytest.raises(OptionError, match="VisionTransformer has no head on every token"):
        runs.run(tiny, project=tmp_path)
