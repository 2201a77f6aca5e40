# SPDX-License-Identifier: Apache-2.0
"""Latency of several models, raced in turns so that the machine's drift is nobody's gain."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from featherweight import fresh, layer_times, macs_of_file, measure, sources
from featherweight.errors import OptionError, closest, shown
from featherweight.latency import Latency, Times, verdict
from featherweight.runtime.session import MODES, PRECISIONS

if TYPE_CHECKING:
    from featherweight.roofline import Roofline
    from featherweight.runtime.profiling import LayerTime

SPREAD = 0.5  # between the 10th and 90th percentile, as a share of the median: above it a race is run again
ATTEMPTS = 3
CALLS = 8  # batches in one timed call of a race for throughput


@dataclass(frozen=True)
class Entry:
    """One of the racers: a model in one runtime and precision."""

    name: str
    source: Any  # sources.Source or a torch module
    precision: str | None = None
    compiled: bool = False  # by torch

    def options(self) -> dict[str, Any]:
        known = {"precision": self.precision, "backend": "torch-compiled" if self.compiled else None}
        return {key: value for key, value in known.items() if value is not None}


def bench(
    models: Sequence[Any],
    *,
    batch: Sequence[int] = (1, 32),
    threads: int | Sequence[int] | None = None,
    backend: str | Sequence[str] = "auto",
    precision: str | Sequence[str] | None = None,
    mode: str = "latency",
    against: Any = None,
    resolution: tuple[int, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    fixed: bool = False,
    repeats: int = 60,
    budget_s: float = 5.0,
    attempts: int = ATTEMPTS,
    start: bool = False,
    roofline: Roofline | None = None,
    arch: str | None = None,
) -> list[dict[str, Any]]:
    """Models raced in turns, one race for each batch and number of threads: rows with the ratio to the first.

    The baseline is `against`, else the first. backend: one, several, or "all" that a model comes with; torch-compiled
    is one. precision: f32, bf16 or auto, each a racer. shapes: of a file's inputs by name, where it does not say them.
    Times do not depend on weights, so a name stands for a model with random ones. A race whose times spread too wide is
    run again, `attempts` times at most, and has a remark. fixed: OpenVINO compiles for that batch alone. start: also
    opens each in a new process. roofline: also says the limit.
    """
    if against is not None:
        models = [against, *(model for model in models if model != against)]
    if not models:
        raise OptionError("bench", "names no model")
    if mode not in MODES:
        raise OptionError("mode", f"no {mode!r}; {closest(mode, MODES)}Known: {', '.join(MODES)}")
    wanted = [backend] if isinstance(backend, str) else list(backend)
    precisions = [precision] if precision is None or isinstance(precision, str) else list(precision)
    entries = _unlike([entry for model in models for entry in _entries(model, wanted, precisions, arch)])
    counts = [threads] if threads is None or isinstance(threads, int) else list(threads)
    rows = []
    for count in counts:
        for size in batch:
            options: dict[str, Any] = {"batch": size, "threads": count, "resolution": resolution, "shapes": shapes}
            timed = {"mode": mode, "calls": CALLS if mode == "throughput" else 1, "fixed": fixed}
            ready = _ready(entries, {**options, **timed}, several=len(batch) > 1)
            times, tries = _steady(ready, attempts, repeats=repeats, budget_s=budget_s)
            for entry in entries:
                if entry.name in times:
                    row = {**_row(entry, times[entry.name]), **tries}
                    row |= _limit(entry, row, options, roofline) if roofline else {}
                    rows.append(row | (_start(entry, options) if start else {}))
    return rows


def _ready(entries: Sequence[Entry], options: dict[str, Any], *, several: bool) -> dict[str, measure.Runnable]:
    """The racers by name; those that cannot run this batch or precision are left out with a word, unless all are."""
    found: dict[str, measure.Runnable] = {}
    problem: OptionError | None = None
    for entry in entries:
        try:
            found[entry.name] = fresh.runnable(entry.source, **options, **entry.options())
        except OptionError as error:
            if error.where not in ("batch", "precision") or (len(entries) == 1 and not several):
                raise
            problem = error
            warnings.warn(f"left out of batch {options['batch']}: {entry.name}: {error}", UserWarning, stacklevel=3)
    if problem is not None and not found and not several:
        raise problem
    return found


def _steady(
    ready: Mapping[str, measure.Runnable], attempts: int, *, repeats: int, budget_s: float
) -> tuple[Times, dict[str, Any]]:
    """The race whose widest spread was narrowest, how many were run, and a remark where none was narrow enough."""
    if not ready:
        return Times({}, {}), {}
    best: Times | None = None
    for tried in range(1, max(1, attempts) + 1):
        times = measure.race(ready, repeats=repeats, budget_s=budget_s)
        if best is None or _widest(times) < _widest(best):
            best = times
        if _widest(best) <= SPREAD:
            return best, {"attempts": tried, "remark": None}
    wide, load = _widest(best or times), max(found.conditions.load for found in times.values())
    text = (
        f"the machine is busy (load {load:.1f}): times spread by {100 * wide:.0f} % of the median after {tried} races; "
        "ratios hold within their intervals, milliseconds do not: measure again when it is quiet"
    )
    return best or times, {"attempts": tried, "remark": text}


def _widest(times: Times) -> float:
    return max(found.spread for found in times.values())


def layers(model: Any, *, backend: str = "auto", arch: str | None = None, **options: Any) -> list[LayerTime]:
    """What each layer of a model takes, the slowest first: `layer_times.layer_times` of whatever names a model."""
    if not isinstance(model, (str, os.PathLike)):
        return layer_times.layer_times(model, **options)
    source = sources.find(model, backend=backend, arch=arch)
    if source.backend != "torch":
        return layer_times.layer_times(source.path, backend=source.backend, **options)
    module = sources.module(source, untrained=True)
    told = sources.preprocess_of(source, module)
    options.pop("shapes", None)
    options["resolution"] = options.get("resolution") or (told.size if told else None)
    return layer_times.layer_times(module, **options)


def _entries(model: Any, backends: Sequence[str], precisions: Sequence[str | None], arch: str | None) -> list[Entry]:
    """A racer for each backend and precision that is asked for."""
    for word in precisions:
        if word is not None and word not in (*PRECISIONS, "autocast"):
            known = ", ".join((*PRECISIONS, "autocast"))
            raise OptionError("precision", f"no {word!r}; {closest(word, PRECISIONS)}Known: {known}")
    if not isinstance(model, (str, os.PathLike)):
        sources.check_module(model)
        name = type(model).__name__
        return [Entry(_tagged(name, "", word, precisions), model, word) for word in precisions]
    named = shown(os.fspath(model))
    found: list[tuple[sources.Source, bool]] = []
    if "all" in backends:
        for backend in ("torch", "onnxruntime", "openvino"):
            try:
                found.append((sources.find(model, backend=backend, arch=arch), False))
            except (OptionError, ValueError):
                continue
        found = found or [(sources.find(model, arch=arch), False)]
    for backend in backends if not found else ():
        compiled = backend == "torch-compiled"
        found.append((sources.find(model, backend="torch" if compiled else backend, arch=arch), compiled))
    entries = []
    for source, compiled in found:
        runtime = (source.backend + ("-compiled" if compiled else "")) if len(found) > 1 else ""
        entries += [Entry(_tagged(named, runtime, word, precisions), source, word, compiled) for word in precisions]
    return entries


def _tagged(name: str, runtime: str, word: str | None, precisions: Sequence[str | None]) -> str:
    """The name with what sets it apart from the others of the same model."""
    tags = [tag for tag in (runtime, (word or "") if len(precisions) > 1 else "") if tag]
    return f"{name} ({', '.join(tags)})" if tags else name


def _unlike(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, numbered where a name comes twice."""
    names = [entry.name for entry in entries]
    return [
        entry
        if names.count(entry.name) == 1
        else replace(entry, name=f"{entry.name} #{names[:i].count(entry.name) + 1}")
        for i, entry in enumerate(entries)
    ]


