# SPDX-License-Identifier: Apache-2.0
"""What a structure will take before it exists: a latency model with one rate per kind of operator, calibrated here.

The start is profiled once in the runtime that will serve, as floats and as 8 bits: milliseconds of convolutions, of
other products (linear layers, attention) and of the rest. Another structure takes its multiply-adds, and for the rest
its activations, at these rates, above the latency of an empty graph; how far that was off is learned from every point
that is measured. Not here: kernels that are much better or worse at other widths, caches, what fuses.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from featherweight import counting, measure
from featherweight.errors import FeatherweightError
from featherweight.export import onnx
from featherweight.floors import floor
from featherweight.methods.quantize import quantize
from featherweight.modes import evaluating
from featherweight.runtime.profiling import by_kind, median
from featherweight.runtime.session import open_session

GROUPS = ("conv", "product", "rest")
PRODUCTS = ("matmul", "gemm", "fullyconnected", "scaleddot", "attention", "mha", "innerproduct")
ANSWERS = 5  # profiled, of which the median is taken
RACE_SECONDS = 1.0
SLACK = 0.35  # a forecast may be off by so much before anything was measured
LEAST_SLACK = 0.1
FEW = 1  # measured points of a kind after which it has a correction of its own
LEARNED = 4  # measured points after which the slack is that of the forecasts so far


@dataclass(frozen=True)
class Rates:
    """Milliseconds for each unit of a group, and what the whole adds to an empty graph's `floor_ms`."""

    floor_ms: float
    per_unit: Mapping[str, float]

    def ms(self, amounts: Mapping[str, float]) -> float:
        return self.floor_ms + sum(self.per_unit[name] * amounts.get(name, 0.0) for name in GROUPS)


class Pair(NamedTuple):
    """What was forecast of a point, without correction, and what it took."""

    kind: str
    forecast_ms: float
    measured_ms: float


@dataclass
class Forecast:
    """Rates by type of number, and what was forecast and measured so far."""

    rates: Mapping[str, Rates]  # "float32", "int8"
    pairs: list[Pair] = field(default_factory=list)

    def raw_ms(self, amounts: Mapping[str, float], dtype: str) -> float:
        """Milliseconds at batch 1 by the profile alone; a type that was not profiled counts as float32."""
        return self.rates.get(dtype, self.rates["float32"]).ms(amounts)

    def learn(self, results: Iterable[Mapping[str, Any]]) -> None:
        """Take what was measured in place of what was known so far; what was not forecast teaches nothing."""
        known = [(item["kind"], item["raw_ms"], item["latency_ms"]) for item in results if "raw_ms" in item]
        self.pairs[:] = [Pair(str(kind), float(raw), float(took)) for kind, raw, took in known]

    def correction(self, kind: str) -> float:
        """The median of measured over forecast of the points of this kind, else of all; 1 while there are few."""
        same = [p for p in self.pairs if p.kind == kind]
        used = same if len(same) >= FEW else self.pairs if len(self.pairs) >= LEARNED else []
        return statistics.median(p.measured_ms / p.forecast_ms for p in used) if used else 1.0

    @property
    def errors(self) -> list[float]:
        """How far each forecast is off, as a share of what was measured, with the corrections learned from all."""
        return [abs(p.forecast_ms * self.correction(p.kind) / p.measured_ms - 1) for p in self.pairs]

    @property
    def slack(self) -> float:
        """How far above a limit a forecast must be for the point to be hopeless: the worst so far."""
        return max(LEAST_SLACK, *self.errors) if len(self.pairs) >= LEARNED else SLACK

    def says(self) -> str:
        """How good it was."""
        if not self.pairs:
            return "No point was measured, so how good the latency forecasts are is not known"
        errors = sorted(self.errors)
        told = f"median {100 * statistics.median(errors):.0f} %, worst {100 * errors[-1]:.0f} %"
        return f"Corrected by what was measured, the latency forecasts of {len(errors)} trainings are off by: {told}"


def amounts(model: nn.Module, example: Tensor) -> dict[str, float]:
    """What a model has of each group for one picture: multiply-adds, and of the rest elements of activations."""
    found = dict.fromkeys(GROUPS, 0.0)
    for layer in counting.layers(model, example):
        found["conv" if "conv" in layer.kind.lower() else "product"] += layer.macs
    total = 0

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() if isinstance(output, Tensor) else 0

    handles = [m.register_forward_hook(count) for m in model.modules() if not any(m.children())]
    try:
        with torch.no_grad(), evaluating(model):
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return {**found, "rest": total / example.shape[0]}


def calibrated(
    model: nn.Module, batches: Sequence[Mapping[str, Tensor]], task: Any, *, runtime: str, threads: int
) -> Forecast:
    """Profile and time the model as it is and in 8 bits; without 8 bits where it cannot have them."""
    example = batches[0]["image"][:1]
    bare = floor(runtime, threads=threads, shape=tuple(example.shape)).median_ms
    has, rates = amounts(model, example), {}
    made: dict[str, Callable[[], nn.Module]] = {
        "float32": lambda: model,
        "int8": lambda: quantize(model, batches, task, calibration_images=len(batches[0]["image"])),
    }
    with tempfile.TemporaryDirectory() as folder:
        for dtype, make in made.items():
            try:
                path = Path(folder, f"{dtype}.onnx")
                path.write_bytes(onnx.to_bytes(copy.deepcopy(make()).eval(), batches[0]["image"][:2], task=task))
            except (FeatherweightError, LookupError, TypeError):
                if dtype == "float32":
                    raise
                continue
            rates[dtype] = _rates(path, example.numpy(), has, bare, runtime, threads)
    return Forecast(rates)


def _rates(path: Path, images: np.ndarray, has: Mapping[str, float], bare: float, runtime: str, threads: int) -> Rates:
    """The profile's shares of the measured time, for each unit of what the model has."""
    session = open_session(path, backend=runtime, threads=threads, profile=True)
    feed = {session.inputs[0].name: images.astype(np.float32)}
    session.layers(feed)
    spent = dict.fromkeys(GROUPS, 0.0)
    for kind, ms in by_kind(median([session.layers(feed) for _ in range(ANSWERS)])).items():
        spent[group_of(kind)] += ms
    ready = measure.runnable(path, images=images, backend=runtime, threads=threads)
    whole = measure.race({"start": ready}, budget_s=RACE_SECONDS, repeats=200)["start"].median_ms
    scale = max(whole - bare, 0.0) / max(sum(spent.values()), 1e-9)
    return Rates(bare, {name: scale * spent[name] / has[name] if has[name] else 0.0 for name in GROUPS})


def group_of(kind: str) -> str:
    """The group of an operator, by the runtime's name for it."""
    told = kind.lower().replace("_", "")
    if "conv" in told and "convert" not in told:
        return "conv"
    return "product" if any(word in told for word in PRODUCTS) else "rest"
