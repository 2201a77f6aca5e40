# SPDX-License-Identifier: Apache-2.0
"""The one reader of JSON: no repeated keys, no NaN unless asked for, bounded in size and depth."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from featherweight.doors import Path, door, read_input, text_of
from featherweight.errors import InputError, shown

MAX_BYTES = 512 << 20
MAX_DEPTH = 64

_MARKS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)  # a text, even one without an end, or a bracket

# Whole surrogate pairs, halves (in a group) and all other escapes.
_ESCAPES = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F])|.)", re.DOTALL)


def read(path: Path, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH, allow_nan: bool = False) -> Any:
    """The content of one JSON file."""
    data = read_input(path, max_bytes=max_bytes)
    return parse(data, path, max_depth=max_depth, allow_nan=allow_nan)


def parse(text: str | bytes, name: object, *, max_depth: int = MAX_DEPTH, allow_nan: bool = False) -> Any:
    """The value of one JSON text; `name` is for messages. `allow_nan` lets NaN and Infinity through as floats."""
    with door(name, "bad_json"):
        if isinstance(text, (bytes, bytearray)):
            text = text_of(bytes(text), name)
        if not text.strip():
            raise InputError(name, "empty", "has no content")
        _bound_depth(text, name, max_depth)
        if "\\u" in text and any(half for half in _ESCAPES.findall(text)):
            raise InputError(name, "bad_json", "holds half of a surrogate pair, which is not a character")
        rules = _Rules(name, allow_nan)
        try:
            value = json.loads(
                text, object_pairs_hook=rules.unique, parse_constant=rules.constant, parse_float=rules.number
            )
        except json.JSONDecodeError as error:
            why = f"line {error.lineno}, column {error.colno}: {error.msg.lower()}"
            raise InputError(name, "bad_json", why) from error
        return value


def _bound_depth(text: str, name: object, limit: int) -> None:
    depth = 0
    for match in _MARKS.finditer(text):
        mark = match.group()
        if mark in "[{":
            depth += 1
            if depth > limit:
                raise InputError(name, "bad_json", f"is nested more than {limit} deep")
        elif mark in "]}":
            depth -= 1


class _Rules:
    """What the standard parser lets pass and we do not."""

    def __init__(self, name: object, allow_nan: bool) -> None:
        self.name = name
        self.allow_nan = allow_nan

    def unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(self.name, "duplicate_key", f"the key '{shown(twice)}' stands twice in one object")
        return found

    def constant(self, word: str) -> float:
        if not self.allow_nan:
            raise InputError(self.name, "bad_json", f"{word} is not JSON; write a number or null")
        return float(word)

    def number(self, word: str) -> float:
        value = float(word)
        if not math.isfinite(value) and not self.allow_nan:
            raise InputError(self.name, "bad_json", f"the number {shown(word, limit=40)} is too large")
        return value
