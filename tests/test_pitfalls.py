# SPDX-License-Identifier: Apache-2.0
"""The page of pitfalls: each row names a test that exists, and runs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
KNOWN = 34  # troubles that were collected


def rows() -> list[list[str]]:
    text = (ROOT / "docs" / "detection_pitfalls.md").read_text(encoding="utf-8")
    cells = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in cells if row[0].strip() not in ("trouble there", "---")]


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_row_says_what_happens_here_and_names_its_test() -> None:
    assert len(rows()) >= KNOWN and len({row[0] for row in rows()}) == len(rows())
    for row in rows():
        assert len(row) == 3 and all(row), row
        assert re.fullmatch(r"`tests/[\w/]+\.py::test_\w+`", row[2]), row


def test_every_test_that_is_named_exists_and_is_not_skipped() -> None:
    for row in rows():
        path, name = row[2].strip("`").split("::")
        found = functions(ROOT / path)
        assert name in found, row[2]
        marks = " ".join(ast.unparse(mark) for mark in found[name].decorator_list)
        assert "skip(" not in marks and "xfail" not in marks, row[2]


def test_a_test_that_is_gone_would_be_seen() -> None:
    assert "test_that_nobody_wrote" not in functions(Path(__file__))
    assert "test_a_test_that_is_gone_would_be_seen" in functions(Path(__file__))
