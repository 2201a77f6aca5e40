# SPDX-License-Identifier: Apache-2.0
"""The one reader of YAML: the part of the language that means what it looks like.

No anchors, aliases, merge keys, tags, second documents or repeated keys. Only `true` and `false` are truth values,
`1e-3` is a number, and what is neither (yes, no, 010, 0x1f, 1_000, 1:30, 2024-01-01) stays the text it is. The refusals
are made on the event stream, before anything is composed, so that a small file cannot grow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from featherweight.doors import Path, door, read_input, text_of
from featherweight.errors import InputError, shown

MAX_BYTES = 256 << 10
MAX_DEPTH = 32
MAX_DIGITS = 30  # of a whole number

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {
    "": None, "~": None, "null": None, "true": True, "false": False,
    ".nan": float("nan"), ".inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf"),
}  # fmt: skip
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def read(path: Path) -> dict[Any, Any]:
    """The mapping in one YAML file."""
    return parse(read_input(path, max_bytes=MAX_BYTES), path)


def parse(text: str | bytes, name: object) -> dict[Any, Any]:
    """The mapping in a YAML text; `name` stands for it in messages. Keys are texts or whole numbers."""
    with door(name, "bad_yaml"):
        if isinstance(text, bytes):
            text = text_of(text, name)
        if len(text) > MAX_BYTES:
            raise InputError(name, "too_large", f"has {len(text)} characters, the limit is {MAX_BYTES}")
        try:
            value = _Reader(yaml.parse(text, Loader=_Loader), name).document()
        except yaml.reader.ReaderError as error:
            raise InputError(name, "encoding", f"is not text: character {error.position}") from error
        except yaml.MarkedYAMLError as error:
            mark: Any = error.problem_mark or error.context_mark
            what = " ".join(part for part in (error.context, error.problem) if part)
            raise InputError(name, "bad_yaml", f"line {mark.line + 1 if mark else '?'}: {what}") from error
        if not isinstance(value, dict):
            raise InputError(name, "bad_schema", f"holds a {type(value).__name__}, not `key: value` lines")
        return value


def write(data: dict[str, Any]) -> str:
    """A text that `parse` reads back to the same; for a record of what was run."""
    return yaml.dump(data, Dumper=_Plain, sort_keys=False, allow_unicode=True, default_flow_style=False)


class _Plain(yaml.SafeDumper):
    """Writes what `parse` reads: nothing as an alias, and in quotes the texts that look like something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, data: str) -> yaml.Node:
        other = data in _WORDS or _FLOAT.fullmatch(data)
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="'" if other else None)


_Plain.add_representer(str, _Plain.text)


class _Loader(yaml.SafeLoader):
    """Stops at the first bracket too many; the scanner would look far ahead of the parser, the slower the deeper."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803 - the name is PyYAML's
        if self.flow_level > MAX_DEPTH:  # type: ignore[attr-defined]
            raise yaml.scanner.ScannerError(None, None, f"is nested more than {MAX_DEPTH} deep", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)  # type: ignore[misc]


class _Reader:
    """The parser's events to data, with the line of every complaint."""

    def __init__(self, events: Iterator[Any], name: object) -> None:
        self.events = events
        self.name = name

    def refuse(self, event: Any, text: str, reason: str = "bad_yaml") -> InputError:
        return InputError(self.name, reason, f"line {event.start_mark.line + 1}: {text}")

    def document(self) -> Any:
        next(self.events)
        event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            raise InputError(self.name, "empty", "has no content")
        if event.tags:
            raise self.refuse(event, "%TAG is not read")
        value = self.value(next(self.events), 0)
        next(self.events)
        event = next(self.events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise self.refuse(event, "a second document begins; keep one in a file")
        return value

    def value(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            raise self.refuse(event, f"the alias *{shown(event.anchor, limit=40)} is not read; write the value out")
        if event.anchor is not None:
            raise self.refuse(event, f"the anchor &{shown(event.anchor, limit=40)} is not read; remove it")
        if event.tag is not None:
            raise self.refuse(event, f"the tag {shown(event.tag, limit=80)} is not read; remove it")
        if depth > MAX_DEPTH:
            raise self.refuse(event, f"is nested more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(depth)
        return self.mapping(depth)

    def sequence(self, depth: int) -> list[Any]:
        found = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            found.append(self.value(event, depth + 1))
        return found

    def mapping(self, depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.value(event, depth + 1)
            if type(key) not in (str, int):
                raise self.refuse(event, f"a key must be text or a whole number, not {type(key).__name__}; quote it")
            if key == "<<":
                raise self.refuse(event, "the merge key << is not read; write the values out")
            if key in found:
                raise self.refuse(event, f"the key '{shown(key, limit=60)}' is here a second time", "duplicate_key")
            found[key] = self.value(next(self.events), depth + 1)
        return found

    def scalar(self, event: Any) -> Any:
        text: str = event.value
        if _CONTROL.search(text):
            raise self.refuse(event, "a text holds control characters")
        if event.style is not None:  # quoted or a block: text, whatever it looks like
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            if len(text) > MAX_DIGITS:
                text = f"a whole number of {len(text)} digits; at most {MAX_DIGITS} are read"
                raise self.refuse(event, text, "bad_type")
            return int(text)
        return float(text) if _FLOAT.fullmatch(text) else text
