# SPDX-License-Identifier: Apache-2.0
"""What this machine can do at best, and how far from it a model is (Williams et al. 2009).

The peak is the fastest matrix product that any installed runtime reaches, for each type of numbers, on a small product
whose operands stay in the cache and on a large one; the bandwidth that of copying. No model is quicker than its
multiply-adds at the peak, nor than reading its weights once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featherweight.errors import MissingExtra, OptionError
from featherweight.latency import quantile, race
from featherweight.runtime import graphs, session

SIZES = {"small": (192, 384, 384), "large": (1024, 1024, 1024)}  # rows, inner, columns
KINDS = (("float32", "f32", False), ("bfloat16", "bf16", False), ("int8", "f32", True))  # dtype, precision, rounded
CACHED_BYTES, MEMORY_BYTES = 256 << 10, 64 << 20  # of one thread, read and written


@dataclass(frozen=True)
class Product:
    """One matrix product in one runtime."""

    dtype: str
    size: str  # small or large
    runtime: str
    macs_per_s: float


@dataclass(frozen=True)
class Limit:
    """No call can be quicker: milliseconds, and whether products or reading weights say so."""

    ms: float
    bound: str  # compute or memory


@dataclass(frozen=True)
class Roofline:
    """Peaks of this machine with so many threads."""

    threads: int
    products: tuple[Product, ...]
    cached_bytes_per_s: float  # read and written
    memory_bytes_per_s: float
    cache_bytes: int  # of the last level

    def peak(self, dtype: str, size: str | None = None) -> float | None:
        """Multiply-adds per second at best; None for a type that nothing here computes in."""
        found = [p.macs_per_s for p in self.products if p.dtype == dtype and size in (None, p.size)]
        return max(found, default=None)

    def limit(self, *, rest: int, int8: int = 0, dtype: str = "float32", weights: int = 0) -> Limit:
        """What a call with so many multiply-adds in `dtype` and in int8, and so many bytes of weights, takes at least.

        Weights that fit the last level of the cache are taken to be there already.
        """
        kind = "bfloat16" if "bfloat16" in dtype else "float32"
        rough, fine = self.peak("int8") or self.peak("float32"), self.peak(kind) or self.peak("float32")
        if rough is None or fine is None:
            raise OptionError("roofline", "no runtime was measured, so nothing can be said")
        compute = 1000 * (int8 / max(rough, fine) + rest / fine)
        speed = self.cached_bytes_per_s if weights <= self.cache_bytes else self.memory_bytes_per_s
        memory = 1000 * weights / speed
        return Limit(max(compute, memory), "compute" if compute >= memory else "memory")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measured(*, threads: int | None = None, budget_s: float = 0.4) -> Roofline:
    """The peaks, with about `budget_s` seconds for each of a dozen measurements."""
    threads = threads or session.available_threads()
    products = []
    for runtime in session.BACKENDS:
        for dtype, precision, int8 in KINDS:
            products += _products(runtime, dtype, precision, int8, threads, budget_s)
    cached, memory = (_copied(threads, size, budget_s) for size in (CACHED_BYTES, MEMORY_BYTES))
    return Roofline(threads, tuple(products), cached, memory, _last_cache())


def _products(runtime: str, dtype: str, precision: str, int8: bool, threads: int, budget_s: float) -> list[Product]:
    """Small and large, where this runtime computes in that type on this processor."""
    found = []
    for name, (rows, inner, columns) in SIZES.items():
        try:
            how = session.checked(threads=threads, precision=precision)
            graph = graphs.product(rows, inner, columns, int8=int8)
            opened = session.opened(Path(f"product of {dtype}"), runtime, how, graph)
        except (MissingExtra, OptionError):
            return []
        if opened.dtype != dtype:  # no bfloat16 on this processor
            return []
        values = np.random.default_rng(0).standard_normal((rows, inner), dtype=np.float32)
        best = _best(lambda o=opened, v=values: o.run({"x": v}, copy=False), budget_s)  # type: ignore[misc]
        found.append(Product(dtype, name, runtime, rows * inner * columns / best))
    return found


def _best(call: Callable[[], object], budget_s: float) -> float:
    """Seconds of the tenth of the calls that was least disturbed: a peak is what the machine can do, not its mean."""
    return quantile(race({"peak": call}, repeats=60, budget_s=budget_s)["peak"].samples_ms, 0.1) / 1000


def _copied(threads: int, size: int, budget_s: float) -> float:
    """Bytes read and written per second by all threads copying, each its own."""
    pairs = [(np.ones(size // 8, np.float64), np.zeros(size // 8, np.float64)) for _ in range(threads)]
    times = max(1, (16 << 20) // size)

    def copy(pair: Sequence[np.ndarray]) -> None:
        for _ in range(times):
            np.copyto(pair[1], pair[0])

    seconds: list[float] = []
    with ThreadPoolExecutor(threads) as pool:
        until = time.perf_counter() + budget_s
        while len(seconds) < 4 or time.perf_counter() < until:
            began = time.perf_counter()
            list(pool.map(copy, pairs))
            seconds.append(time.perf_counter() - began)
    return 2 * size * times * threads / quantile(seconds, 0.1)


def _last_cache() -> int:
    """Bytes of the largest cache of the first processor; 0 where the system does not say."""
    largest = 0
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text(encoding="ascii").strip()
        if text[:-1].isdigit():
            largest = max(largest, int(text[:-1]) << {"K": 10, "M": 20}.get(text[-1], 0))
    return largest
