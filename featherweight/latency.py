# SPDX-License-Identifier: Apache-2.0
"""How long calls take: several callables raced against each other, and what may honestly be said of the difference.

The machine drifts while it measures (clocks, neighbors, heat), so candidates take turns instead of being timed one
after the other, and a candidate is compared with the baseline turn by turn. The interval of that ratio comes from order
statistics and supposes nothing about the shape of the noise. "Faster" is said only when the interval excludes 1.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from featherweight.errors import OptionError, closest

MIN_ROUNDS = 6  # the fewest turns whose smallest and largest ratio bound the median with 95 % confidence
BURST_SECONDS = 0.010  # a turn of a quick callable lasts about this long
BURST_CALLS = 5  # and never has more timed calls than this
SETTLE_SECONDS = 0.030  # a quicker callable gets one untimed call per turn: its neighbor's threads are still spinning
SAMPLES_KEPT = 100
MATTERS = 1.05  # a ratio that would be worth having


@dataclass(frozen=True)
class Conditions:
    """What has to be known beside a latency for anyone to repeat it."""

    device: str = "cpu"
    cpu: str = ""
    flags: tuple[str, ...] = ()  # instruction sets that matter here: avx512_vnni, amx_int8, ...
    cores: int = 0
    threads: int = 0
    dtype: str = ""
    runtime: str = ""  # torch eager, onnxruntime, openvino
    version: str = ""
    batch: int = 1
    resolution: tuple[int, ...] = ()  # (H, W)
    warmup: int = 0  # untimed calls before the first timed one
    repeats: int = 0  # timed calls
    load: float = 0.0  # load average of the machine at the start
    mode: str = "latency"  # or throughput: several answers worked on at once
    calls: int = 1  # batches answered in one timed call


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call, with the ratio to the baseline of the same race (above 1 is faster)."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    samples_ms: tuple[float, ...] = ()
    ratio: float | None = None
    ratio_interval: tuple[float, float] | None = None  # 95 %
    baseline: str = ""
    conditions: Conditions = field(default_factory=Conditions)
    cpu_ms: float | None = None  # per call, of all threads of this process

    @property
    def images_per_s(self) -> float:
        """Throughput at the batch that was timed."""
        return 1000.0 * self.conditions.batch * self.conditions.calls / self.median_ms

    @property
    def spread(self) -> float:
        """How far apart the 10th and 90th percentile are, as a share of the median."""
        return (self.p90_ms - self.p10_ms) / self.median_ms if self.median_ms else 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Times(dict[str, Latency]):
    """What a race found: Latency by name, and any two of its runners compared turn by turn."""

    def __init__(self, latencies: Mapping[str, Latency], turns: Mapping[str, list[list[float]]]) -> None:
        super().__init__(latencies)
        self._turns = turns

    def ratio(self, name: str, over: str) -> tuple[float, tuple[float, float]]:
        """How many times faster `name` is than `over`, with the 95 % interval; for `verdict`."""
        return _paired(self._turns[name], self._turns[over])


def race(
    runnables: Mapping[str, Callable[[], object]],
    *,
    baseline: str | None = None,
    repeats: int = 30,
    warmup: int = 3,
    budget_s: float = 5.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Time the callables in turns within about `budget_s` seconds; `baseline` is the first one unless named.

    `repeats` is the largest number of turns each gets; at least six happen whatever the budget: fewer say nothing.
    A callable that has an attribute `conditions` (`measure.runnable`) finds it completed in its Latency.
    """
    base = _baseline(runnables, baseline)
    if repeats < MIN_ROUNDS:
        raise OptionError("repeats", f"{repeats} turns prove nothing; at least {MIN_ROUNDS} are needed")
    began, load = clock(), load_average()
    costs = {name: _warm(run, warmup, clock) for name, run in runnables.items()}
    bursts = {name: max(1, min(BURST_CALLS, int(BURST_SECONDS / max(cost, 1e-9)))) for name, cost in costs.items()}
    settles = {name: cost < SETTLE_SECONDS and len(costs) > 1 for name, cost in costs.items()}
    per_round = sum(cost * (bursts[name] + settles[name]) for name, cost in costs.items())
    affordable = int((budget_s - (clock() - began)) / max(per_round, 1e-9))
    rounds = max(MIN_ROUNDS, min(repeats, affordable))
    turns: dict[str, list[list[float]]] = {name: [] for name in runnables}
    busy: dict[str, list[float]] = {name: [] for name in runnables}
    with _no_collection():
        for number in range(rounds):
            if number >= MIN_ROUNDS and clock() - began > budget_s:
                break
            for name in _rotated(list(runnables), number):
                seconds, cpu = _turn(runnables[name], bursts[name], settles[name], clock)
                turns[name].append(seconds)
                busy[name].append(cpu)
    found = {}
    for name, run in runnables.items():
        found[name] = _latency(turns[name], busy[name], getattr(run, "conditions", Conditions()), warmup, load)
        if name != base:
            ratio, interval = _paired(turns[name], turns[base])
            found[name] = replace(found[name], ratio=ratio, ratio_interval=interval, baseline=base)
    return Times(found, turns)


