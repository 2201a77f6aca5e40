# SPDX-License-Identifier: Apache-2.0
"""A log for `fit`: one JSON object per line, each row exactly once however often the run was killed."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

from featherweight.errors import StorageError, shown


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
