# SPDX-License-Identifier: Apache-2.0
"""What a model costs next to the one it was made from, as a share of 1: what `methods.budgeted` searches under.

MACs are counted; time is measured, both models exported and raced in turns on this machine, because half the MACs are
seldom half the time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import counting, measure
from .errors import OptionError
from .export import onnx
from .methods.budgeted import Cost

RUNTIMES = ("onnxruntime", "openvino")
RACE_SECONDS = 2.0


def macs_share(model: nn.Module, example: Any) -> Cost:
    """The MACs of a model as a share of this one's, for one image of the example."""
    whole = counting.macs(model, example)
    return lambda other: counting.macs(other, example) / whole


def time_share(
    model: nn.Module,
    images: Tensor,
    *,
    runtime: str = "openvino",
    batch: int = 1,
    threads: int | None = None,
    task: Any = None,
    seconds: float = RACE_SECONDS,
) -> Cost:
    """The time of a model as a share of this one's, both exported and raced in this runtime for about `seconds`.

    images: prepared for the model, (B, 3, H, W), two or more.
    """
    if runtime not in RUNTIMES:
        raise OptionError("runtime", f"no {runtime!r} here. Known: {', '.join(RUNTIMES)}")
    size = (int(images.shape[-2]), int(images.shape[-1]))

    def cost(other: nn.Module) -> float:
        with tempfile.TemporaryDirectory() as folder:
            raced = {}
            for name, one in (("before", model), ("after", other)):
                path = Path(folder, f"{name}.onnx")
                onnx.export(one.eval(), images[:2], path, task=task)
                known: dict[str, Any] = {"batch": batch, "resolution": size, "threads": threads, "backend": runtime}
                raced[name] = measure.runnable(path, **known)
            with torch.no_grad():
                times = measure.race(raced, baseline="before", repeats=200, budget_s=seconds)
        ratio = times["after"].ratio
        return 1 / ratio if ratio else float("inf")

    return cost
