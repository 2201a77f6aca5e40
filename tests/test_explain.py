# SPDX-License-Identifier: Apache-2.0
"""What a recipe will do is said without doing it, and is what then comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
from families import PLAIN

from featherweight import artifact, cli, counting, explain, measure, recipe, runs
from featherweight.beginning import RANDOM
from featherweight.errors import OptionError
from featherweight.models import zoo
from featherweight.steps import STEPS

DATA = {**tiny_runs.DIGITS, "n_train": 16, "n_val": 8, "n_test": 8}


def rows(steps: list[Any], **changes: Any) -> list[explain.Row]:
    return explain.explain(tiny_runs.plan(steps=steps, data=DATA, **changes))


def test_the_figures_are_those_of_the_run(tmp_path: Path) -> None:
    steps: list[Any] = [
        "teacher", "baseline", {"distill": {"how": "token"}}, {"tokens": {"keep": 0.6, "at": [1]}},
        {"prune": {"mlp": 0.5, "heads": 0.3, "samples": 8}}, {"quantize": {"calibration_images": 8}},
    ]  # fmt: skip
    plan = tiny_runs.plan(steps=steps, data=DATA)
    told = explain.explain(plan)
    work = runs.run(plan, project=tmp_path)
    batch = next(iter(work.batches("val", size=1, limit=1).epoch(0)))["image"]
    for row, stage in zip(told[1:], work.stages, strict=True):
        assert row.params == counting.parameters(stage.model), row.step
        assert row.macs == counting.macs(stage.model, batch), row.step
        file = stage.place / "model" / "model.safetensors"
        assert row.size_bytes is not None
        assert row.size_bytes < file.stat().st_size < row.size_bytes + 20_000  # the header names each tensor
    assert told[0].params is None  # a teacher is not the model
    assert told[0].notes == ("the teacher is resnet_digits",)
    assert [row.changes for row in told] == [False, False, True, True, True, True]


def test_nothing_is_trained_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("featherweight.fitting.fit", lambda *a, **k: pytest.fail("explain trained"))
    assert len(rows(["baseline", "prune", "quantize", "export", "measure", "report"])) == 6
    assert list(tmp_path.iterdir()) == []


def test_what_begins_anew_says_so() -> None:
    told = rows(["teacher", "baseline", "prune", {"distill": {"how": "logits", "restart": True}}])
    assert told[2].params < told[1].params == told[3].params  # type: ignore[operator]
    assert "begins where the baseline began" in told[3].notes


def test_what_is_lost_is_said() -> None:
    told = rows(["baseline", {"tokens": {"at": [1]}}, "quantize"])
    assert any("a token for every patch" in note for note in told[1].notes)
    assert any("weights that are floats" in note for note in told[2].notes)
    assert told[2].estimated
    assert not told[1].estimated


def test_random_weights_are_said() -> None:
    for weights, notes in ({}, (f"resnet_digits {RANDOM}",)), ({"weights": "shipped"}, ()):
        assert rows(["load"], model={"name": "resnet_digits", **weights})[0].notes == notes


def test_classes_are_those_of_the_data() -> None:
    plan = tiny_runs.plan(steps=["baseline"], data=DATA)
    assert explain.classes_of(plan) == 10
    nowhere = recipe.parse({"model": "vit_digits", "data": "nowhere/at/all", "steps": ["baseline"]}, "x.yaml")
    assert explain.classes_of(nowhere) is None
    told = explain.explain(nowhere)
    assert told[0].params == counting.parameters(zoo.create("vit_digits"))


def test_a_saved_model_is_where_it_begins(tmp_path: Path) -> None:
    folder = artifact.save(zoo.create("vit_digits"), tmp_path / "model")
    told = explain.explain(recipe.parse({"model": str(folder), "steps": ["load", "prune"]}, "x.yaml"))
    assert told[0].params == measure.parameters(zoo.create("vit_digits"))


@pytest.mark.parametrize(("density", "bits"), [(1.0, 8.0), (0.5, 4.0), (0.1, 5.0)])
def test_bytes_of_coded_weights_are_their_entropy(density: float, bits: float) -> None:
    model = PLAIN.make()
    outline = explain.Outline(model, (3, 16, 16))
    sizes = {name: t.numel() * t.element_size() for name, t in model.state_dict().items()}
    assert outline.size_bytes() == sum(sizes.values())
    coded = [name for name in sizes if name.endswith("weight") and model.get_parameter(name).ndim > 1]
    each = explain.entropy(density) + density * bits
    wanted = sum(sizes[name] / 32 * each if name in coded else sizes[name] for name in sizes)
    assert outline.thinned(density).stored(bits).size_bytes() == pytest.approx(wanted, abs=len(coded))
    assert explain.entropy(0.5) == 1.0
    assert explain.entropy(1.0) == 0.0


def test_a_step_that_cannot_be_outlined_does_not_stop_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(outline: explain.Outline, options: Any) -> explain.Outline:
        raise LookupError("no such layer")

    monkeypatch.setitem(explain.__dict__, "outline_of", lambda step: broken if step == "prune" else None)
    told = rows(["baseline", "prune"])
    assert "cannot be told before it is done: no such layer" in told[1].notes


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: vit_digits\ndata: nowhere\nsteps:\n  - baseline\n  - prune: {mlp: 0.5}\n  - quantize\n")
    assert cli.main(["explain", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "prune" in shown
    assert "mlp 0.5" in shown
    assert "~" in shown
    assert cli.main(["explain", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["step"] for row in told] == ["baseline", "prune", "quantize"]
    path.write_text("model: vit_digits\nsteps:\n  - baseline\n  - quantize\n  - prune\n")
    assert cli.main(["explain", str(path)]) == 2
    assert "the right order is `prune`, then `quantize`" in capsys.readouterr().err


def test_a_recipe_without_a_model_is_refused() -> None:
    plan = recipe.parse({"steps": ["baseline"]}, "x.yaml", partial=True)
    with pytest.raises(OptionError, match="names none"):
        explain.explain(plan)


@pytest.mark.parametrize("name", ["demo", "compress", "study_dynamicvit", "yolov7_tiny"])
def test_recipes_of_the_package_are_explained(name: str) -> None:
    plan = recipe.read(name, partial=True)
    if plan.model is None:
        plan = recipe.parse({**recipe.plain(plan), "model": "vit_digits"}, name)
    told = explain.explain(plan)
    assert [row.step for row in told] == [step.name for step in plan.steps]
    assert all(row.step in STEPS for row in told)
