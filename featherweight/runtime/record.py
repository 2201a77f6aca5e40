# SPDX-License-Identifier: Apache-2.0
"""What `model.json` says about a model: its base, the edits made to it, its classes and how its pictures are prepared.

The same text stands in the weights file, which is therefore complete by itself; the copy in the folder is for readers
and must agree. Readable without torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featherweight.doors import json as strict_json
from featherweight.errors import InputError, OptionError
from featherweight.runtime.preprocess import Preprocess

FORMAT = 1
RECORD, WEIGHTS = "model.json", "model.safetensors"
TEXT_TASKS = ("text-classification", "question-answering")
TASKS = ("image-classification", "object-detection", *TEXT_TASKS)
CLASS_NAME_LIMIT, CLASSES_LIMIT, EDITS_LIMIT = 1000, 1_000_000, 100_000
_KEYS = {"format", "base", "edits", "task", "classes", "preprocess", "note"}


@dataclass(frozen=True)
class Record:
    """Everything but the weights. `base` is {"name", "config"} of a known family; None for a user's own module."""

    base: Mapping[str, Any] | None = None
    edits: tuple[Mapping[str, Any], ...] = ()
    task: str = TASKS[0]
    classes: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    note: Mapping[str, Any] = field(default_factory=dict)

    def to_text(self) -> str:
        """Canonical JSON: equal records give equal bytes."""
        data = {
            "format": FORMAT,
            "base": self.base,
            "edits": list(self.edits),
            "task": self.task,
            "classes": list(self.classes),
            "preprocess": self.preprocess.to_dict() if self.preprocess else None,
            "note": dict(self.note),
        }
        return json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_text(cls, text: str | bytes, name: object) -> Record:
        """The record in this text; an InputError about `name` for anything that cannot be fully explained."""
        data = strict_json.parse(text, name)
        if not isinstance(data, dict) or "format" not in data:
            raise InputError(name, "not_an_artifact", "is not the description of a model of ours: it has no 'format'")
        if data["format"] != FORMAT or isinstance(data["format"], bool):
            raise InputError(
                name, "version", f"has format {data['format']!r}; this version reads {FORMAT}: update featherweight"
            )
        if set(data) != _KEYS:
            odd = sorted(set(data) ^ _KEYS)
            raise InputError(
                name, "bad_schema", f"must have exactly the keys {', '.join(sorted(_KEYS))}; look at {odd[:5]}"
            )
        _check_kinds(data, name)
        try:
            preprocess = None if data["preprocess"] is None else Preprocess.from_dict(data["preprocess"])
        except OptionError as error:
            raise InputError(name, "bad_schema", str(error)) from None
        return cls(data["base"], tuple(data["edits"]), data["task"], tuple(data["classes"]), preprocess, data["note"])


def _check_kinds(data: Mapping[str, Any], name: object) -> None:
    base = data["base"]
    if base is not None and not (
        isinstance(base, dict)
        and set(base) == {"name", "config"}
        and isinstance(base["name"], str)
        and isinstance(base["config"], dict)
    ):
        raise InputError(name, "bad_schema", "'base' must be null or an object with a name and a config")
    if not isinstance(data["edits"], list) or len(data["edits"]) > EDITS_LIMIT:
        raise InputError(name, "bad_schema", f"'edits' must be a list of at most {EDITS_LIMIT}")
    if data["task"] not in TASKS:
        raise InputError(name, "unknown_name", f"has the task {str(data['task'])[:40]!r}; known: {', '.join(TASKS)}")
    if not isinstance(data["classes"], list) or len(data["classes"]) > CLASSES_LIMIT:
        raise InputError(name, "bad_schema", f"'classes' must be a list of at most {CLASSES_LIMIT} names")
    for label in data["classes"]:
        if not isinstance(label, str) or not 0 < len(label) <= CLASS_NAME_LIMIT:
            raise InputError(name, "bad_name", f"a class name must be a text of 1 to {CLASS_NAME_LIMIT} characters")
    if not isinstance(data["note"], dict):
        raise InputError(name, "bad_schema", "'note' must be an object")


def read(folder: Path) -> Record:
    """The record of a model folder."""
    path = Path(folder) / RECORD
    return Record.from_text(json.dumps(strict_json.read(path)), path)
