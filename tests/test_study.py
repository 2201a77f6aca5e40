# SPDX-License-Identifier: Apache-2.0
"""The study of the papers' claims: its recipes run, on a few pictures, and its tables say what the numbers say."""

from __future__ import annotations

import base64
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from featherweight import data, recipe

ROOT = Path(__file__).parents[1]
N = 1000


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The runner, with what it imports from beside it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("study_plan", "study_table", "vit_study"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("vit_study")


@pytest.fixture
def plan(study: ModuleType) -> ModuleType:
    return sys.modules["study_plan"]


@pytest.fixture
def table(study: ModuleType) -> ModuleType:
    return sys.modules["study_table"]


def result(trial: str, seed: int, views: dict[str, np.ndarray]) -> dict[str, Any]:
    """A stored result whose views have these pictures right."""
    seen = {}
    for name, right in views.items():
        bits = base64.b64encode(np.packbits(right).tobytes()).decode()
        top1 = float(right.mean())
        seen[name] = {"top1": top1, "n": len(right), "interval": [top1 - 0.03, top1 + 0.03], "right": bits}
    numbers = {"params": 230_506, "macs": 4_330_880, "cpu_minutes": 3.25}
    return {"trial": trial, "seed": seed, **numbers, "views": seen}


def right(share: float, flipped: int = 0) -> np.ndarray:
    """The first pictures right; of these, `flipped` wrong and as many others right."""
    found = np.arange(N) < share * N
    found[:flipped] ^= True
    found[N - flipped :] ^= True
    return found


def store(docs: Path, results: list[dict[str, Any]]) -> None:
    (docs / "measured").mkdir(parents=True, exist_ok=True)
    for name in {one["trial"] for one in results}:
        record = {"format": 1, "trial": name, "runs": [one for one in results if one["trial"] == name]}
        (docs / "measured" / f"study-{name}.json").write_text(json.dumps(record))


def test_every_trial_is_a_recipe_that_can_be_planned(study: ModuleType, plan: ModuleType, tmp_path: Path) -> None:
    names = [one.name for one in plan.TRIALS]
    assert len(set(names)) == len(names)
    for one in plan.TRIALS:
        assert all(names.index(need) < names.index(one.name) for need in one.needs()), one.name
        for path in ("vit", "teacher", "teacher_equal"):
            (tmp_path / "runs" / f"{path}-0" / "model").mkdir(parents=True, exist_ok=True)
        found = study.planned(one, 0, tmp_path)
        assert found.seed == 0 and found.threads == 1
        assert not {"measure", "report"} & {step.name for step in found.steps}
    for row in plan.ROWS:
        assert row.better.trial in names and row.than.trial in names


def test_claims_are_chosen_with_what_they_need(plan: ModuleType) -> None:
    assert {one.name for one in plan.chosen(["dynamicvit"])} == {"vit", "dynamicvit"}
    assert {"teacher", "lvvit_mixed"} <= {one.name for one in plan.chosen(["claim4"])}
    assert plan.chosen([]) == plan.TRIALS
    with pytest.raises(SystemExit, match="no 'claim9'"):
        plan.chosen(["claim9"])


@pytest.mark.parametrize(
    ("better", "than", "margin", "verdict"),
    [
        (right(0.70), right(0.60), 0.0, "held"),
        (right(0.60), right(0.70), 0.0, "not held: the opposite"),
        (right(0.605, 200), right(0.60), 0.0, "undecided: within noise"),
        (right(0.60), right(0.602), 0.5, "held"),
        (right(0.60), right(0.62), 0.5, "not held"),
        (right(0.60, 200), right(0.602), 0.5, "undecided: within noise"),
    ],
)
def test_a_verdict_is_what_the_pictures_allow(
    plan: ModuleType, table: ModuleType, better: np.ndarray, than: np.ndarray, margin: float, verdict: str
) -> None:
    row = plan.Row("1", "x", plan.Side("a"), plan.Side("b"), "", margin)
    runs = {name: {0: result(name, 0, {plan.WHOLE: seen})} for name, seen in (("a", better), ("b", than))}
    found = table.outcome(row, runs)
    assert found.difference == pytest.approx(100 * (better.mean() - than.mean()))
    assert found.half == pytest.approx(196 * np.std(better.astype(float) - than, ddof=1) / N**0.5)
    assert found.verdict(margin) == verdict


def test_one_seed_against_the_others_is_undecided(plan: ModuleType, table: ModuleType) -> None:
    row = plan.Row("1", "x", plan.Side("a"), plan.Side("b"), "")
    gains = (0.10, 0.12, -0.01)
    runs = {
        "a": {seed: result("a", seed, {plan.WHOLE: right(0.6 + gain)}) for seed, gain in enumerate(gains)},
        "b": {seed: result("b", seed, {plan.WHOLE: right(0.6)}) for seed in (0, 1, 2, 7)},
    }
    found = table.outcome(row, runs)
    assert found.seeds == (0, 1, 2) and found.low > 0
    assert found.verdict(0.0) == "undecided: within noise"
    assert table.outcome(row, {"a": runs["a"]}).verdict(0.0) == "not run yet"


def test_the_page_is_written_from_what_is_stored(plan: ModuleType, table: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "studies" / "vit.md"
    page.parent.mkdir()
    blocks = "".join(f"<!-- study:begin {name} -->\nold\n<!-- study:end -->\n\n" for name in table.SHOW)
    page.write_text(f"before\n\n{blocks}after\n")
    table.write_docs(tmp_path)
    text = page.read_text()
    assert "old" not in text and text.startswith("before") and text.endswith("after\n")
    assert text.count("not run yet") == len(plan.ROWS) + len(plan.TRIALS) + 1
    heads = {plan.WHOLE: right(0.71), "class head": right(0.70), "distillation head": right(0.69)}
    kept = {plan.WHOLE: right(0.6), **{f"keep {keep:g}": right(0.3 + 0.3 * keep) for keep in plan.KEEPS}}
    results = [result("deit_hard", seed, heads) for seed in (0, 1)]
    store(tmp_path, [*results, result("vit", 0, {plan.WHOLE: right(0.62)}), result("dynamicvit", 0, kept)])
    table.write_docs(tmp_path)
    text = page.read_text()
    assert "| 71.00 ±0.00 against 70.00 ±0.00 | +1.00 [+0.38, +1.62] | 2 |" in text
    assert "| 71.00 against 62.00 | +9.00" in text
    assert "| hard token distillation: class head | 70.00 ±0.00 |" in text
    assert "| 0.7 | 51.00 |" in text
    for name in ("keep-ratio.svg", "keep-ratio-dark.svg"):
        assert name in text and "keep ratio" in (page.parent / name).read_text()
    once = text
    table.write_docs(tmp_path)
    assert page.read_text() == once


def test_the_page_says_what_is_stored(table: ModuleType) -> None:
    text = (ROOT / "docs" / "studies" / "vit.md").read_text(encoding="utf-8")
    found = table.filled(text, table.stored(ROOT / "docs"))
    assert found == text, "run: python benchmarks/vit_study.py --table"


@pytest.fixture
def tiny(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> data.Data:
    """A few digits in place of CIFAR-10, and two steps in place of five epochs."""
    read = recipe.read
    short = ["train.epochs=1", "train.images=16", "train.batch_size=8", "train.validate_images=8"]

    def shortened(name: str, overrides: list[str]) -> recipe.Recipe:
        few = ["tokens.epochs=1"] if name == "study_dynamicvit" else []
        return read(name, [*short, *few, *(one for one in overrides if "epochs" not in one)])

    monkeypatch.setattr(study.recipe, "read", shortened)
    return data.load("digits", n_train=32, n_val=12, n_test=16, size=32, glyph_max=20)


KINDS = (
    "deit_hard",
    "dynamicvit",
    "dynamicvit_random",
    "grouping",
    "lvvit",
    "lvvit_mixed",
    "mixed_depth",
    "patch_none",
)


def test_every_kind_of_training_works(study: ModuleType, plan: ModuleType, tiny: data.Data, tmp_path: Path) -> None:
    views: dict[str, set[str]] = {}
    (tmp_path / "results").mkdir()
    for one in plan.chosen(KINDS):
        found = study.carried_out(one, 0, tmp_path, tiny)
        views[one.name] = set(found["views"])
        assert all(view["n"] == 16 for view in found["views"].values())
        study.files.publish_json(study.result_of(tmp_path, one, 0), found)
    assert views["deit_hard"] == {plan.WHOLE, "class head", "distillation head"}
    assert views["lvvit"] == {plan.WHOLE, "class head"}
    assert views["mixed_depth"] == {plan.WHOLE, "1 pass"}
    assert {"keep 0.7", "keep 1"} < views["dynamicvit"] == views["dynamicvit_random"]
    study.collect(tmp_path, tmp_path / "docs")
    stored = json.loads((tmp_path / "docs" / "measured" / "study-dynamicvit.json").read_text())
    kept = [name for name, view in stored["runs"][0]["views"].items() if "right" in view]
    assert kept == [plan.WHOLE]


def test_a_second_process_leaves_what_is_taken(
    study: ModuleType, plan: ModuleType, tiny: data.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, asked = study.files.lock(tmp_path / "taken" / "vit-0"), []
    taken.__enter__()

    def wait(seconds: float) -> None:  # the other process is done
        asked.append(seconds)
        found = result("vit", 0, {plan.WHOLE: right(0.5)})
        study.files.publish_json(study.result_of(tmp_path, plan.trial("vit"), 0), found)
        taken.__exit__(None, None, None)

    def load(source: object, **options: object) -> data.Data:
        return tiny

    monkeypatch.setattr(study.time, "sleep", wait)
    monkeypatch.setattr(study.data, "load", load)
    monkeypatch.setattr(study, "carried_out", lambda one, seed, out, source: {"views": {plan.WHOLE: {"top1": 0.5}}})
    (tmp_path / "results").mkdir()
    told: list[int] = []
    study.work_through(plan.chosen(["dynamicvit"]), 1, tmp_path, tmp_path, lambda: told.append(1))
    assert len(asked) == len(told) == 1
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"vit-0.json", "dynamicvit-0.json"}
