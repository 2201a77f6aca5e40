# SPDX-License-Identifier: Apache-2.0
"""AdaRound: each weight is rounded up or down as the layer's answer wants it, not to the nearest (Nagel 2020,
2004.10568).

After `weight_only`: layer by layer, in the order they run, a number V for each weight says how far up it goes,
h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1). V learns to make the layer's output, on the inputs that the rounded layers
before it give, equal to the float layer's, while 1 - |2h - 1|^beta pushes every h to 0 or 1. It needs a few hundred
images without labels and makes 4-bit weights usable without training. Not here: the activation function behind the
layer in the loss, whole blocks at once (BRECQ).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import Diverged, OptionError
from ..modes import evaluating
from ..surgery import edits_of, record, submodule
from .calibration import Calls, enough, run_watched
from .int8 import convolve
from .stored import PackedStore, StoredConv2d, StoredLinear

LOW, HIGH = -0.1, 1.1  # ends of the stretched sigmoid
BETA = (20.0, 2.0)  # from, to; over the steps after the warm-up
ROWS = 4096  # rows of a linear layer's inputs that are kept
ROWS_EACH = 8  # rows of a linear layer in place of one picture of a convolution


@dataclass(frozen=True)
class Search:
    """How the rounding of one layer is found."""

    steps: int
    lr: float
    batch: int
    weight: float  # of the term that pushes to 0 or 1
    warmup: float  # share of the steps without it


def adaround(
    model: nn.Module,
    rounded: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    task: Calls,
    *,
    steps: int = 1000,
    lr: float = 1e-2,
    batch: int = 32,
    weight: float = 0.01,
    warmup: float = 0.2,
    calibration_images: int = 128,
    seed: int = 0,
) -> nn.Module:
    """A copy of `rounded`, made from `model` by `weight_only`, whose codes are chosen anew; both are left as they were.

    steps: of Adam for each layer; the paper takes 10,000, 0 leaves the codes as they are. The scales stay. Raises
    OptionError for options out of range or too few images, LookupError where nothing is packed.
    """
    for name, value, least in (("steps", steps, 0), ("lr", lr, 1e-9), ("batch", batch, 1), ("weight", weight, 0)):
        if not value >= least:
            raise OptionError(name, f"{value!r} is below {least}")
    if not 0 <= warmup < 1:
        raise OptionError("warmup", f"{warmup!r} is not from 0 to below 1")
    paths = [path for path, layer in rounded.named_modules() if _packed(layer)]
    if not paths:
        raise LookupError(f"{type(rounded).__name__} has no layer whose weight is packed; `weight_only` makes them")
    images, search = enough(batches, calibration_images), Search(steps, lr, batch, weight, warmup)
    new = copy.deepcopy(rounded)
    record(new, edits_of(rounded))
    generator = torch.Generator().manual_seed(seed)
    with evaluating(model), evaluating(new):
        for path in _in_order(new, paths, images, task) if steps else []:
            _learn(submodule(model, path), submodule(new, path), _pairs(model, new, path, images, task), search,
                   generator)  # fmt: skip
    return new


def _packed(layer: nn.Module) -> bool:
    return isinstance(layer, (StoredLinear, StoredConv2d)) and isinstance(layer.store, PackedStore)


@torch.no_grad()
def _in_order(model: nn.Module, paths: Sequence[str], images: Sequence[Mapping[str, Any]], task: Calls) -> list[str]:
    """The paths in the order in which their layers run first."""
    seen: dict[str, None] = {}
    watchers = {path: lambda *_, path=path: seen.setdefault(path) for path in paths}
    first = {name: value[:1] for name, value in images[0].items()}
    run_watched(model, watchers, [first], task)
    return list(seen)


@torch.no_grad()
def _pairs(
    model: nn.Module, new: nn.Module, path: str, images: Sequence[Mapping[str, Any]], task: Calls
) -> tuple[Tensor, Tensor]:
    """What the layer gets in the rounded model, and what the float layer gives in the float model."""
    inputs: list[Tensor] = []
    wanted: list[Tensor] = []

    def got(_layer: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
        inputs.append(args[0])

    def gave(_layer: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
        wanted.append(output)

    run_watched(new, {path: got}, images, task)
    run_watched(model, {path: gave}, images, task)
    x, y = torch.cat(inputs), torch.cat(wanted)
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise Diverged(f"calibration: {path} has a value that is not finite")
    if isinstance(submodule(new, path), StoredLinear):  # rows are alike, wherever they stood
        x, y = x.flatten(0, -2), y.flatten(0, -2)
        every = max(1, len(x) // ROWS)
        x, y = x[::every], y[::every]
    return x, y


def _learn(host: Any, layer: Any, pairs: tuple[Tensor, Tensor], search: Search, generator: torch.Generator) -> None:
    """Replace the codes of one layer by those that were learned."""
    store, (x, y) = layer.store, pairs
    size = search.batch * (1 if x.ndim == 4 else ROWS_EACH)
    step, middle = store.step(), store.middle()
    exact = store.rows(host.weight) / step + middle  # codes before rounding
    floor = exact.floor().clamp(0, store.levels - 1)
    share = (exact - floor).clamp(0.01, 0.99)
    start = torch.logit((share - LOW) / (HIGH - LOW)).requires_grad_(True)
    optimizer = torch.optim.Adam([start], lr=search.lr)
    for number in range(search.steps):
        take = torch.randint(len(x), (min(size, len(x)),), generator=generator)
        up = _up(start)
        weight = ((floor + up).clamp(0, store.levels - 1) - middle) * step
        error = (_output(layer, x[take], weight.reshape(store.shape)) - y[take]).square()
        loss = error.sum(1).mean() + search.weight * _open(up, number / search.steps, search.warmup)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        codes = (floor + (_up(start) >= 0.5)).clamp(0, store.levels - 1)
        if _error(layer, x, y, codes, step, middle) <= _error(layer, x, y, store.codes(), step, middle):
            store.set(codes.to(torch.uint8), step)


def _up(start: Tensor) -> Tensor:
    return (torch.sigmoid(start) * (HIGH - LOW) + LOW).clamp(0, 1)


def _open(up: Tensor, progress: float, warmup: float) -> Tensor | float:
    """How far the choices are from being made: the sum of 1 - |2h - 1|^beta; 0 in the warm-up."""
    if progress < warmup:
        return 0.0
    beta = BETA[0] + (BETA[1] - BETA[0]) * (progress - warmup) / (1 - warmup)
    return (1 - (2 * up - 1).abs().pow(beta)).sum()


def _error(layer: Any, x: Tensor, y: Tensor, codes: Tensor, step: Tensor, middle: Any) -> float:
    """Squared error on all inputs, in parts."""
    weight = ((codes - middle) * step).reshape(layer.store.shape)
    parts = zip(x.split(256), y.split(256), strict=True)
    return sum(float((_output(layer, a, weight) - b).square().sum()) for a, b in parts)


def _output(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    x = layer.input(x)
    return convolve(layer, x, weight) if isinstance(layer, StoredConv2d) else F.linear(x, weight, layer.bias)
