# SPDX-License-Identifier: Apache-2.0
"""Latency of several models, raced in turns so that the machine's drift is nobody's gain."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from featherweight import measure, sources
from featherweight.errors import OptionError, shown
from featherweight.latency import Latency, verdict


def bench(
    models: Sequence[Any],
    *,
    batch: Sequence[int] = (1, 32),
    threads: int | None = None,
    backend: str | Sequence[str] = "auto",
    against: Any = None,
    resolution: tuple[int, int] | None = None,
    repeats: int = 60,
    budget_s: float = 5.0,
    arch: str | None = None,
) -> list[dict[str, Any]]:
    """Models raced in turns, one race for each batch: a row per model and batch with the ratio to the baseline.

    The baseline is `against`, else the first. backend: one, several, or "all" that a model comes with. Times do not
    depend on weights, so a name stands for a model with random ones.
    """
    if against is not None:
        models = [against, *(model for model in models if model != against)]
    if not models:
        raise OptionError("bench", "names no model")
    wanted = [backend] if isinstance(backend, str) else list(backend)
    entries = [entry for model in models for entry in _entries(model, wanted, arch)]
    names = _unlike([name for name, _ in entries])
    rows = []
    for size in batch:
        options = {"batch": size, "threads": threads, "resolution": resolution}
        runnables = {name: _runnable(source, **options) for name, (_, source) in zip(names, entries, strict=True)}
        times = measure.race(runnables, repeats=repeats, budget_s=budget_s)
        rows += [_row(name, times[name], source) for name, (_, source) in zip(names, entries, strict=True)]
    return rows


def _entries(model: Any, backends: Sequence[str], arch: str | None) -> list[tuple[str, Any]]:
    """(name, source or module) for each backend that is asked for."""
    if not isinstance(model, (str, os.PathLike)):
        return [(type(model).__name__, model)]
    if "all" not in backends:
        found = [sources.find(model, backend=backend, arch=arch) for backend in backends]
    else:
        found = []
        for backend in ("torch", "onnxruntime", "openvino"):
            try:
                found.append(sources.find(model, backend=backend, arch=arch))
            except (OptionError, ValueError):
                continue
        found = found or [sources.find(model, arch=arch)]
    return [(shown(os.fspath(model)) + (f" ({f.backend})" if len(found) > 1 else ""), f) for f in found]


def _unlike(names: Sequence[str]) -> list[str]:
    """The names, numbered where one comes twice."""
    return [name if names.count(name) == 1 else f"{name} #{names[:i].count(name) + 1}" for i, name in enumerate(names)]


def _runnable(source: Any, **options: Any) -> measure.Runnable:
    if not isinstance(source, sources.Source):
        return measure.runnable(source, **options)
    if source.backend != "torch":
        return measure.runnable(source.path, backend=source.backend, **options)
    model = sources.module(source, untrained=True)
    told = sources.preprocess_of(source, model)
    return measure.runnable(model, **{**options, "resolution": options["resolution"] or (told.size if told else None)})


def _row(name: str, found: Latency, source: Any) -> dict[str, Any]:
    c = found.conditions
    path = source.path if isinstance(source, sources.Source) else None
    files = [path, path.with_suffix(".bin")] if path is not None and path.suffix == ".xml" else [path] if path else []
    return {
        "model": name,
        "runtime": c.runtime,
        "dtype": c.dtype,
        "batch": c.batch,
        "threads": c.threads,
        "median_ms": found.median_ms,
        "p10_ms": found.p10_ms,
        "p90_ms": found.p90_ms,
        "images_per_s": found.images_per_s,
        "ratio": found.ratio,
        "ratio_interval": found.ratio_interval,
        "verdict": verdict(found.ratio, found.ratio_interval) if found.baseline else "baseline",
        "size_bytes": measure.size(*files) if files else None,
        "conditions": asdict(c),
    }
