# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of one study share: rows that are kept as they come, and the tables of a page made from them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featherweight import files, measure

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- bench:begin (\w+) -->\n)(.*?)(<!-- bench:end -->)", re.DOTALL)


class Rows:
    """Results by key in a JSON file, written after every row: a run that was stopped goes on behind its last one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = json.loads(path.read_text())["rows"] if path.is_file() else {}

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        self.rows[key] = dict(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.publish_json(self.path, {"machine": machine(), "rows": self.rows})
        print(key, json.dumps(row), flush=True)


def machine() -> dict[str, Any]:
    """The processor and versions, and how busy it was."""
    return {**measure.machine(), "load": round(os.getloadavg()[0], 1)}


def table(head: Sequence[str], body: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def fill(page: Path, blocks: Mapping[str, str]) -> None:
    """Write the named blocks of a page anew; the others stay."""
    text = page.read_text(encoding="utf-8")
    new = BLOCK.sub(lambda found: f"{found[1]}{blocks.get(found[2], found[3].rstrip())}\n{found[4]}", text)
    files.publish(page, new.encode())
