# SPDX-License-Identifier: Apache-2.0
import pickle

import pytest

from featherweight import errors
from featherweight.errors import (
    CheckFailed,
    Diverged,
    FeatherweightError,
    InputError,
    OptionError,
    StorageError,
    clean,
    closest,
    missing_extra,
    shown,
)

HOSTILE = ["a\nb", "\x1b[31mred", "r\u202eelif", "\udcff", "nul\0", "ü" * 3000, "%s{0}", "<b>", "\u2028"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_refusal_is_one_clean_ascii_safe_line_whatever_the_names(name: str) -> None:
    line = str(InputError(name, "corrupt", f"tensor {name} is bad"))
    assert len(line) <= 500
    assert line.isprintable()
    assert line.split(": ")[0].isascii()
    line.encode("utf-8")


def test_a_refusal_names_file_reason_and_remedy() -> None:
    error = InputError("photos/cat.jpg", "truncated", "stops early; copy it again")
    assert str(error) == "photos/cat.jpg: truncated: stops early; copy it again"
    assert (error.path, error.reason, error.exit_code) == ("photos/cat.jpg", "truncated", 2)
    assert isinstance(error, ValueError)


def test_a_long_path_keeps_its_end_and_a_bytes_path_is_shown() -> None:
    assert shown("d/" * 500 + "cat.jpg").endswith("/cat.jpg")
    assert len(shown("\x01" * 1000)) <= errors.NAME_LIMIT
    assert shown(b"caf\xff.jpg") == "caf\\udcff.jpg"


def test_an_unknown_reason_is_our_own_mistake() -> None:
    with pytest.raises(LookupError, match="tyop"):
        InputError("a", "tyop", "b")


@pytest.mark.parametrize(
    "error",
    [InputError("a.jpg", "empty", "x"), OptionError("--lr", "x"), StorageError("x"), missing_extra("a", "b", "c")],
)
def test_an_error_survives_the_way_between_processes(error: FeatherweightError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_exit_codes_are_those_of_the_command_line() -> None:
    assert [e.exit_code for e in (CheckFailed, Diverged, StorageError)] == [1, 1, 1]
    assert [e.exit_code for e in (InputError, OptionError, type(missing_extra("a", "b", "c")))] == [2, 2, 2]


def test_a_missing_part_says_how_to_install_it() -> None:
    error = missing_extra("export.onnx", "onnx", "onnx")
    assert isinstance(error, ImportError)
    assert str(error) == "export.onnx needs onnx: pip install 'featherweight[onnx]'"


def test_closest_helps_only_where_something_is_close() -> None:
    known = ["ratio", "importance", "round_to"]
    assert closest("ration", known) == "did you mean 'ratio'? "
    assert closest("zebra", known) == ""


def test_every_message_is_cut_in_the_middle() -> None:
    text = clean("start " + "x" * 10_000 + " end")
    assert len(text) == 500
    assert text.startswith("start")
    assert text.endswith("end")
    assert len(str(FeatherweightError("y" * 5000))) == 500
