# SPDX-License-Identifier: Apache-2.0
"""What went wrong, where, and what would be right: every error the package raises on purpose, each one clean line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable

MESSAGE_LIMIT = 500  # characters of one message
NAME_LIMIT = 160  # characters of a file name inside a message

# Why an input was refused. Other programs match on these words, so one is added here before it is used.
# fmt: off
REASONS = frozenset({
    "bad_box", "bad_class", "bad_dimensions", "bad_header", "bad_json", "bad_mask", "bad_name", "bad_row",
    "bad_schema", "bad_shape", "bad_type", "bad_xml", "bad_yaml", "changed", "checksum", "clipped", "corrupt",
    "dtype_mismatch", "duplicate_box", "duplicate_id", "duplicate_key", "duplicate_name", "empty", "encoding",
    "missing", "missing_key", "non_finite", "not_a_checkpoint", "not_an_artifact", "not_an_image", "not_regular_file",
    "out_of_range", "shape_mismatch", "size_mismatch", "too_large", "trailing", "truncated", "unexpected_key",
    "unknown_category", "unknown_image", "unknown_key", "unknown_name", "unreadable", "unsafe_path", "unsafe_pickle",
    "unsupported_format", "unsupported_op", "version", "wrong_order",
})
# fmt: on


def clean(text: object, *, limit: int = MESSAGE_LIMIT) -> str:
    """`text` as one printable line of at most `limit` characters; the middle goes first."""
    line = str(text)
    if len(line) > 4 * limit:
        line = line[: 2 * limit] + line[-2 * limit :]
    line = "".join(c if c.isprintable() else _escaped(c) for c in line)
    if len(line) > limit:
        tail = limit // 3
        line = line[: limit - tail - 3] + "..." + line[-tail:]
    return line


def shown(name: object, *, limit: int = NAME_LIMIT) -> str:
    """A file, class or tensor name for a message: printable ASCII, shortened, never able to move a cursor."""
    text = os.fsdecode(name) if isinstance(name, (bytes, os.PathLike)) else str(name)
    if len(text) > limit:  # the end of a path says more than its start
        text = "..." + text[3 - limit :]
    text = "".join(c if c.isascii() and c.isprintable() else _escaped(c) for c in text)
    return text if len(text) <= limit else "..." + text[3 - limit :]


def _escaped(char: str) -> str:
    return ascii(char)[1:-1]


class FeatherweightError(Exception):
    """Base of what the package raises for its user; `exit_code` is what the command line returns."""

    exit_code = 1

    def __str__(self) -> str:
        return clean(super().__str__())


class InputError(FeatherweightError, ValueError):
    """A file that cannot be used: `path`, `reason` (one of REASONS) and a text that says what would be right."""

    exit_code = 2

    def __init__(self, path: object, reason: str, text: str) -> None:
        if reason not in REASONS:
            raise LookupError(f"{reason!r} is not a known reason code")
        super().__init__(path, reason, text)  # all three, so that the error survives a trip between processes
        self.path = path
        self.reason = reason
        self.text = text

    def __str__(self) -> str:
        head = f"{shown(self.path)}: {self.reason}: "
        return head + clean(self.text, limit=MESSAGE_LIMIT - len(head))


class OptionError(FeatherweightError, ValueError):
    """A mistake in an option: `where` is the place the user typed it (`steps[2].prune`, `--lr`)."""

    exit_code = 2

    def __init__(self, where: str, text: str) -> None:
        super().__init__(where, text)
        self.where = where
        self.text = text

    def __str__(self) -> str:
        return clean(f"{self.where}: {self.text}")


class CheckFailed(FeatherweightError):
    """A check that was asked for did not hold: parity of an export, a budget."""


class Diverged(FeatherweightError):
    """Training met a number that is not finite; the message names the step and the term."""


class StorageError(FeatherweightError, OSError):
    """The disk would not take the bytes; the file that was there before is untouched."""


class MissingExtra(FeatherweightError, ImportError):
    """A part of the package that is not installed; the message is the command that installs it."""

    exit_code = 2


def closest(word: str, known: Iterable[str]) -> str:
    """`did you mean 'ratio'? ` for the nearest of `known`, or nothing; made to stand in the middle of a message."""
    found = difflib.get_close_matches(str(word)[:100], [str(k) for k in known], n=1, cutoff=0.6)
    return f"did you mean '{found[0]}'? " if found else ""


def missing_extra(feature: str, package: str, extra: str) -> MissingExtra:
    """The error for `feature` when `package`, part of `extra`, cannot be imported."""
    return MissingExtra(f"{feature} needs {package}: pip install 'featherweight[{extra}]'")
