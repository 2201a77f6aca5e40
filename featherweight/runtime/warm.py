# SPDX-License-Identifier: Apache-2.0
"""What a runtime has compiled, kept for the next process.

A file in the cache is named after everything that it depends on: the model's bytes, the runtime's version, the options
and the processor. It begins with a digest over the rest; one that does not fit is compiled anew, as is one that the
runtime refuses. The cache is the user's own, readable by nobody else: a compiled model is as trusted as a program.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import stat
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from featherweight.errors import StorageError, shown
from featherweight.files import publish

MAGIC = b"fwcache1"


class Kept(NamedTuple):
    """A compiled model and what was known of it when it was compiled."""

    blob: bytes
    told: dict[str, Any]


def place(folder: Path, model: Path, runtime: str, version: str, options: Mapping[str, Any]) -> Path:
    """The file of the cache for this model run in this way; StorageError where the folder cannot be used."""
    digest = hashlib.sha256()
    for file in (model, model.with_suffix(".bin")) if model.suffix == ".xml" else (model,):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    about = json.dumps([runtime, version, _processor(), sorted((k, str(v)) for k, v in options.items())])
    digest.update(about.encode())
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{shown(folder)} cannot be a cache: {error.strerror}; name another folder") from error
    return folder / f"{digest.hexdigest()}.{runtime}"


def read(file: Path) -> Kept | None:
    """What is kept there; None where nothing is, or where it is damaged or somebody else's."""
    try:
        about = file.lstat()
        if not stat.S_ISREG(about.st_mode) or (hasattr(os, "getuid") and about.st_uid != os.getuid()):
            return None
        data = file.read_bytes()
    except OSError:
        return None
    start = len(MAGIC) + 32 + 4
    if len(data) < start or not data.startswith(MAGIC):
        return None
    if hashlib.sha256(memoryview(data)[start - 4 :]).digest() != data[len(MAGIC) : start - 4]:
        return None
    (size,) = struct.unpack_from("<I", data, start - 4)
    return Kept(data[start + size :], json.loads(data[start : start + size]))


def write(file: Path, kept: Kept) -> None:
    """Keep it; what another process has written meanwhile is as good."""
    told = json.dumps(kept.told).encode()
    body = struct.pack("<I", len(told)) + told + kept.blob
    publish(file, [MAGIC, hashlib.sha256(body).digest(), body])


@cache
def _processor() -> str:
    """What kernels were chosen for."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("model name", "flags", "Features")
    lines = [line for line in text.splitlines() if line.startswith(wanted)]
    return hashlib.sha256("\n".join(sorted(set(lines))).encode()).hexdigest()
