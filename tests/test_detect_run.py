# SPDX-License-Identifier: Apache-2.0
"""Training detectors by a recipe and by the command: the model decides, published settings fill in, runs go on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import featherweight
from featherweight import artifact, cli, detecting, recipe, runs
from featherweight.errors import InputError, OptionError
from featherweight.optim import FOR_EVER
from featherweight.verbs.training import training_recipe

SMALL = {"source": "digits-det", "n_train": 4, "n_val": 4, "n_test": 2, "size": 64}


def plan_of(**more: Any) -> recipe.Recipe:
    model = {"name": "yolov7_tiny", "config": {"image_size": 64}}
    known: dict[str, Any] = {"task": "detect", "model": model, "data": SMALL, "steps": ["train", "evaluate"]}
    return recipe.parse({**known, **more}, "detect")


@pytest.mark.parametrize(
    ("name", "final", "obj", "preset"),
    [("yolov7_tiny", 0.01, 1.0, "tiny"), ("yolov7x", 0.1, 0.7, "p5"), ("yolov7_e6e", 0.2, 0.7, "p6")],
)
def test_published_settings_are_those_of_the_model(name: str, final: float, obj: float, preset: str) -> None:
    plan = recipe.parse({"task": "object-detection", "model": name, "data": "digits-det"}, "x")
    assert (plan.train.min_ratio, plan.detection.obj, plan.train.augment["preset"]) == (final, obj, preset)
    assert (plan.train.optimizer, plan.train.decay, plan.train.nominal_batch) == ("sgd", "yolo", 64)
    again = recipe.parse(recipe.plain(plan), "again")
    assert (again.train, again.detection) == (plan.train, plan.detection)
    own = recipe.parse({**recipe.plain(plan), "train": {"lr": 0.02}, "detection": {"obj": 2.0}}, "x")
    assert (own.train.lr, own.detection.obj, own.train.momentum) == (0.02, 2.0, 0.937)


WRONG: dict[str, dict[str, Any]] = {
    r"steps\[0\].prune: a detector cannot have it": {"steps": ["prune"]},
    "deit_tiny is for image-classification": {"model": "deit_tiny"},
    r"train.augment: no 'mosiac' here; did you mean 'mosaic'": {"train": {"augment": {"mosiac": 1.0}}},
    "detection.assign: no 'led'": {"detection": {"assign": "led"}},
    r"steps\[0\].evaluate: there is no model yet": {"steps": ["evaluate"]},
    r"there is no teacher yet": {"steps": ["distill_detection"]},
    "nominal_batch: goes with": {"train": {"schedule": "cosine"}},
    "data: no 'n_tran' here": {"data": {"source": "digits-det", "n_tran": 3}},
}


@pytest.mark.parametrize("said", WRONG)
def test_a_recipe_that_cannot_work_is_refused_at_once(said: str) -> None:
    with pytest.raises(InputError, match=said):
        plan_of(**WRONG[said])


def test_a_detector_is_not_trained_as_a_classifier() -> None:
    with pytest.raises(InputError, match="yolov7_tiny is for object-detection"):
        recipe.parse("model: yolov7_tiny\ndata: digits", "x")
    with pytest.raises(InputError, match="goes with `task: object-detection`"):
        recipe.parse("model: vit_digits\ndata: digits\nsteps: [aux_heads, train]", "x")


def test_the_command_is_a_recipe() -> None:
    made = training_recipe("yolov7_tiny", "photos", image_size=416, aux_heads=True, epochs=3)
    assert made["task"] == "object-detection" and made["steps"] == ["aux_heads", "train", "evaluate"]
    assert made["model"] == {"name": "yolov7_tiny", "config": {"image_size": 416}}
    assert "task" not in training_recipe("vit_digits", "digits")
    with pytest.raises(OptionError, match="--alpha"):
        training_recipe("yolov7_tiny", "photos", task="detect", alpha=0.5)
    with pytest.raises(OptionError, match="--aux-heads"):
        training_recipe("vit_digits", "digits", aux_heads=True)
    with pytest.raises(OptionError, match="did you mean 'detect'"):
        training_recipe("vit_digits", "digits", task="detct")


def test_freezing_names_the_first_layers() -> None:
    model: Any = featherweight.create("yolov7", variant="yolov7_tiny", num_classes=2)
    found = detecting.frozen(model, 10)
    assert set(found.values()) == {FOR_EVER} and "model.9.*" in found and "model.10.*" not in found
    assert "model.6.*" not in found  # a concatenation has nothing to freeze
    with pytest.raises(OptionError, match="leave nothing to train"):
        detecting.frozen(model, 78)


def test_a_run_trains_evaluates_and_is_found_again(tmp_path: Path) -> None:
    train = {"epochs": 1, "batch_size": 4, "freeze": 40, "augment": {"preset": "custom"}}
    plan = plan_of(train=train, steps=["aux_heads", "train", "evaluate"], output=str(tmp_path))
    work = runs.run(plan)
    found = json.loads((tmp_path / "run" / "steps" / "02-evaluate" / "evaluation.json").read_text())
    assert set(found["stats"]) >= {"AP", "AP50", "AR100"} and found["images"] == 4 and len(found["classes"]) == 10
    assert (tmp_path / "run/steps/02-evaluate/figures/precision_recall.svg").is_file()
    model = artifact.load(tmp_path / "run" / "model")
    record = artifact.record_of(model)
    assert record is not None and record.task == "object-detection" and record.classes == work.data.classes
    rows = [json.loads(line) for line in (tmp_path / "run/steps/01-train/journal.jsonl").read_text().splitlines()]
    assert {"box", "obj", "cls", "aux_box", "aux_obj", "aux_cls"} == set(rows[0]["terms"])
    again: list[str] = []
    runs.run(plan, progress=lambda event: again.append(event.get("text", "")))
    assert any("01-train: found as it was left" in text for text in again)
    trained = artifact.load(tmp_path / "run" / "steps" / "01-train" / "model").state_dict()
    torch.manual_seed(plan.seed)
    fresh = featherweight.create("yolov7_tiny", form="training", num_classes=10, image_size=64).state_dict()
    assert torch.equal(trained["model.0.conv.weight"], fresh["model.0.conv.weight"])  # frozen
    assert not torch.equal(trained["model.60.conv.weight"], fresh["model.60.conv.weight"])


@pytest.mark.slow
def test_a_run_ends_in_files_that_find(tmp_path: Path) -> None:
    from featherweight import pipeline

    steps = ["load", "fuse", {"quantize": {"calibration_images": 4}}, {"export": {"images": 2}}]
    work = runs.run(plan_of(steps=steps, output=str(tmp_path)))
    rows = json.loads((tmp_path / "run" / "export" / "parity.json").read_text())
    assert [row["format"] for row in rows] == ["onnx", "openvino"] and {row["dtype"] for row in rows} == {"int8"}
    head = work.model.head  # type: ignore[union-attr]
    assert {type(conv).__name__ for conv in head.m} == {"Conv2d"}  # type: ignore[union-attr]
    for file in ("model.onnx", "openvino_model.xml"):
        pipe = pipeline(model=tmp_path / "run" / "export" / file)
        assert pipe.task == "object-detection" and pipe.classes == work.data.classes
        assert isinstance(pipe(work.data.val.picture(0)), list)
    with pytest.raises(InputError, match=r"export\.form"):
        plan_of(steps=["load", {"export": {"form": "decode"}}])


def test_anchors_are_made_anew_where_they_do_not_fit(tmp_path: Path) -> None:
    data = {**SMALL, "n_train": 24}
    told: list[str] = []
    far = [[300, 300, 310, 310, 320, 320]] * 3
    for anchors in (far, None):
        config = {"image_size": 64, **({"anchors": anchors} if anchors else {})}
        plan = plan_of(model={"name": "yolov7_tiny", "config": config}, data=data, steps=["load"], output=str(tmp_path))
        work = runs.run(plan, name="far" if anchors else "near")
        work = dataclasses.replace(work, tell=lambda event: told.append(event["text"]))
        assert work.model is not None
        model: Any = detecting.with_anchors(work, work.model)
        again: Any = detecting.with_anchors(work, model)
        assert torch.equal(again.head.anchors, model.head.anchors)
        assert torch.equal(model.head.anchors, work.model.head.anchors) == (anchors is None)  # type: ignore[union-attr]
    assert told[0].startswith("anchors: 0.0 % of the boxes have a usable anchor, 100.0 % with new ones")
    assert told[1].endswith("kept") and told[2].endswith("kept")


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["detect", "model=vit_digits", "data=digits-det"], "vit_digits is for image-classification"),
        (["classify", "model=yolov7_tiny", "data=digits"], "yolov7_tiny is for object-detection"),
        (["detect", "data=digits-det", "model=yolov7_tiny", "alpha=0.5"], "--alpha: is of classifiers"),
        (["detect", "data=digits-det", "model=yolov7_tiny", "train.freeze=x"], "train.freeze: must be a whole number"),
        (["detect", "data=digits-det", "model=yolov7_tiny", "image_size=100"], "multiples of 32"),
    ],
)
def test_the_command_says_what_is_wrong_before_it_begins(
    tokens: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *tokens, f"project={tmp_path}"]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())
