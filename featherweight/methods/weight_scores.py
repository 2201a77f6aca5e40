# SPDX-License-Identifier: Apache-2.0
"""How much each single weight matters, one tensor of scores per layer: the smallest go first.

magnitude |w| (Han 2015, 1506.02626); snip |w · mean gradient| (Lee 2019, 1810.02340); taylor, the mean over batches of
|w · gradient| (Molchanov 2017, 1611.06440); fisher, w² · mean gradient² / 2, which is optimal brain damage with the
empirical Fisher for the curvature (LeCun 1989); wanda |w| · ‖input‖₂ (Sun 2023, 2306.11695), which needs no labels.
Not here: second-order methods that also move the weights that stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError, closest
from ..method import Task
from ..modes import evaluating
from .importance import each, gradients
from .masks import weight_of

Layers = Mapping[str, nn.Module]
Scores = dict[str, Tensor]
BY_GRADIENT = ("taylor", "snip", "fisher")
IMPORTANCES = ("magnitude", *BY_GRADIENT, "wanda")


def check(importance: str, batches: object, task: object) -> None:
    """OptionError for an unknown name, or where there is nothing to look at."""
    if importance not in IMPORTANCES:
        hint = f"{closest(importance, IMPORTANCES)}Known: {', '.join(IMPORTANCES)}"
        raise OptionError("importance", f"no {importance!r} here; {hint}")
    if importance != "magnitude" and (batches is None or task is None):
        text = f"{importance!r} needs batches= (training batches) and task=; 'magnitude' needs neither"
        raise OptionError("importance", text)


def scores(model: nn.Module, layers: Layers, importance: str, batches: Any = None, task: Task | None = None) -> Scores:
    """Path -> float32 scores shaped like the weight. Raises OptionError for batches that say nothing."""
    check(importance, batches, task)
    if importance == "magnitude":
        return {path: weight_of(layer).detach().float().abs() for path, layer in layers.items()}
    if task is None:
        raise OptionError("task", f"{importance!r} needs one")
    found = (by_input if importance == "wanda" else by_gradient)(model, layers, importance, batches, task)
    for path, score in found.items():
        if not bool(torch.isfinite(score).all()):
            raise OptionError("batches", f"give {path} scores that are not finite; look for NaN in images or weights")
    return found


def by_gradient(model: nn.Module, layers: Layers, importance: str, batches: Any, task: Task) -> Scores:
    """Scores from the gradients of the task's loss in evaluation mode, batch by batch."""
    weights = {path: weight_of(layer) for path, layer in layers.items()}
    total = {path: torch.zeros_like(weight, dtype=torch.float32) for path, weight in weights.items()}
    seen = 0
    for found in gradients(model, weights, batches, task):
        for path, weight in weights.items():
            total[path] += _PER_BATCH[importance](weight.detach().float(), found[path].float())
        seen += 1
    whole = _WHOLE[importance]
    return {path: whole(weights[path].detach().float(), score / seen) for path, score in total.items()}


# What a batch adds, and what becomes of the mean of that: from a weight and its gradient
_PER_BATCH: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "taylor": lambda w, g: (w * g).abs(),
    "snip": lambda w, g: g,
    "fisher": lambda w, g: g.square(),
}
_WHOLE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "taylor": lambda w, mean: mean,
    "snip": lambda w, mean: (w * mean).abs(),
    "fisher": lambda w, mean: w.square() * mean / 2,
}


def by_input(model: nn.Module, layers: Layers, importance: str, batches: Any, task: Task) -> Scores:
    """|w| times the norm of the input channel that it multiplies, over all images and positions."""
    squares: dict[str, Tensor] = {}

    def adder(path: str, layer: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        channels = -1 if isinstance(layer, nn.Linear) else 1

        def add(_layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().double().movedim(channels, 0).flatten(1)  # (C, everything else)
            squares[path] = squares.get(path, torch.zeros((), dtype=torch.float64)) + x.square().sum(1).cpu()

        return add

    hooks = [layer.register_forward_pre_hook(adder(path, layer)) for path, layer in layers.items()]
    try:
        with evaluating(model), torch.no_grad():
            for batch in each(batches):
                task.forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not squares:
        raise OptionError("batches", "there are none; 'wanda' needs at least one batch of images")
    if missing := [path for path in layers if path not in squares]:
        raise LookupError(f"{missing[0]} was not called in a forward pass; skip it, or use importance='magnitude'")
    return {path: _times(layer, squares[path].sqrt()) for path, layer in layers.items()}


def _times(layer: nn.Module, norms: Tensor) -> Tensor:
    """|w| of a layer times the norms (C,) of its input channels."""
    weight = weight_of(layer).detach().float().abs()
    if isinstance(layer, nn.Linear):
        return weight * norms.to(weight)
    places = [1] * (weight.ndim - 2)
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return weight * norms.to(weight).reshape(-1, 1, *places)  # (I, O / groups, ...)
    groups: int = layer.groups  # type: ignore[assignment]
    rows = norms.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, dim=0)  # (O, I / groups)
    return weight * rows.to(weight).reshape(*rows.shape, *places)
