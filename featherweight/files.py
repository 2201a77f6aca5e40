# SPDX-License-Identifier: Apache-2.0
"""Writing without losing anything: publish a file whole or not at all, move a pointer, hold a folder.

A file is written beside its final name, flushed to the disk, checked and only then renamed, so that a kill or a full
disk leaves the old one. What this cannot promise is what a network file system or a lying disk makes of fsync.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from featherweight.errors import FeatherweightError, InputError, StorageError, shown

LOCKS = os.name != "nt"
if LOCKS:
    import fcntl

Buffer = bytes | bytearray | memoryview
PathLike = str | os.PathLike[str]

TEMPORARY = ".fw-"  # how the name of an unfinished file begins
STALE_SECONDS = 24 * 3600  # without file locks, an unfinished file this old has no writer any more
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_held: set[int] = set()


def publish(path: PathLike, data: Buffer | Iterable[Buffer]) -> None:
    """Write `data` (bytes, or pieces in order) to `path` whole or not at all; StorageError, with figures, if not."""
    pieces = [data] if isinstance(data, (bytes, bytearray, memoryview)) else list(data)
    publish_stream(path, pieces, size=sum(memoryview(piece).nbytes for piece in pieces))


def publish_stream(path: PathLike, pieces: Iterable[Buffer], *, size: int = 0) -> None:
    """`publish` piece by piece as they come; an error that `pieces` raises leaves nothing. `size`: if it is known."""
    target, written = Path(path), 0
    temporary: Path | None = None
    try:
        temporary, stream = _unfinished(target)
        with stream:
            for piece in pieces:
                stream.write(piece)
                written += memoryview(piece).nbytes
            stream.flush()
            os.fsync(stream.fileno())
            if os.fstat(stream.fileno()).st_size != written:
                raise OSError(errno.EIO, "the file is shorter than what was written")
            os.replace(temporary, target)
        temporary = None
        _sync_folder(target.parent)
    except OSError as error:
        raise _storage_error(error, target, max(size, written)) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def publish_json(path: PathLike, value: object) -> None:
    """`publish` for plain data; ValueError for a number JSON has no word for."""
    publish(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def _unfinished(target: Path) -> tuple[Path, BinaryIO]:
    """A new file beside `target`, locked for as long as it is open, so that `clean_stale` leaves it alone."""
    while True:
        temporary = target.parent / f"{TEMPORARY}{secrets.token_hex(8)}.tmp"
        stream = os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb")
        if not LOCKS:
            return temporary, stream
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX)
        if temporary.exists():  # a cleaner may have come between creation and lock
            return temporary, stream
        stream.close()


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def _storage_error(error: OSError, target: Path, needed: int) -> StorageError:
    try:
        free = f"{shutil.disk_usage(target.parent).free} bytes free"
    except OSError:
        free = "free space unknown"
    figures = f"needed {needed} bytes, {free}"
    if error.errno in _FULL:
        text = f"disk full: {shown(target)} was not written ({figures}); make room and run the same command again"
        return StorageError(text)
    why = (error.strerror or type(error).__name__).lower()
    return StorageError(f"{shown(target)} was not written: {why} ({figures}); choose a folder that can be written")


def point(link: PathLike, target: PathLike) -> None:
    """Make `link` lead to `target`, in one move: a symbolic link, or a small text file where links are not allowed."""
    place = Path(link)
    goal = os.path.relpath(target, place.parent)
    if place.is_dir() and not place.is_symlink():
        raise StorageError(f"{shown(place)} is a folder, not a pointer; move it away")
    temporary = place.parent / f"{TEMPORARY}{secrets.token_hex(8)}.tmp"
    try:
        os.symlink(goal, temporary, target_is_directory=True)
    except (OSError, NotImplementedError):
        publish(place, goal.encode("utf-8", "surrogateescape") + b"\n")
        return
    try:
        os.replace(temporary, place)
        _sync_folder(place.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _storage_error(error, place, len(goal)) from error


def pointed(link: PathLike) -> Path:
    """Where `link`, made by `point`, leads; InputError `missing` if there is nothing."""
    place = Path(link)
    if place.is_symlink():
        goal = place.parent / os.readlink(place)
    elif place.is_file() and place.stat().st_size <= 4096:
        goal = place.parent / os.fsdecode(place.read_bytes().rstrip(b"\n"))
    else:
        goal = place
    if not goal.exists():
        raise InputError(place, "missing", "leads to nothing; name the folder itself")
    return goal


@contextlib.contextmanager
def lock(folder: PathLike) -> Iterator[None]:
    """Hold `folder` for this process; a second holder is refused at once. Ends with the process, however it ends."""
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        handle = os.open(place / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _storage_error(error, place / ".lock", 0) from error
    _take(handle, place)
    _held.add(handle)
    try:
        yield
    finally:
        if handle in _held:  # not in a forked child, where the number may already mean another file
            _held.discard(handle)
            os.close(handle)


def _take(handle: int, place: Path) -> None:
    if not LOCKS:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        text = f"{shown(place)} is in use by another process; wait for it, or choose another name"
        raise FeatherweightError(text) from error


def _let_go() -> None:
    """In a forked child: a data worker that outlives a killed parent must not keep its folder locked."""
    for handle in _held:
        with contextlib.suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def clean_stale(folder: PathLike) -> None:
    """Remove unfinished files in `folder` whose writer is gone."""
    for temporary in sorted(Path(folder).glob(f"{TEMPORARY}*.tmp")):
        with contextlib.suppress(OSError):
            if temporary.is_symlink() or _abandoned(temporary):
                temporary.unlink()


def _abandoned(temporary: Path) -> bool:
    if not LOCKS:
        return time.time() - temporary.stat().st_mtime > STALE_SECONDS
    handle = os.open(temporary, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    finally:
        os.close(handle)
