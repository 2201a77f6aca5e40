# SPDX-License-Identifier: Apache-2.0
import math
import time
from pathlib import Path

import pytest

from featherweight.doors import json as door
from featherweight.errors import InputError


def reason(text: str | bytes, **options: bool) -> str:
    with pytest.raises(InputError) as caught:
        door.parse(text, "t.json", **options)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def test_values_and_encodings() -> None:
    assert door.parse('{"a": [1, 2.5, null, true, "ü\\u00fc"]}', "t") == {"a": [1, 2.5, None, True, "üü"]}
    assert door.parse("\ufeff[]".encode(), "t") == []
    assert door.parse(" 7 ", "t") == 7


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "duplicate_key"),
        ('[{"x": {"a": 1, "a": 1}}]', "duplicate_key"),
        ("[NaN]", "bad_json"),
        ("[-Infinity]", "bad_json"),
        ("[1e999]", "bad_json"),
        ("[" + "9" * 5000 + "]", "bad_json"),
        ("[" * 100_000, "bad_json"),
        ('{"a":' * 100_000, "bad_json"),
        ("[1,]", "bad_json"),
        ("[1] [2]", "bad_json"),
        ("{'a': 1}", "bad_json"),
        ('"\n"', "bad_json"),
        ('["' + '\\"' * 200_000, "bad_json"),
        ("", "empty"),
        (" \n", "empty"),
        (b"[\xff]", "encoding"),
        ("[1]".encode("utf-16"), "encoding"),
        ("[1]".encode("utf-32"), "encoding"),
    ],
)
def test_the_rest_is_refused(text: str | bytes, wanted: str) -> None:
    start = time.perf_counter()
    assert reason(text) == wanted
    assert time.perf_counter() - start < 2


def test_half_a_surrogate_pair_is_no_character() -> None:
    for text in ('["\\ud800"]', '{"\\udfff": 1}', '[["x", {"a": "\\ud83d"}]]'):
        assert reason(text) == "bad_json"
    assert door.parse('["\\ud83e\\udd86", "\\\\ud800"]', "t") == ["🦆", "\\ud800"]


def test_depth_is_counted_outside_texts_only() -> None:
    deep = "[" * 64 + "]" * 64
    door.parse(deep, "t")
    assert reason(f"[{deep}]") == "bad_json"
    assert door.parse('["' + "[" * 1000 + '"]', "t") == ["[" * 1000]
    assert door.parse('["' + '\\\\\\"[' * 1000 + '"]', "t") == ['\\"[' * 1000]


def test_not_a_number_is_let_through_on_request() -> None:
    found = door.parse("[NaN, Infinity, -Infinity, 1e999]", "t", allow_nan=True)
    assert math.isnan(found[0])
    assert found[1:] == [math.inf, -math.inf, math.inf]


def test_a_file_is_read_through_the_common_door(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1]")
    assert door.read(path) == [1]
    with pytest.raises(InputError, match="too_large"):
        door.read(path, max_bytes=2)
    with pytest.raises(InputError, match=r"b\.json: missing"):
        door.read(tmp_path / "b.json")
