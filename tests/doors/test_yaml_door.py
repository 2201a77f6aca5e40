# SPDX-License-Identifier: Apache-2.0
"""YAML that means what it looks like, and refusals that say the line."""

import math
import time
from pathlib import Path
from typing import Any

import pytest

from featherweight.doors import yaml as door
from featherweight.errors import InputError

PLAIN = {
    "1": 1, "-3": -3, "+4": 4, "0": 0, "1e-3": 1e-3, "1E5": 1e5, ".5": 0.5, "1.": 1.0, "-0.25": -0.25,
    "true": True, "false": False, "null": None, "~": None, "": None,
    "1e400": math.inf, ".inf": math.inf, "-.inf": -math.inf,
    # text, though YAML 1.1 or somebody's reader would make something else of it
    "yes": "yes", "no": "no", "on": "on", "off": "off", "y": "y", "True": "True", "TRUE": "TRUE", "NULL": "NULL",
    "010": "010", "0x1f": "0x1f", "0o17": "0o17", "0b1": "0b1", "1_000": "1_000", "1:30": "1:30", "1,5": "1,5",
    "2024-01-01": "2024-01-01", "2024-01-01T00:00:00Z": "2024-01-01T00:00:00Z", "=": "=", "<<": "<<", "1e": "1e",
    "nan": "nan", "inf": "inf", "1.2.3": "1.2.3", "--1": "--1", "\u0661": "\u0661", "00": "00", "01.5": "01.5",
    "'1'": "1", '"true"': "true", "''": "", "'~'": "~",
}  # fmt: skip


@pytest.mark.parametrize("written", PLAIN)
def test_a_value_is_what_it_looks_like(written: str) -> None:
    found = door.parse(f"a: {written}", "t.yaml")["a"]
    assert found == PLAIN[written]
    assert type(found) is type(PLAIN[written])


def test_nan_is_a_number_for_the_reader_to_refuse() -> None:
    assert math.isnan(door.parse("a: .nan", "t.yaml")["a"])


def test_structure_comments_blocks_and_byte_order_mark() -> None:
    text = "\ufeff# a recipe\r\na: 1 # one\r\nb:\r\n  - {c: [1, two]}\r\n  - |\r\n    x\r\n    y\r\n7: seven\r\n"
    assert door.parse(text.encode(), "t.yaml") == {"a": 1, "b": [{"c": [1, "two"]}, "x\ny\n"], 7: "seven"}
    assert door.parse("%YAML 1.2\n---\na: 1\n...\n", "t.yaml") == {"a": 1}


REFUSED = {
    "a: &x 1": ("bad_yaml", 1),
    "a: 1\nb: *x": ("bad_yaml", 2),
    "a: 1\n<<: {b: 2}": ("bad_yaml", 2),
    "a: !!int 3": ("bad_yaml", 1),
    "a: !!python/name:os.system": ("bad_yaml", 1),
    "a: !!binary aGk=": ("bad_yaml", 1),
    "a: !!set {x}": ("bad_yaml", 1),
    "a: !local 1": ("bad_yaml", 1),
    "a: ! 1": ("bad_yaml", 1),
    "a: !<tag:x> 1": ("bad_yaml", 1),
    "!!map\na: 1": ("bad_yaml", 1),
    "%TAG ! tag:x,2000:\n---\na: 1": ("bad_yaml", 1),
    "a: 1\n---\nb: 2": ("bad_yaml", 2),
    "a: 1\n--- x": ("bad_yaml", 2),
    "a: 1\n\na: 2": ("duplicate_key", 3),
    "a:\n  b: 1\n  b: 1": ("duplicate_key", 3),
    "a: 1\n'a': 2": ("duplicate_key", 2),
    "1: a\n1: b": ("duplicate_key", 2),
    "? [a]\n: 1": ("bad_yaml", 1),
    "? {a: 1}\n: 1": ("bad_yaml", 1),
    "true: 1": ("bad_yaml", 1),
    "1.5: 1": ("bad_yaml", 1),
    "~: 1": ("bad_yaml", 1),
    "a: b: c": ("bad_yaml", 1),
    "a:\n\tb: 1": ("bad_yaml", 2),
    "a: [1": ("bad_yaml", 1),
    "a: 'x": ("bad_yaml", 1),
    "a: @x": ("bad_yaml", 1),
    'a: "\\ud800"': ("bad_yaml", 1),
    'a: "\\0"': ("bad_yaml", 1),
    'a: "\\x1b[31m"': ("bad_yaml", 1),
    'a: "\\U00110000"': ("bad_yaml", None),
    "a: " + "9" * 31: ("bad_type", 1),
    "a: " + "9" * 6000: ("bad_type", 1),
    "a: " + "[" * 40 + "]" * 40: ("bad_yaml", 1),
    "- a": ("bad_schema", None),
    "text": ("bad_schema", None),
    "7": ("bad_schema", None),
    "~": ("bad_schema", None),
    "# nothing": ("empty", None),
    "\n": ("empty", None),
    "a: \x01": ("encoding", None),
    "a: \ud800": ("encoding", None),
}


@pytest.mark.parametrize("text", REFUSED)
def test_the_rest_is_refused_with_its_line(text: str) -> None:
    reason, line = REFUSED[text]
    with pytest.raises(InputError) as caught:
        door.parse(text, "t.yaml")
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)
    if line:
        assert f"line {line}:" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"a: \xff", "encoding"),
        ("a: 1".encode("utf-16"), "encoding"),
        ("a: 1".encode("utf-32-le"), "encoding"),
        (bytes(range(256)), "encoding"),
        (b"#" * (door.MAX_BYTES + 1), "too_large"),
    ],
)
def test_what_is_not_a_short_text_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        door.read(path)
    assert caught.value.reason == reason
    assert "t.yaml" in str(caught.value)


def test_bombs_are_refused_at_once() -> None:
    laughs = "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9))
    merges = "a: &a {x: 1}\n" + "\n".join(f"b{i}: &b{i} {{<<: [*a, *a]}}" for i in range(30))
    for bomb in (laughs, merges, "a: " + "[" * 100_000, "a: " + "{a: " * 50_000, "- " * 100_000, "? " * 100_000):
        start = time.perf_counter()
        with pytest.raises(InputError):
            door.parse(bomb, "t.yaml")
        assert time.perf_counter() - start < 3


def test_the_largest_allowed_file_is_read_in_bounded_time() -> None:
    line = "k{}: [1, 2.5, text, 'quoted', {{a: b}}]\n"
    text = "".join(line.format(i) for i in range(1000))
    start = time.perf_counter()
    assert len(door.parse(text, "t.yaml")) == 1000
    assert time.perf_counter() - start < 20


def test_what_is_written_is_read_back_the_same() -> None:
    shared = [1, 2]
    texts = [*PLAIN, "a\nb", " x ", "ü", "#", "- a", "a: b", "{", "*a", "&a", "!a", "%", "@", "`", "", "\t", "|", ">"]
    data: dict[str, Any] = {
        "texts": texts, "numbers": [1, -1, 0, 1e-5, 1e22, 0.1, 1.0, math.inf, 10**20], "words": [True, False, None],
        "one": shared, "two": shared, "nested": {"a": {"b": [{"c": []}, {}]}},
        **{text: 1 for text in texts if text != "<<"},
    }  # fmt: skip
    again = door.parse(door.write(data), "t.yaml")
    assert again == data
    assert [type(v) for v in again["numbers"]] == [type(v) for v in data["numbers"]]
