# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning at another size, with a teacher too; teachers and students that do not fit are found before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as tiny
import torch

from featherweight import artifact, official, recipe, runs
from featherweight.errors import InputError, OptionError
from featherweight.layers import TwoHeads
from featherweight.surgery import all_of, edits_of
from featherweight.work import Work

DISTILL = {"distill": {"distance": "hard", "restart": False}}


def run(project: Path, told: tiny.Told | None = None, **changes: Any) -> Work:
    return runs.run(tiny.plan(**{"train.images": 16, **changes}), project=project, progress=told)


def test_a_distilled_model_is_fine_tuned_at_a_larger_size_with_its_teacher(tmp_path: Path) -> None:
    told = tiny.Told()
    steps: list[Any] = ["teacher", "baseline", DISTILL, {"resolution": {"size": 32}}, "train"]
    work = run(tmp_path, told, steps=steps)
    assert work.model is not None
    before, resized, trained = (stage.model for stage in work.stages[1:])
    assert [stage.title for stage in work.stages][2] == "at 32x32"
    assert [edit.kind for edit in edits_of(trained)] == ["distillation_token"]
    assert all_of(trained, TwoHeads)
    assert trained.pos_embed.shape[1] == 1 + (32 // 4) ** 2  # type: ignore[union-attr, operator, index]
    own, old = resized.state_dict(), before.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in old.items() if name != "pos_embed")
    assert not torch.equal(own["head.head.weight"], trained.state_dict()["head.head.weight"])
    terms = [event["terms"] for event in told.of("step") if event.get("step_name") == "04-train"]
    assert terms
    assert all("distill" in each for each in terms), "the teacher goes on teaching"
    saved = artifact.load(tmp_path / "tiny" / "model")
    record = artifact.record_of(saved)
    assert record is not None
    assert record.preprocess is not None
    assert record.preprocess.size == (32, 32)


@pytest.mark.slow
def test_stages_of_two_sizes_are_measured_each_at_its_own(tmp_path: Path) -> None:
    steps: list[Any] = ["load", {"resolution": {"size": 32}}]
    steps += [{"measure": {"batch": [1], "repeats": 6, "budget_s": 0.1, "part": "val"}}, {"report": {"samples": 1}}]
    run(tmp_path, steps=steps)
    rows = json.loads((tmp_path / "tiny" / "steps" / "02-measure" / "measure.json").read_text())["rows"]
    assert [row["title"] for row in rows] == ["baseline", "at 32x32"]
    assert rows[1]["macs"] > 1.5 * rows[0]["macs"]
    assert (tmp_path / "tiny" / "report.html").is_file()


def test_a_saved_model_begins_at_another_size(tmp_path: Path) -> None:
    first = run(tmp_path, steps=["baseline"])
    assert first.model is not None
    spec = {"name": str(tmp_path / "tiny" / "model"), "config": {"image_size": [16, 40]}}
    work = run(tmp_path, name="again", model=spec, steps=["train"])
    assert work.preprocess.size == (16, 40)
    assert work.model is not None
    assert work.model.config.image_size == (16, 40)  # type: ignore[union-attr]
    started = official.resized(first.model, (16, 40))
    assert started.pos_embed.shape == work.model.pos_embed.shape  # type: ignore[union-attr]
    with pytest.raises(OptionError, match="image_size"):
        run(tmp_path, name="odd", model={**spec, "config": {"image_size": [17, 40]}}, steps=["train"])
    for more in ({"config": {"depth": 3}}, {"weights": "shipped"}):
        with pytest.raises(InputError, match="has its own; leave it out"):
            tiny.plan(model={**spec, **more})


def test_a_teacher_that_cannot_see_the_new_size_is_told_at_once(tmp_path: Path) -> None:
    told = tiny.Told()
    vit = {"name": "vit_digits", "config": tiny.CONFIG}
    with pytest.raises(OptionError, match=r"resolution: teacher: cannot take a picture of 3x32x32"):
        run(tmp_path, told, teacher=vit, steps=["teacher", "baseline", {"resolution": {"size": 32}}, DISTILL])
    assert {name for name, _ in told.trained} == {"00-teacher", "01-baseline"}
    with pytest.raises(OptionError, match=r"resolution: size: \[8, 8, 8\] is not"):
        run(tmp_path, name="three", steps=["load", {"resolution": {"size": [8, 8, 8]}}])


def test_a_student_without_a_place_for_the_token_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    told = tiny.Told()
    resnet = {"name": "resnet_digits", "config": {"image_size": [24, 24], "widths": [8, 8, 8]}}
    with pytest.raises(OptionError, match="ResNet cannot have a distillation token; use how: logits"):
        run(tmp_path, told, model=resnet, steps=["teacher", "baseline", "distill"])
    assert not told.trained
    work = run(tmp_path, name="logits", model=resnet, steps=["teacher", "baseline", {"distill": {"how": "logits"}}])
    assert work.model is not None


def test_a_teacher_of_other_classes_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    told = tiny.Told()
    other = official.create("resnet_digits", num_classes=7, image_size=[24, 24], widths=[8, 8, 8])
    artifact.save(other, tmp_path / "seven", classes=[f"class {i}" for i in range(7)])
    with pytest.raises(OptionError, match="knows 7 classes"):
        run(tmp_path, told, teacher=str(tmp_path / "seven"), steps=["teacher", "baseline", "distill"])
    assert not told.trained


def test_a_teacher_of_timms(tmp_path: Path) -> None:
    teacher = {"name": "timm:resnet18"}
    steps = [{"teacher": {"epochs": 1, "images": 16}}, "baseline", DISTILL]
    assert run(tmp_path, teacher=teacher, steps=steps).model is not None


def test_remembered_answers_in_a_recipe_give_the_same_bits(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"train.augment": {"preset": "deit", "randaugment": 0}, "train.epochs": 2}
    kept = {"distill": {"cache": 1, "answers": str(tmp_path / "answers"), "restart": False}}
    for name, workers in (("first", 0), ("second", 2)):
        run(tmp_path, name=name, steps=["teacher", "baseline", kept], **{"train.workers": workers}, **changes)
    assert tiny.weights(tmp_path, "first") == tiny.weights(tmp_path, "second")
    assert (tmp_path / "answers" / "facts.json").is_file()
    with pytest.raises(InputError, match=r"facts\.json: changed: .*data.batch_size was 16, is 8"):
        run(tmp_path, name="third", steps=["teacher", "baseline", kept], **{"train.batch_size": 8}, **changes)


def test_the_landscape_of_a_run(tmp_path: Path) -> None:
    steps = ["baseline", {"landscape": {"points": 3, "images": 8}}]
    work = run(tmp_path, steps=steps)
    assert work.results["landscape-01"]["images"] == 8
    assert (tmp_path / "tiny" / "landscape-01.svg").is_file()
    again = run(tmp_path, steps=steps)
    assert again.results["landscape-01"] == work.results["landscape-01"]


def test_deits_recipe_says_what_deit_does() -> None:
    plan = recipe.read("deit_imagenet")
    flat = recipe.flat(plan)
    assert (flat["train.lr"], flat["train.lr_batch"], flat["train.epochs"], flat["train.repeats"]) == (
        5e-4,
        512,
        300,
        3,
    )
    assert round(flat["train.warmup"] * 300) == 5
    assert (flat["train.schedule"], flat["train.sampler"], flat["train.decay"]) == ("official",) * 3
    assert plan.model is not None
    assert plan.model.config == {"drop_path_rate": 0.1}
