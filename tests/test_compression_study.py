# SPDX-License-Identifier: Apache-2.0
"""The study of compression: each trial is a recipe in an order that works, and the page says what is stored."""

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
    for name in (
        "study_plan",
        "study_table",
        "vit_study",
        "results",
        "fashion",
        "compression_plan",
        "compression_study",
    ):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("compression_study")


def result(trial: str, share: float, **more: Any) -> dict[str, Any]:
    """A stored result that has the first pictures right."""
    bits = base64.b64encode(np.packbits(np.arange(N) < share * N).tobytes()).decode()
    views = {"as it is": {"top1": share, "n": N, "interval": [share - 0.03, share + 0.03], "right": bits}}
    numbers = {"params": 20_000, "macs": 3_000_000, "weights_bytes": 81_000, "cpu_minutes": 1.5}
    return {"trial": trial, "seed": 0, **numbers, "views": views, **more}


def store(docs: Path, results: list[dict[str, Any]]) -> None:
    (docs / "measured").mkdir(parents=True, exist_ok=True)
    for one in results:
        record = {"format": 1, "trial": one["trial"], "runs": [one]}
        (docs / "measured" / f"compression-{one['trial']}.json").write_text(json.dumps(record))


def test_every_trial_is_a_recipe_in_an_order_that_works(study: ModuleType, tmp_path: Path) -> None:
    trials, names = study.TRIALS, [one.name for one in study.TRIALS]
    assert len(set(names)) == len(names)
    for one in trials:
        assert one.claim in study.PARTS
        assert all(names.index(need) < names.index(one.name) for need in one.needs()), one.name
        plan = study.planned(one, 3, tmp_path)
        assert plan.seed == 3 and plan.threads == 1
        raced = one.name.startswith("best_") or one.name.endswith("_int8")
        assert [step.name for step in plan.steps if step.name == "measure"] == ["measure"] * raced
    for row in study.ROWS:
        assert row.better.trial in names and row.than.trial in names and row.claim in study.PARTS


def test_trials_of_one_part_are_equally_long(study: ModuleType, tmp_path: Path) -> None:
    """Epochs in all, of what is compared with each other."""
    for part in ("distillation", "pruning", "symmetry", "bits", "structure"):
        lengths = set()
        for one in (one for one in study.TRIALS if one.claim == part):
            plan = study.planned(one, 0, tmp_path)
            trains = [s for s in plan.steps if "epochs" in recipe.defaults(s.name) and s.name != "teacher"]
            epochs = [s.options.get("epochs") or plan.train.epochs for s in trains]
            rounds = [s.options.get("rounds", 1) if s.options.get("how") == "iterative" else 1 for s in trains]
            lengths.add(sum(e * r for e, r in zip(epochs, rounds, strict=True)))
        assert len(lengths) == 1, (part, lengths)


def test_parts_are_chosen_with_what_they_need(study: ModuleType) -> None:
    assert {one.name for one in study.chosen(["averaging"])} == {"dense", "longer", "soup", "swa"}
    assert {one.name for one in study.chosen(["fitnets"])} == {"dense", "fitnets"}
    assert study.chosen([]) == study.TRIALS
    with pytest.raises(SystemExit, match="no 'prunning'"):
        study.chosen(["prunning"])


