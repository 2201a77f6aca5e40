# SPDX-License-Identifier: Apache-2.0
"""A model opened in a process of its own: how long until its first answer, and how much memory that takes.

`python -m featherweight.fresh` is that process; `started` begins it and reads what it found. Weights of a named model
are random, as time does not depend on them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any, NamedTuple

from featherweight import measure, sources
from featherweight.errors import CheckFailed, shown

TIMEOUT_S = 600


class Start(NamedTuple):
    """Milliseconds, and bytes of the whole process at most."""

    import_ms: float  # from the start of the process until the package is there
    load_ms: float  # the file read, checked and compiled; of a torch model built
    first_ms: float  # the first answer
    ready_ms: float  # from the start of the process to the end of the first answer
    peak_bytes: int | None
    warm: bool  # compiled models came from the cache


def runnable(source: Any, **options: Any) -> measure.Runnable:
    """`measure.runnable` of whatever names a model."""
    if not isinstance(source, sources.Source):
        return measure.runnable(source, **options)
    backend = options.pop("backend", None)
    if source.backend != "torch":
        return measure.runnable(source.path, backend=source.backend, **options)
    options.pop("mode", None)
    options.pop("shapes", None)
    options.pop("fixed", None)
    model = sources.module(source, untrained=True)
    told = sources.preprocess_of(source, model)
    options["resolution"] = options.get("resolution") or (told.size if told else None)
    return measure.runnable(model, backend=backend, **options)


def started(source: sources.Source, *, cache: str | os.PathLike[str] | None = None, **options: Any) -> Start:
    """The model of this source, opened anew with the options of `measure.runnable`; CheckFailed where it stops."""
    told = {
        "model": source.name or os.fspath(source.path or ""),
        "backend": source.backend,
        "arch": source.arch,
        "cache": None if cache is None else os.fspath(cache),
        "options": options,
        "began": time.time(),
    }
    command = [sys.executable, "-m", "featherweight.fresh", json.dumps(told)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
        raise CheckFailed(f"{shown(told['model'])} does not start in a process of its own: {last}")
    return Start(**json.loads(done.stdout.splitlines()[-1]))


def main(argv: list[str]) -> int:
    """One model, one answer, one line of JSON."""
    told = json.loads(argv[0])
    began = float(told["began"])
    imported = time.time()
    source = sources.find(told["model"], backend=told["backend"], arch=told["arch"])
    warm = False
    if told["cache"] and source.backend != "torch":
        call, warm = _from_cache(source, told)
    else:
        call = runnable(source, **told["options"])
    loaded = time.time()
    call()
    done = time.time()
    times = [1000 * (b - a) for a, b in ((began, imported), (imported, loaded), (loaded, done), (began, done))]
    print(json.dumps({**dict(zip(Start._fields, times, strict=False)), "peak_bytes": measure.peak_memory_bytes(),
                      "warm": warm}))  # fmt: skip
    return 0


def _from_cache(source: sources.Source, told: dict[str, Any]) -> tuple[Any, bool]:
    from featherweight.runtime import feeds
    from featherweight.runtime.session import open_session

    options = dict(told["options"])
    known = {key: options.pop(key) for key in ("threads", "precision") if key in options}
    path = source.path or ""
    session = open_session(path, backend=source.backend, cache=told["cache"], **known)
    feed = feeds.made(session.inputs, session.metadata, path, **options)
    return (lambda: session.run(feed)), session.warm


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
