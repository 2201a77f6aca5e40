# SPDX-License-Identifier: Apache-2.0
"""Binding data to a signature: what is accepted comes out in the declared types, the rest is one InputError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from featherweight.binding import Filled, Ratio, Within, bind, options_of
from featherweight.errors import InputError, OptionError


@dataclass(frozen=True)
class Inner:
    depth: int = 1

    def __post_init__(self) -> None:
        if self.depth == 13:
            raise OptionError("depth", "13 is unlucky")


@dataclass(frozen=True)
class Outer:
    name: str
    share: Ratio = 0.5
    count: Annotated[int, Within(1, 9)] | None = None
    rate: Annotated[float, Within(0, 1, open_low=True, open_high=True)] = 0.1
    kind: Literal["a", "bc", 8] = "a"
    flag: bool = False
    inner: Inner | None = None
    many: Sequence[int] = ()
    some: Annotated[Sequence[Ratio], Filled()] = (1.0,)
    table: Mapping[str, int] = field(default_factory=dict)
    any: Any = None
    either: int | str = 0


def function(first: object, *, size: Annotated[int, Within(1, 3)] = 1, names: Sequence[str] = ()) -> None: ...


def nothing(first: object) -> None: ...


@pytest.mark.parametrize(
    ("key", "given", "bound"),
    [
        ("share", 1, 1.0),
        ("share", 0, 0.0),
        ("count", 3.0, 3),
        ("count", None, None),
        ("kind", "bc", "bc"),
        ("kind", 8, 8),
        ("flag", True, True),
        ("inner", {"depth": 2}, Inner(2)),
        ("inner", {}, Inner()),
        ("inner", None, None),
        ("many", [1, 2.0], (1, 2)),
        ("many", [], ()),
        ("some", [0.5, 1], (0.5, 1.0)),
        ("table", {"a": 1}, {"a": 1}),
        ("any", {"x": [None]}, {"x": [None]}),
        ("either", "text", "text"),
        ("either", 3, 3),
    ],
)
def test_what_fits_comes_out_in_its_declared_type(key: str, given: object, bound: object) -> None:
    found = getattr(bind(Outer, {"name": "n", key: given}, "", "file"), key)
    assert found == bound and type(found) is type(bound)


@pytest.mark.parametrize(
    ("key", "given", "reason", "said"),
    [
        ("share", 1.5, "out_of_range", "share: 1.5 is not 0..1"),
        ("share", float("nan"), "out_of_range", "is not 0..1"),
        ("share", float("-inf"), "out_of_range", "is not 0..1"),
        ("share", "0.5", "bad_type", "share: must be a number, not '0.5'"),
        ("share", True, "bad_type", "must be a number, not True"),
        ("share", 10**400, "out_of_range", "too large a number"),
        ("count", 0, "out_of_range", "count: 0 is not 1..9"),
        ("count", 10**40, "out_of_range", "more than 30 digits"),
        ("count", 2.5, "bad_type", "a whole number, not 2.5"),
        ("count", False, "bad_type", "a whole number, not False"),
        ("rate", 0, "out_of_range", "0 is not above 0 to below 1"),
        ("rate", 1, "out_of_range", "1 is not above 0 to below 1"),
        ("kind", "b", "unknown_name", "kind: no 'b'; did you mean 'bc'? Known: a, bc, 8"),
        ("kind", True, "unknown_name", "kind: no True"),
        ("kind", {"a": 1}, "unknown_name", "kind: no dict of 1"),
        ("flag", 1, "bad_type", "true or false, not 1"),
        ("flag", None, "bad_type", "true or false, not None"),
        ("inner", 3, "bad_type", "inner: must be a mapping of options, not 3"),
        ("inner", {"dpth": 3}, "unknown_key", "inner: no 'dpth' here; did you mean 'depth'?"),
        ("inner", {"depth": "x"}, "bad_type", "inner.depth: must be a whole number"),
        ("inner", {"depth": 13}, "out_of_range", "inner: depth: 13 is unlucky"),
        ("many", "12", "bad_type", "many: must be a list, not '12'"),
        ("many", {"a": 1}, "bad_type", "many: must be a list, not dict of 1"),
        ("many", [1, "x"], "bad_type", "many[1]: must be a whole number, not 'x'"),
        ("many", [[1]], "bad_type", "many[0]: must be a whole number, not list of 1"),
        ("some", [], "out_of_range", "at least one"),
        ("some", [2], "out_of_range", "some[0]: 2 is not 0..1"),
        ("table", [1], "bad_type", "table: must be a mapping, not list of 1"),
        ("table", {"a": "b"}, "bad_type", "table.a: must be a whole number"),
        ("table", {1: 1}, "bad_type", "table: a key: must be text, not 1"),
        ("either", 1.5, "bad_type", "either: must be text, not 1.5"),
        ("either", None, "bad_type", "either: is empty"),
        ("name", None, "bad_type", "name: must be text, not None"),
        ("nmae", 1, "unknown_key", "top level: no 'nmae' here; did you mean 'name'?"),
        ("\x1b[2Jx", 1, "unknown_key", r"no '\x1b[2Jx' here"),
        ("x" * 10_000, 1, "unknown_key", "here; Known: name"),
        ("share", "y" * 10_000, "bad_type", "must be a number"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(key: str, given: object, reason: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        bind(Outer, {"name": "n", key: given}, "", "file")
    line = str(caught.value)
    assert caught.value.reason == reason
    assert said.replace("\\", "") in line.replace("\\", "")
    assert line.isprintable() and len(line) <= 500


def test_a_missing_field_and_a_field_that_is_not_to_be_set() -> None:
    with pytest.raises(InputError, match="missing_key: steps: needs 'name'"):
        bind(Outer, {}, "steps", "file")
    with pytest.raises(InputError, match="unknown_key: top level: no 'share' here"):
        bind(Outer, {"name": "n", "share": 1}, "", "file", skip=("share",))
    with pytest.raises(InputError, match=r"no 'stpes' here; did you mean 'steps'\? Known: steps, name"):
        bind(Outer, {"name": "n", "stpes": 1}, "", "file", also=("steps",))


def test_a_function_gives_its_checked_keyword_options() -> None:
    assert bind(function, {"size": 2.0, "names": ["a"]}, "x", "file") == {"size": 2, "names": ("a",)}
    assert list(options_of(function)) == ["size", "names"]
    with pytest.raises(InputError, match="no 'first' here"):
        bind(function, {"first": 1}, "x", "file")
    with pytest.raises(InputError, match="no 'size' here; It takes no options"):
        bind(nothing, {"size": 1}, "x", "file")
