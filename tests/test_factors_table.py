# SPDX-License-Identifier: Apache-2.0
"""The cards of factors, matrices, turning and paired filters say what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import scripts

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return scripts.benchmark("factors_table")


def stored() -> dict[str, Any]:
    return dict(json.loads((ROOT / "docs" / "measured" / "factors.json").read_text(encoding="utf-8")))


def card(name: str) -> str:
    return (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["lowrank", "structured", "equivariant", "crelu", "dynamic_int8"])
def test_a_card_says_what_is_stored(name: str, tables: ModuleType) -> None:
    assert name in tables.TABLES
    assert tables.filled(card(name), stored()) == card(name), "run: python benchmarks/factors.py --tables"


def test_other_numbers_give_another_card(tables: ModuleType) -> None:
    found = stored()
    found["lowrank"][0]["plain"] = 12.3
    assert "| as it is | 1.00 | 12.3 | – |" in tables.filled(card("lowrank"), found)


def test_what_was_not_measured_leaves_the_card_as_it_is(tables: ModuleType) -> None:
    assert tables.filled(card("structured"), {"machine": stored()["machine"]}) == card("structured")
    text = tables.filled(card("lowrank"), {name: stored()[name] for name in ("lowrank", "machine")})
    assert "Speed of whole nets: not run yet." in text