def _baseline(runnables: Mapping[str, object], baseline: str | None) -> str:
    if not runnables:
        raise OptionError("race", "nothing to time; name at least one callable")
    if baseline is not None and baseline not in runnables:
        raise OptionError(
            "baseline", f"no {baseline!r} here; {closest(baseline, runnables)}Known: {', '.join(runnables)}."
        )
    return baseline or next(iter(runnables))


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection in the middle of a timed call."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _warm(run: Callable[[], object], warmup: int, clock: Callable[[], float]) -> float:
    """Call `run` untimed, then once more: seconds of that last call."""
    for _ in range(max(0, warmup - 1)):
        run()
    start = clock()
    run()
    return clock() - start


def _turn(run: Callable[[], object], calls: int, settle: bool, clock: Callable[[], float]) -> tuple[list[float], float]:
    """Seconds of each timed call, and seconds of processors that one of them took."""
    if settle:
        run()
    seconds = []
    busy = time.process_time()
    for _ in range(calls):
        start = clock()
        run()
        seconds.append(clock() - start)
    return seconds, (time.process_time() - busy) / calls


def _rotated(names: list[str], number: int) -> list[str]:
    """Another order each turn, so that nobody always runs after the same neighbor."""
    shift = number % len(names)
    order = names[shift:] + names[:shift]
    return order[::-1] if number % 2 else order


def _latency(turns: list[list[float]], busy: list[float], conditions: Conditions, warmup: int, load: float) -> Latency:
    mine = [1000.0 * s for turn in turns for s in turn]
    done = replace(conditions, warmup=warmup, repeats=len(mine), load=load)
    step = max(1, math.ceil(len(mine) / SAMPLES_KEPT))
    p10, p50, p90 = (round(quantile(mine, q), 4) for q in (0.1, 0.5, 0.9))
    cpu_ms = round(1000.0 * quantile(busy, 0.5), 4)
    return Latency(p50, p10, p90, tuple(round(s, 4) for s in mine[::step]), conditions=done, cpu_ms=cpu_ms)


def _paired(turns: list[list[float]], base: list[list[float]]) -> tuple[float, tuple[float, float]]:
    """The median over the turns of base / mine, with its interval."""
    ratios = [quantile(b, 0.5) / max(quantile(c, 0.5), 1e-12) for b, c in zip(base, turns, strict=True)]
    low, high = median_interval(ratios)
    return round(quantile(ratios, 0.5), 4), (round(low, 4), round(high, 4))


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, linear between order statistics."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def median_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """An interval for the median from order statistics, exact whatever the distribution; needs six values for 95 %."""
    ordered, n = sorted(values), len(values)
    outside, k = 0.0, 0  # outside: probability that the median lies beyond the k-th value of one end
    while k < n:
        outside += math.comb(n, k) / 2.0**n
        if 2 * outside > 1 - confidence:
            break
        k += 1
    if k == 0:
        raise OptionError("values", f"{n} values give no {100 * confidence:g} % interval of a median; take more turns")
    return ordered[k - 1], ordered[n - k]


def faster(ratio: float | None, interval: tuple[float, float] | None) -> bool:
    """Whether the ratio to the baseline is above 1 beyond doubt, and by something that can be printed."""
    return ratio is not None and interval is not None and interval[0] > 1.0 and round(ratio, 2) > 1.0


def verdict(ratio: float | None, interval: tuple[float, float] | None) -> str:
    """What may be said of a ratio to the baseline: "1.35× faster", "not faster here: 1.02×", "slower here: 0.80×".

    "not certain here: 1.30×" is a gain whose interval reaches below 1: measure longer, or on a quieter machine.
    """
    if ratio is None or interval is None:
        return "not measured"
    if faster(ratio, interval):
        return f"{ratio:.2f}× faster"
    if interval[1] < 1.0 and round(ratio, 2) < 1.0:
        return f"slower here: {ratio:.2f}×"
    return f"not {'certain' if ratio >= MATTERS else 'faster'} here: {ratio:.2f}×"


def load_average() -> float:
    """Processes that wanted to run during the last minute; 0 where the system does not say."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return 0.0
