# SPDX-License-Identifier: Apache-2.0
"""Is what stands for a layer faster than the layer? Both are raced on a real input, in the runtime that will serve.

For `methods.lowrank`: factors with fewer multiply-adds are often slower, as each layer of the chain has to read and
write its maps, and runtimes differ in which.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from .errors import FeatherweightError, OptionError
from .export.onnx import INPUT, to_bytes
from .latency import race
from .modes import evaluating
from .runtime.session import open_session

Runtime = Literal["torch", "onnxruntime", "openvino"]


@dataclass(frozen=True)
class Faster:
    """A judge for `lowrank.plan(only=...)`: whether the interval of the ratio to the layer lies above `margin`.

    images: of the first calibration batch, that one call has. budget_s: seconds of one race. Layers and factors of the
    same sizes are raced once. A layer that cannot be exported stays as it is.
    """

    runtime: Runtime = "onnxruntime"
    margin: float = 1.0
    images: int = 1
    threads: int = 1
    budget_s: float = 0.3
    known: dict[tuple[str, str, torch.Size], bool] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, layer: nn.Module, factors: nn.Module, example: Tensor | None) -> bool:
        if example is None:
            raise OptionError("only", "a race needs the layers' inputs: give `batches`, or `seen=lowrank.look(...)`")
        x = example[: self.images]
        key = (repr(layer), repr(factors), x.shape)
        if key not in self.known:
            self.known[key] = self._raced(layer, factors, x)
        return self.known[key]

    def _raced(self, layer: nn.Module, factors: nn.Module, x: Tensor) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            try:
                runners = {
                    name: self._runner(module, x, Path(folder, f"{name}.onnx"))
                    for name, module in (("layer", layer), ("factors", factors))
                }
            except FeatherweightError:
                return False
            times = race(runners, baseline="layer", repeats=100, budget_s=self.budget_s)
        interval = times["factors"].ratio_interval
        return interval is not None and interval[0] > self.margin

    def _runner(self, module: nn.Module, x: Tensor, path: Path) -> Callable[[], object]:
        if self.runtime == "torch":
            return _eager(module, x)
        path.write_bytes(to_bytes(module, x))
        precision = "f32" if self.runtime == "openvino" else None
        session = open_session(path, backend=self.runtime, threads=self.threads, precision=precision)
        feed = {INPUT: x.cpu().numpy()}
        return lambda: session.run(feed)


def _eager(module: nn.Module, x: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode(), evaluating(module):
            return module(x)

    return call
