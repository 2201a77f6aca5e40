# SPDX-License-Identifier: Apache-2.0
"""A log for `fit`: one JSON object per line, each row once however often the run was killed; also as a table."""

from __future__ import annotations

import csv
import io
import json
import os
import warnings
from pathlib import Path
from typing import Any

from featherweight.errors import StorageError, shown
from featherweight.files import publish


class Journal:
    """`fit(…, log=Journal(path))`. A run that is taken up again first removes the rows it will write again."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __call__(self, row: dict[str, Any]) -> None:
        """Append a row; a number that is not finite becomes null."""
        text = json.dumps({key: _plain(value) for key, value in row.items()}, allow_nan=False)
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(text + "\n")
        except OSError as error:
            why = (error.strerror or type(error).__name__).lower()
            raise StorageError(
                f"{shown(self.path)} takes no more rows: {why}; make room, then run the same again"
            ) from error

    def rewind(self, rows: int) -> None:
        """Keep the first `rows` rows."""
        if not self.path.exists() and rows == 0:
            return
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        if len(whole) < rows:
            warnings.warn(f"{shown(self.path)}: has {len(whole)} of the {rows} rows written so far", stacklevel=3)
        with self.path.open("ab") as stream:
            stream.truncate(sum(len(line) for line in whole[:rows]))

    def rows(self) -> list[dict[str, Any]]:
        """All rows."""
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def write_metrics(folder: Path) -> None:
    """metrics.csv of a run: one row for every epoch of every step, from the steps' journals."""
    rows = []
    for path in sorted(folder.glob("steps/*/journal.jsonl")):
        for row in Journal(path).rows():
            if row["event"] == "epoch":
                flat = {"stage": path.parent.name, "epoch": row["epoch"], "step": row["step"], "loss": row["loss"]}
                flat |= {f"loss_{name}": value for name, value in row["terms"].items()}
                flat |= {f"val_{k}": v for k, v in row.get("validation", {}).items() if isinstance(v, (int, float))}
                rows.append(flat)
    if rows:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        publish(folder / "metrics.csv", text.getvalue().encode())
