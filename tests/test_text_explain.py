# SPDX-License-Identifier: Apache-2.0
"""What a recipe of texts will do is said without doing it, and is what then comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import test_text_recipes as texts
from test_text_recipes import written

from featherweight import cli, counting, explain, recipe, runs
from featherweight.deploy_text import example
from featherweight.errors import OptionError

pytest.importorskip("transformers")

STEPS: list[Any] = [
    "baseline", "vocabulary", {"drop": {"count": 1, "rule": "even"}}, {"prune": {"mlp": 0.5, "heads": 0.5}},
    {"star_attention": {"radius": 2}}, {"lowrank": {"ranks": "share", "keep": 0.5, "only": "cheaper"}},
]  # fmt: skip


@pytest.mark.parametrize("task", [pytest.param("text-classification", marks=pytest.mark.slow), "question-answering"])
def test_the_figures_are_those_of_the_run(tmp_path: Path, task: str) -> None:
    asks = {"data": str(texts.asked(tmp_path / "asked.json")), "text": {"max_length": 32}}
    more = asks if task == "question-answering" else {}
    plan = recipe.parse(written(tmp_path, STEPS, task=task, train={"epochs": 1}, **more), "test")
    told = explain.explain(plan)
    assert not (tmp_path / "runs").exists()
    work = runs.run(plan)
    for row, stage in zip(told, work.stages, strict=True):
        assert row.params == counting.parameters(stage.model), row.step
        assert row.macs == counting.macs(stage.model, example(work, stage)), row.step
        size = (stage.place / "model" / "model.safetensors").stat().st_size
        assert row.size_bytes is not None and row.size_bytes < size < row.size_bytes + 20_000, row.step
    assert [row.params for row in told] == sorted((row.params for row in told), reverse=True)  # type: ignore[type-var]


def test_integers_and_codes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = ["teacher", "baseline", {"tinybert": {"epochs": 1}}, "quantize", "share_embeddings", "export", "measure"]
    plan = written(tmp_path, [*steps, "report"])
    file = tmp_path / "plan.yaml"
    file.write_text(json.dumps({**plan, "teacher": plan["model"]}))
    assert cli.main(["explain", str(file)]) == 0
    said = capsys.readouterr().out
    assert "share_embeddings" in said and "Teach" not in said
    told = explain.explain(recipe.read(file))
    sizes = [row.size_bytes for row in told if row.size_bytes is not None]
    assert sizes[0] == sizes[1] > sizes[2] > sizes[3] == sizes[-1]
    assert told[4].estimated and not told[2].estimated


def test_without_the_data_what_depends_on_it_is_not_told(tmp_path: Path) -> None:
    plan = written(tmp_path, ["baseline", "vocabulary"], data=str(tmp_path / "nowhere.tsv"), text={"max_length": 16})
    told = explain.explain(recipe.parse(plan, "test"))
    assert told[0].params == told[1].params and any("training texts" in note for note in told[1].notes)
    assert told[0].macs is not None and told[0].macs > 0
    wide = recipe.parse(written(tmp_path, ["baseline", {"prune": {"embed": 0.25}}]), "test")
    with pytest.raises(OptionError, match="embed"):
        explain.explain(wide)
