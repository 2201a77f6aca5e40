# SPDX-License-Identifier: Apache-2.0
"""Write what the source already says into the docs: options with their defaults, limits of the readers.

    python tools/fill_reference.py            rewrite the blocks `<!-- generated:begin NAME -->`
    python tools/fill_reference.py --check    do the docs say what the source says?

A default stands in a signature and nowhere else, so these tables are never edited by hand.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from featherweight import composition, files, recipe
from featherweight.binding import Within, options_of
from featherweight.doors import checkpoint, image, jpeg, json, onnx, pickle, safetensors, torchfile, yaml
from featherweight.steps import STEPS

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- generated:begin (\w+) -->\n)(.*?)(<!-- generated:end -->)", re.DOTALL)
MANY = 1e4
LIMITS = (
    ("pixels of a picture", image.MAX_PIXELS, "the option `max_pixels`"),
    ("bytes of a picture", image.MAX_BYTES, ""),
    ("scans of a JPEG", jpeg.MAX_SCANS, ""),
    ("bytes of a recipe", yaml.MAX_BYTES, ""),
    ("levels of a recipe", yaml.MAX_DEPTH, ""),
    ("bytes of a JSON file", json.MAX_BYTES, ""),
    ("levels of a JSON file", json.MAX_DEPTH, ""),
    ("bytes of a weights file", checkpoint.MAX_BYTES, ""),
    ("bytes of a safetensors header", safetensors.MAX_HEADER, ""),
    ("bytes of the pickle in a `.pt` file", torchfile.MAX_PICKLE, ""),
    ("steps of that pickle", pickle.MAX_STEPS, ""),
    ("bytes of an ONNX file", onnx.MAX_BYTES, ""),
)


def rows(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def kind(hint: Any) -> str:
    """An annotation in words: `a number 0..1`, `l1, l2 or taylor`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return " ".join([kind(parts[0]), *(span(part) for part in parts[1:] if isinstance(part, Within))])
    if origin is typing.Literal:
        names = [f"`{part}`" for part in parts]
        return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    if origin in (typing.Union, types.UnionType) and type(None) not in parts:
        return " or ".join(kind(part) for part in parts)
    if type(None) in parts:
        return f"{' or '.join(kind(part) for part in parts if part is not type(None))}, or nothing"
    if origin is not None and origin is not dict and issubclass(origin, Mapping):
        return "a mapping"
    if origin is not None and issubclass(origin, Sequence):
        return f"a list, each {kind(parts[0])}"
    if dataclasses.is_dataclass(hint):
        return "a name, a path or a mapping" if hint in (recipe.ModelSpec, recipe.DataSpec) else "a mapping, see below"
    return {int: "a whole number", float: "a number", str: "a text", bool: "`true` or `false`"}.get(hint, str(hint))


def span(within: Within) -> str:
    """0..1, `1 or more` where the upper end is only there to catch nonsense."""
    if within.high < MANY:
        return str(within)
    return f"above {within.low:g}" if within.open_low else f"{within.low:g} or more"


def remarks(cls: type) -> dict[str, str]:
    """Field -> the comment beside it."""
    return dict(re.findall(r"^    (\w+):[^#\n]*  # (.+)$", inspect.getsource(cls), re.MULTILINE))


def value(default: Any) -> str:
    if default is inspect.Parameter.empty:
        return "required"
    if default is None:
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, (list, tuple)):
        return f"`[{', '.join(map(str, default))}]`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def steps() -> str:
    """Every step: what it does, and its options."""
    parts = []
    for name, step in STEPS.items():
        parts.append(f"**`{name}`** – {(step.__doc__ or '').strip().splitlines()[0]}")
        hints = options_of(step)
        defaults = inspect.signature(step).parameters
        body = [[f"`{key}`", value(defaults[key].default), kind(hint)] for key, hint in hints.items()]
        if body:
            parts.append(rows(("option", "default", "what"), body))
    return "\n\n".join(parts)


def fields_of(cls: type, skip: Sequence[str] = ()) -> str:
    hints = typing.get_type_hints(cls, include_extras=True)
    body = []
    for field in dataclasses.fields(cls):
        made = field.default_factory
        default = field.default if field.default is not dataclasses.MISSING else inspect.Parameter.empty
        default = default if made is dataclasses.MISSING else None
        if field.name not in skip:
            said = "; ".join(filter(None, [kind(hints[field.name]), remarks(cls).get(field.name, "")]))
            body.append([f"`{field.name}`", value(default), said])
    return rows(("key", "default", "what"), body)


def limits() -> str:
    return rows(("what", "at most", "changed by"), [(what, f"{most:,}", how) for what, most, how in LIMITS])


def facts() -> str:
    """What steps state of a model, and which steps give or take it, with their own defaults."""
    known = {name: composition.effect_of(name, recipe.defaults(name)) for name in STEPS}
    body = []
    for fact in composition.FACTS.values():
        given = [f"`{name}`" for name, effect in known.items() if fact in effect.gives]
        taken = [f"`{name}`" for name, effect in known.items() if fact in effect.breaks and fact not in effect.gives]
        kind_ = "natural" if fact.natural else "worked for" if fact.made else "given"
        body.append([fact.says, kind_, ", ".join(given), ", ".join(taken)])
    return rows(("what holds", "", "given by", "taken away by"), body)


SHOW: dict[str, Callable[[], str]] = {
    "steps": steps,
    "facts": facts,
    "recipe": lambda: fields_of(recipe.Recipe, skip=("source",)),
    "train": lambda: fields_of(recipe.Train),
    "model": lambda: fields_of(recipe.ModelSpec),
    "data": lambda: fields_of(recipe.DataSpec),
    "budget": lambda: fields_of(recipe.Budget),
    "text": lambda: fields_of(recipe.Texting),
    "limits": limits,
}


def filled(text: str) -> str:
    def block(found: re.Match[str]) -> str:
        if found[2] not in SHOW:
            raise SystemExit(f"{found[1].strip()}: no {found[2]!r}; known: {', '.join(SHOW)}")
        return f"{found[1]}{SHOW[found[2]]()}\n{found[4]}"

    return BLOCK.sub(block, text)


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    stale = []
    for path in sorted((root / "docs").rglob("*.md")):
        old = path.read_text(encoding="utf-8")
        if (new := filled(old)) != old:
            stale.append(str(path.relative_to(root)))
            if "--check" not in arguments:
                files.publish(path, new.encode())
    print("\n".join(stale) or "nothing to do")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
