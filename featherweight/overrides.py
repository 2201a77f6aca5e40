# SPDX-License-Identifier: Apache-2.0
"""`key=value` laid over a recipe: `train.lr=1e-3`, `steps[2].prune.mlp=0.4`, or `prune.mlp=0.4` where it comes once.

Nothing is checked here but the place; what stands there afterwards is checked like the rest of the recipe.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .doors import yaml
from .errors import OptionError, closest, shown

PART = re.compile(r"([\w-]+)((?:\[\d{1,6}\])*)")
SHORT = {"model": "name", "teacher": "name", "data": "source"}  # what `model: vit_digits` is short for


def override(raw: Mapping[str, Any], pairs: Iterable[str], *, fields: Sequence[str]) -> dict[str, Any]:
    """A new mapping with each `key=value` set; the value is YAML, so that nothing or `null` is none.

    fields: the top level's keys; a key that begins otherwise begins with the name of a step.
    """
    found = dict(raw)
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise OptionError("--set", f"{shown(pair)!r} is not key=value, such as train.lr=1e-3")
        value = yaml.parse(f"value: {text}", f"--set {key}")
        if list(value) != ["value"]:
            raise OptionError("--set", f"{shown(key)}: the value must be of one line")
        found = _set(found, _path(key, found, fields), value["value"], shown(key))
    return found


def _path(key: str, raw: Mapping[str, Any], fields: Sequence[str]) -> list[str | int]:
    parts: list[str | int] = []
    for part in key.split("."):
        found = PART.fullmatch(part)
        if not found:
            raise OptionError("--set", f"{shown(key)!r} is not a place, such as train.lr or steps[2].prune.mlp")
        parts += [found[1], *map(int, re.findall(r"\d+", found[2]))]
    if len(parts) == 1 or parts[0] in fields:
        return parts
    steps = raw.get("steps")
    names = [_name(step) for step in steps] if isinstance(steps, list) else []
    head = str(parts[0])
    if names.count(head) == 1:
        return ["steps", names.index(head), *parts]
    known = list(dict.fromkeys([*fields, *filter(None, names)]))
    many = (
        f"stands for {names.count(head)} steps: say which, as steps[{names.index(head)}].{head}"
        if head in names
        else ""
    )
    text = many or f"is no key and no step of the recipe; {closest(head, known)}Known: {', '.join(known)}"
    raise OptionError("--set", f"{shown(key)}: {shown(head, limit=60)!r} {text}")


def _name(step: Any) -> str:
    """What a step is called, if it is one."""
    name = next(iter(step), "") if isinstance(step, Mapping) else step
    return name if isinstance(name, str) else ""


def _set(node: Any, path: Sequence[str | int], value: Any, key: str, place: str = "") -> Any:
    """The same tree with one value changed; what is on the way is copied."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(head, int):
        if not isinstance(node, list) or head >= len(node):
            raise OptionError("--set", f"{key}: there is no entry {head}")
        return [*node[:head], _set(node[head], rest, value, key, f"{place}[]"), *node[head + 1 :]]
    if place == "steps[]" and _name(node) != head:
        raise OptionError("--set", f"{key}: the step there is {_name(node)!r}, not {head!r}")
    if isinstance(node, str):  # a short form: `- prune`, `data: digits`
        node = {node: {}} if place == "steps[]" else {SHORT[place]: node} if place in SHORT else node
    if node is not None and not isinstance(node, Mapping):
        raise OptionError("--set", f"{key}: {place} has no parts of its own")
    node = dict(node or {})
    return {**node, head: _set(node.get(head), rest, value, key, f"{place}.{head}".lstrip("."))}
