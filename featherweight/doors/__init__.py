# SPDX-License-Identifier: Apache-2.0
"""The one reader for each kind of input. A door looks at the file before opening it, reads its bytes once, compares
every number in a header with the file's own size before using it, and raises nothing but InputError."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from featherweight.errors import FeatherweightError, InputError

Path = str | bytes | os.PathLike[str]


@contextlib.contextmanager
def door(path: object, reason: str, text: str = "cannot be understood") -> Iterator[None]:
    """Whatever goes wrong while a file is read comes out as an InputError; the only `except Exception` there is."""
    try:
        yield
    except FeatherweightError:
        raise
    except MemoryError as error:
        raise InputError(path, "too_large", "does not fit in memory") from error
    except Exception as error:
        raise InputError(path, reason, f"{text} ({type(error).__name__}: {error})") from error


def open_input(path: Path, *, max_bytes: int) -> tuple[BinaryIO, int]:
    """An open regular file and its size. Links are followed; devices, pipes and folders are refused unopened."""
    try:
        _regular(path, os.stat(path))
        stream = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    try:
        status = os.fstat(stream.fileno())
        _regular(path, status)  # again: the name may lead elsewhere by now
        size = status.st_size
        if size == 0:
            raise InputError(path, "empty", "has no bytes; was the copy interrupted?")
        if size > max_bytes:
            raise InputError(path, "too_large", f"has {size} bytes, the limit is {max_bytes}")
    except BaseException:
        stream.close()
        raise
    return stream, size


def read_input(path: Path, *, max_bytes: int) -> bytes:
    """All bytes of a regular file, at most `max_bytes`."""
    stream, size = open_input(path, max_bytes=max_bytes)
    with stream:
        try:
            data = stream.read(size + 1)
        except OSError as error:
            raise _unreadable(path, error) from error
    if len(data) != size:
        raise InputError(path, "unreadable", "changed while it was being read; try again")
    return data


def text_of(data: bytes, name: object) -> str:
    """UTF-8 text, with or without a byte-order mark."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(name, "encoding", "is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(name, "encoding", f"is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
        raise InputError(path, "not_regular_file", f"is {kind}, not a file")


def _unreadable(path: Path, error: OSError | ValueError) -> InputError:
    if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENOTDIR):
        return InputError(path, "missing", "does not exist; check the name")
    why = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "not a usable name"
    return InputError(path, "unreadable", f"cannot be opened: {why}")
