# SPDX-License-Identifier: Apache-2.0
"""Binding data from a file to a signature: unknown keys, wrong types and numbers out of range are said in one line.

`bind` reads the annotations of a dataclass or function, so that a recipe, a command line and Python share one set of
names, types and defaults.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from .errors import InputError, closest, shown


@dataclass(frozen=True)
class Within:
    """The range of a number, ends included unless `open_low`."""

    low: float
    high: float
    open_low: bool = False

    def holds(self, value: float) -> bool:
        return (
            math.isfinite(value) and (self.low < value if self.open_low else self.low <= value) and value <= self.high
        )

    def __str__(self) -> str:
        return f"{'above ' if self.open_low else ''}{self.low:g}{' up to ' if self.open_low else '..'}{self.high:g}"


Ratio = Annotated[float, Within(0.0, 1.0)]


def bind(
    target: Callable[..., Any], data: Mapping[str, Any], where: str, path: str | Path, *, skip: Sequence[str] = ()
) -> Any:
    """A dataclass made from `data`; for a function, the checked options as a dict (its first parameter is not one).

    Raises InputError(path, reason, "where.key: ...").
    """
    hints = typing.get_type_hints(target, include_extras=True)
    names = [name for name in inspect.signature(target).parameters if name not in skip]
    known = {name: hints[name] for name in (names if dataclasses.is_dataclass(target) else names[1:])}
    found = {}
    for key, value in data.items():
        place = f"{where}.{key}".lstrip(".") if isinstance(key, str) else where
        if key not in known:
            listed = f"Known: {', '.join(known)}." if known else "It takes no options."
            raise InputError(
                path,
                "unknown_key",
                f"{where or 'top level'}: no {shown(key, limit=60)!r} here; {closest(str(key), known)}{listed}",
            )
        found[key] = _value(known[key], value, place, path)
    if not dataclasses.is_dataclass(target):
        return found
    fields = {f.name: f for f in dataclasses.fields(target)}
    for name in known:
        if (
            name not in found
            and fields[name].default is dataclasses.MISSING
            and fields[name].default_factory is dataclasses.MISSING
        ):
            raise InputError(path, "missing_key", f"{where or 'top level'}: needs {name!r}")
    return target(**found)


def _value(kind: Any, value: Any, place: str, path: str | Path) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        bound = _value(args[0], value, place, path)
        for rule in args[1:]:
            if isinstance(rule, Within) and bound is not None and not rule.holds(bound):
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
        return {_value(args[0], k, place, path): _value(args[1], v, f"{place}.{k}", path) for k, v in value.items()}
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
