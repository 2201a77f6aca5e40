# SPDX-License-Identifier: Apache-2.0
"""SmoothQuant: what is hard to round in a transformer's activations moves into its weights (Xiao 2022, 2211.10438).

A few channels of what a layer norm gives are much larger than the rest and take the whole range of 8 bits. Each channel
j is divided by s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), in the norm's own weight and bias, and the columns of the
linear layers that read it are multiplied: the answer stays. To be followed by `quantize`. Not here: linear layers that
read something other than a layer norm (attention's projection, the MLP's second layer), RMS norms.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Diverged, OptionError
from ..modes import evaluating
from ..surgery import edits_of, record, submodule
from .calibration import Calls, enough, run_watched
from .flow import readers

SMALLEST = 1e-5  # of a range and of a factor: dead channels


def smooth(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    task: Calls,
    *,
    alpha: float = 0.5,
    calibration_images: int = 128,
) -> nn.Module:
    """A copy with the same layers and the same answers up to rounding, whose activations are easier to round.

    alpha: how much of the difficulty goes to the weights, 0..1. Raises OptionError for another alpha or too few images,
    LookupError where no layer norm is read by linear layers alone.
    """
    if not 0 <= alpha <= 1:
        raise OptionError("alpha", f"{alpha!r} is not in 0..1; 0.5 shares the difficulty evenly")
    images = enough(batches, calibration_images)
    with evaluating(model), torch.no_grad():
        found = readers(model, {name: value[:2] for name, value in images[0].items()}, task)
        pairs = {norm: layers for norm, layers in found.items() if _plain(model, norm, layers)}
        if not pairs:
            raise LookupError(f"{type(model).__name__} has no layer norm that only linear layers read")
        ranges = _ranges(model, pairs, images, task)
    new = copy.deepcopy(model)
    record(new, edits_of(model))
    with torch.no_grad():
        for norm, layers in pairs.items():
            _move(submodule(new, norm), [submodule(new, path) for path in layers], ranges[norm], alpha)
    return new


def _plain(model: nn.Module, norm: str, layers: list[str]) -> bool:
    """A layer norm with a weight, read by float linear layers."""
    weight = getattr(submodule(model, norm), "weight", None)
    return isinstance(weight, nn.Parameter) and all(type(submodule(model, path)) is nn.Linear for path in layers)


def _ranges(
    model: nn.Module, norms: Iterable[str], images: Iterable[Mapping[str, Any]], task: Calls
) -> dict[str, Tensor]:
    """The largest magnitude of each channel (C,) of each norm's output."""
    found: dict[str, Tensor] = {}

    def watch(path: str) -> Callable[..., None]:
        def note(_norm: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
            largest = output.abs().flatten(0, -2).amax(0)
            if not bool(largest.isfinite().all()):
                raise Diverged(f"calibration: {path} has a value that is not finite")
            found[path] = torch.maximum(found.get(path, largest), largest)

        return note

    run_watched(model, {path: watch(path) for path in norms}, images, task)
    return found


def _move(norm: Any, layers: list[Any], inputs: Tensor, alpha: float) -> None:
    """Divide the norm's channels and multiply the columns that read them."""
    weights = torch.stack([layer.weight.abs().amax(0) for layer in layers]).amax(0)
    factor = inputs.clamp(min=SMALLEST) ** alpha / weights.clamp(min=SMALLEST) ** (1 - alpha)
    factor = factor.clamp(min=SMALLEST)
    norm.weight.div_(factor)
    if norm.bias is not None:
        norm.bias.div_(factor)
    for layer in layers:
        layer.weight.mul_(factor)
