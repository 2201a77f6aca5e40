# SPDX-License-Identifier: Apache-2.0
"""The latency below which no model comes: that of an empty graph, measured in each runtime.

A budget below it cannot be met by making the model smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featherweight.errors import MissingExtra, OptionError, closest
from featherweight.latency import Conditions, Latency, race
from featherweight.runtime import graphs, session

BACKENDS = ("torch", *session.BACKENDS)


def floor(
    backend: str = "openvino", *, threads: int | None = None, shape: Sequence[int] = (1, 8), budget_s: float = 0.5
) -> Latency:
    """What an empty graph with one float32 input of that shape takes, in milliseconds; MissingExtra without it."""
    if backend not in BACKENDS:
        raise OptionError("backend", f"no {backend!r}; {closest(backend, BACKENDS)}Known: {', '.join(BACKENDS)}")
    threads = threads or session.available_threads()
    call = _torch(tuple(shape), threads) if backend == "torch" else _file(backend, tuple(shape), threads)
    found = race({backend: call}, repeats=200, warmup=20, budget_s=budget_s)[backend]
    runtime = "torch eager" if backend == "torch" else backend
    told = replace(found.conditions, runtime=runtime, threads=threads, batch=int(shape[0]), dtype="float32")
    return replace(found, conditions=told)


def floors(*, threads: int | None = None, shape: Sequence[int] = (1, 8), budget_s: float = 0.5) -> dict[str, Latency]:
    """`floor` of every runtime that is installed."""
    found = {}
    for backend in BACKENDS:
        try:
            found[backend] = floor(backend, threads=threads, shape=shape, budget_s=budget_s)
        except MissingExtra:
            continue
    return found


def _file(backend: str, shape: tuple[int, ...], threads: int) -> Callable[[], Any]:
    how = session.checked(threads=threads)
    opened = session.opened(Path("empty graph"), backend, how, graphs.empty(shape))
    feed = {"x": np.zeros(shape, np.float32)}
    return _Call(lambda: opened.run(feed))


def _torch(shape: tuple[int, ...], threads: int) -> Callable[[], Any]:
    from featherweight.sessions import torch_session

    opened = torch_session(None, {"x": np.zeros(shape, np.float32)}, threads=threads)
    feed = {"x": np.zeros(shape, np.float32)}
    return _Call(lambda: opened.run(feed))


class _Call:
    """A callable with the conditions that a race completes."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call, self.conditions = call, Conditions()

    def __call__(self) -> Any:
        return self.call()