def test_the_page_is_written_from_what_is_stored(study: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "studies" / "compression.md"
    page.parent.mkdir()
    parts = "".join(f"<!-- bench:begin {name} -->\nold\n<!-- bench:end -->\n\n" for name in study.PARTS)
    page.write_text(f"before\n\n{parts}after\n")
    raced = {"compact_bytes": 9_500, "dense_bytes": 310_000, "latency_ms": {"openvino": [0.9, 0.3]}}
    store(tmp_path, [result("small", 0.60), result("hinton", 0.63), result("best_int8", 0.66, **raced)])
    study.write(tmp_path)
    text = page.read_text()
    assert "old" not in text and text.startswith("before") and text.endswith("after\n")
    assert "| Hinton beats none | +3.00 [+1.94, +4.06] | 1 | no number at this scale | held |" in text
    assert "| DKD beats none | – | 0 |" in text
    assert "| the small network, labels alone | 60.00 | 20,000 | 3.00 | 81.0 kB | – | – | 1.5 | `small` |" in text
    assert "| channels, masks, 8 bits | 66.00 | 20,000 | 3.00 | 9.5 kB | 32.6× | 3.00× | 1.5 | `best_int8` |" in text
    once = text
    study.write(tmp_path)
    assert page.read_text() == once


def test_the_page_says_what_is_stored(study: ModuleType) -> None:
    text = (ROOT / "docs" / "studies" / "compression.md").read_text(encoding="utf-8")
    blocks = {"asked": study.asked(ROOT / "docs" / "measured"), **study.blocks(study.stored(ROOT / "docs"))}
    for name, block in blocks.items():
        assert f"<!-- bench:begin {name} -->\n{block}\n<!-- bench:end -->" in text, "run: compression_study.py --table"


def test_the_cards_say_what_is_stored(study: ModuleType) -> None:
    cards, results = study.compression_cards, study.stored(ROOT / "docs")
    for card, names in cards.CARDS.items():
        text = (ROOT / "docs" / "methods" / f"{card}.md").read_text(encoding="utf-8")
        block = cards.said(names, results)
        assert f"<!-- bench:begin study -->\n{block}\n<!-- bench:end -->" in text, "run: compression_study.py --table"


def test_a_card_without_what_it_is_compared_with_waits(study: ModuleType, tmp_path: Path) -> None:
    store(tmp_path, [result("swa", 0.60), result("small", 0.60), result("one", 0.63)])
    cards, results = study.compression_cards, study.stored(tmp_path)
    assert "not run yet" in cards.said(cards.CARDS["swa"], results)
    assert "| ONE, 3 branches | 63.00 | +3.00 [+1.94, +4.06] | 20,000 |" in cards.said(cards.CARDS["one"], results)


def test_what_was_asked_is_met_by_every_seed_or_not(study: ModuleType, tmp_path: Path) -> None:
    """Of a setting the worst seed counts; one that a seed has not done yet does not."""
    rows = {}
    for seed, lost in ((0, 0.1), (1, 0.4)):
        known = {"net": "lenet300", "seed": seed, "streams_bytes": 101, "entropy_bytes": 100}
        rows[f"lenet300-{seed} dense"] = {**known, "accuracy": 90.0, "density": 1.0, "bits": 32, "ratio": 1.2}
        rows[f"lenet300-{seed} a"] = {**known, "accuracy": 90.0 - lost, "density": 0.1, "bits": 4, "ratio": 50.0 + seed}
    rows["lenet300-0 b"] = {**rows["lenet300-0 a"], "ratio": 80.0}
    (tmp_path / "deep_compression.json").write_text(json.dumps({"rows": rows}))
    lines = study.asked(tmp_path).splitlines()
    assert "| ≥ 43× smaller, ≤ 0.5 points lost | 50.0×, +0.40 points lost, the worst of 2 seeds | yes |" in lines[2]
    assert "| ≥ 70× smaller, ≤ 1.0 points lost | 50.0×, +0.40 points lost, the worst of 2 seeds | no |" in lines[3]


@pytest.mark.slow
def test_every_kind_of_trial_works(study: ModuleType, tmp_path: Path) -> None:
    source = data.load("digits", n_train=48, n_val=12, n_test=16, size=32, glyph_max=20)
    (tmp_path / "results").mkdir()
    failed = []
    for one in study.TRIALS:
        try:
            found = study.carried_out(one, 0, tmp_path, source, tiny=True)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            failed.append(f"{one.name}: {type(error).__name__}: {error}")
            continue
        assert found["views"]["as it is"]["n"] == 16
        composed = one.name.startswith("best_")
        assert ("compact_bytes" in found) == composed and ("latency_ms" in found) == (composed or "_int" in one.name)
        study.files.publish_json(tmp_path / "results" / f"{one.name}-0.json", found)
    assert failed == []
    study.collect(tmp_path, tmp_path / "docs")
    assert set(study.stored(tmp_path / "docs")) == {one.name for one in study.TRIALS}