def _row(entry: Entry, found: Latency) -> dict[str, Any]:
    c = found.conditions
    return {
        "model": entry.name,
        "runtime": c.runtime,
        "dtype": c.dtype,
        "batch": c.batch,
        "threads": c.threads,
        "mode": c.mode,
        "median_ms": found.median_ms,
        "p10_ms": found.p10_ms,
        "p90_ms": found.p90_ms,
        "cpu_ms": found.cpu_ms,
        "spread": round(found.spread, 4),
        "images_per_s": found.images_per_s,
        "ratio": found.ratio,
        "ratio_interval": found.ratio_interval,
        "verdict": verdict(found.ratio, found.ratio_interval) if found.baseline else "baseline",
        "size_bytes": measure.size(*_files(entry)) if _files(entry) else None,
        "conditions": asdict(c),
    }


def _files(entry: Entry) -> list[Any]:
    path = entry.source.path if isinstance(entry.source, sources.Source) else None
    return [path, path.with_suffix(".bin")] if path is not None and path.suffix == ".xml" else [path] if path else []


def _limit(entry: Entry, row: dict[str, Any], options: dict[str, Any], roofline: Roofline) -> dict[str, Any]:
    """How far from the machine's limit a row is; None where the multiply-adds are not known."""
    counted = _macs(entry, options)
    if counted is None:
        return {"macs": None, "limit_ms": None, "limit_share": None, "bound": None}
    calls = row["conditions"]["calls"]
    weights = (row["size_bytes"] or 0) if row["mode"] == "latency" else 0
    told = {"rest": counted.rest * calls, "int8": counted.int8 * calls, "dtype": row["dtype"], "weights": weights}
    limit = roofline.limit(**told)
    share = round(limit.ms / row["median_ms"], 4)
    return {"macs": counted.total, "limit_ms": limit.ms, "limit_share": share, "bound": limit.bound}


def _macs(entry: Entry, options: dict[str, Any]) -> macs_of_file.Macs | None:
    """Multiply-adds of one call."""
    source = entry.source
    if isinstance(source, sources.Source) and source.backend != "torch":
        from featherweight.runtime import feeds
        from featherweight.runtime.session import open_session

        session = open_session(source.path or "", backend=source.backend, threads=1)
        known = {key: options[key] for key in ("batch", "resolution", "shapes")}
        feed = feeds.made(session.inputs, session.metadata, source.path, **known)
        return macs_of_file.macs_of(source.path, {name: array.shape for name, array in feed.items()})  # type: ignore[arg-type]
    import torch

    model = sources.module(source, untrained=True) if isinstance(source, sources.Source) else source
    told = sources.preprocess_of(source, model) if isinstance(source, sources.Source) else None
    size = options["resolution"] or (told.size if told else None)
    if size is None:
        return None
    return macs_of_file.Macs(0, options["batch"] * measure.macs(model.eval(), torch.zeros(1, 3, *size)))


def _start(entry: Entry, options: dict[str, Any]) -> dict[str, Any]:
    """What a process of its own took; nothing for a module that is only in this one."""
    if not isinstance(entry.source, sources.Source):
        return {"start": None}
    return {"start": fresh.started(entry.source, **options, **entry.options())._asdict()}
