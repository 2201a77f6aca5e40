# SPDX-License-Identifier: Apache-2.0
"""Binding data from a file to a signature: unknown keys, wrong types and numbers out of range are said in one line.

`bind` reads the annotations of a dataclass or function, so that a recipe, a command line and Python share one set of
names, types and defaults.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from .errors import InputError, OptionError, closest, shown


@dataclass(frozen=True)
class Within:
    """The range of a number, ends included unless they are open."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        above = self.low < value if self.open_low else self.low <= value
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if not (self.open_low or self.open_high):
            return f"{self.low:g}..{self.high:g}"
        low, high = ("above" if self.open_low else "from"), ("to below" if self.open_high else "to")
        return f"{low} {self.low:g} {high} {self.high:g}"


@dataclass(frozen=True)
class Filled:
    """Of a list: at least one entry."""

    def holds(self, value: Sequence[Any]) -> bool:
        return len(value) > 0

    def __str__(self) -> str:
        return "a list of at least one"


Ratio = Annotated[float, Within(0.0, 1.0)]


def bind(
    target: Callable[..., Any],
    data: Mapping[str, Any],
    where: str,
    path: str | Path,
    *,
    skip: Sequence[str] = (),
    also: Sequence[str] = (),
) -> Any:
    """A dataclass made from `data`; for a function, its keyword-only options as a checked dict.

    skip: names that are not to be set here; also: further names a message may suggest. Raises InputError(path, reason,
    "where.key: ...").
    """
    known = {name: kind for name, kind in options_of(target).items() if name not in skip}
    found = {}
    for key, value in data.items():
        place = f"{where}.{key}".lstrip(".") if isinstance(key, str) else where
        if key not in known:
            names = [*also, *known]
            listed = f"Known: {', '.join(names)}." if names else "It takes no options."
            text = f"no {shown(key, limit=60)!r} here; {closest(str(key), names)}{listed}"
            raise InputError(path, "unknown_key", f"{where or 'top level'}: {text}")
        found[key] = _value(known[key], value, place, path)
    if not dataclasses.is_dataclass(target):
        return found
    for field in dataclasses.fields(target):
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and field.name in known and field.name not in found:
            raise InputError(path, "missing_key", f"{where or 'top level'}: needs {field.name!r}")
    try:
        return target(**found)
    except OptionError as error:
        raise InputError(path, "out_of_range", f"{where}: {error}".removeprefix(": ")) from None


def options_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Name -> annotation of what can be set: the fields of a dataclass, the keyword-only parameters of a function."""
    hints = typing.get_type_hints(target, include_extras=True)
    if dataclasses.is_dataclass(target):
        return {field.name: hints[field.name] for field in dataclasses.fields(target)}
    parameters = inspect.signature(target).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}


def _value(kind: Any, value: Any, place: str, path: str | Path) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        bound = _value(args[0], value, place, path)
        for rule in args[1:]:
            if isinstance(rule, (Within, Filled)) and bound is not None and not rule.holds(bound):
                raise InputError(path, "out_of_range", f"{place}: {_short(value)} is not {rule}")
        return bound
    if origin in (typing.Union, types.UnionType):
        return _one_of(args, value, place, path)
    if origin is Literal:
        if value not in args or isinstance(value, bool) not in {isinstance(a, bool) for a in args}:
            words = [str(a) for a in args]
            raise InputError(
                path,
                "unknown_name",
                f"{place}: no {_short(value)}; {closest(str(value), words)}Known: {', '.join(words)}",
            )
        return value
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise InputError(path, "bad_type", f"{place}: must be a mapping of options, not {_short(value)}")
        return bind(kind, value, place, path)  # type: ignore[arg-type]
    if origin in (list, tuple, Sequence) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise InputError(path, "bad_type", f"{place}: must be a list, not {_short(value)}")
        return tuple(_value(args[0], item, f"{place}[{i}]", path) for i, item in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise InputError(path, "bad_type", f"{place}: must be a mapping, not {_short(value)}")
        keys = [_value(args[0], key, f"{place}: a key", path) for key in value]
        return {key: _value(args[1], value[key], f"{place}.{key}", path) for key in keys}
    return _scalar(kind, value, place, path)


def _one_of(kinds: Sequence[Any], value: Any, place: str, path: str | Path) -> Any:
    if value is None:
        if type(None) in kinds:
            return None
        raise InputError(path, "bad_type", f"{place}: is empty; give a value")
    wanted = [kind for kind in kinds if kind is not type(None)]
    for number, kind in enumerate(wanted):
        try:
            return _value(kind, value, place, path)
        except InputError as error:
            if error.reason != "bad_type" or number == len(wanted) - 1:
                raise
    raise InputError(path, "bad_type", f"{place}: {_short(value)} is of no type that fits")


def _scalar(kind: Any, value: Any, place: str, path: str | Path) -> Any:
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > 2**53:
            raise InputError(path, "out_of_range", f"{place}: {_short(value)} is too large a number")
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if type(value) is not kind:
        names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise InputError(
            path,
            "bad_type",
            f"{place}: must be {names.get(kind, getattr(kind, '__name__', str(kind)))}, not {_short(value)}",
        )
    return value


def _short(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    return shown(
        repr(value) if not isinstance(value, (Mapping, list)) else f"{type(value).__name__} of {len(value)}", limit=60
    )
