# SPDX-License-Identifier: Apache-2.0
"""How much the outputs of a layer matter: by weight, or by what the loss would lose (Molchanov 2017, 1611.06440).

A group is what is removed together: a neuron with its column in the next layer, a head with its queries, keys, values
and columns. Scores are comparable within a layer; `per_mean` makes them comparable between layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError, closest
from ..modes import evaluating
from ..train import Task

NORMS = {"l1": 1.0, "l2": 2.0}
KNOWN = (*NORMS, "taylor")


def check(importance: str, batches: object, task: object) -> None:
    """Raises OptionError for an unknown name, or where `taylor` has nothing to look at."""
    if importance not in KNOWN:
        hint = f"{closest(importance, KNOWN)}Known: {', '.join(KNOWN)}"
        raise OptionError("importance", f"no {importance!r} here; {hint}")
    if importance == "taylor" and (batches is None or task is None):
        raise OptionError("importance", "'taylor' needs batches= (training batches) and task=; 'l2' needs neither")


def by_weight(makers: Sequence[Tensor], readers: Sequence[Tensor], groups: int, norm: str) -> Tensor:
    """Scores (G,): the norms of each group's slices, summed over the tensors.

    `makers` have the groups on their first dimension, `readers` on their second; G equal, contiguous groups each.
    """
    sides = [t.detach().reshape(groups, -1) for t in makers]
    sides += [t.detach().transpose(0, 1).reshape(groups, -1) for t in readers]
    return torch.stack([side.float().norm(p=NORMS[norm], dim=1) for side in sides]).sum(0)


def per_mean(scores: Tensor) -> Tensor:
    """Scores as multiples of their mean, so that layers of different scale can be ranked together."""
    return scores / scores.mean().clamp(min=1e-12)


def by_taylor(
    model: nn.Module, readers: Mapping[str, tuple[nn.Module, int]], batches: Any, task: Task
) -> dict[str, Tensor]:
    """For each reader (layer, groups): what its input's groups are worth, (G,), summed over the images of the batches.

    First order: |sum over tokens and channels of activation * gradient|. The model runs in evaluation mode, without
    dropout, and is left as it was; parameters get no gradient.
    """
    total = {name: torch.zeros(groups) for name, (_, groups) in readers.items()}
    seen = 0
    layers = {name: layer for name, (layer, _) in readers.items()}
    with evaluating(model), torch.enable_grad(), _inputs(layers) as inputs:
        for batch in each(batches):
            inputs.clear()
            loss = torch.stack(list(task.loss(task.forward(model, batch), batch).values())).sum()
            if missing := set(readers) - set(inputs):
                raise LookupError(f"{min(missing)} was not called in a forward pass; skip it, or use importance='l2'")
            gradients = torch.autograd.grad(loss, [inputs[name] for name in readers])
            for (name, (_, groups)), gradient in zip(readers.items(), gradients, strict=True):
                product = (inputs[name].detach() * gradient).float()
                size = product.shape[0]  # the loss is a mean over the batch: gradients are brought back to one image
                by_image = product.reshape(size, -1, groups, product.shape[-1] // groups).sum((1, 3))  # (B, G)
                total[name] += size * by_image.abs().sum(0).cpu()
            seen += 1
    if not seen:
        raise OptionError("batches", "there are none; 'taylor' needs at least one batch of training images")
    return total


def gradients(
    model: nn.Module, weights: Mapping[str, nn.Parameter], batches: Any, task: Task
) -> Iterator[dict[str, Tensor]]:
    """For each batch the gradients of the task's loss by these weights, zeros for one that has no part in it.

    The model runs in evaluation mode and is left as it was. Raises OptionError where there are no batches.
    """
    frozen = [weight for weight in weights.values() if not weight.requires_grad]
    seen = False
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        for batch in each(batches):
            with evaluating(model), torch.enable_grad():
                loss = torch.stack(list(task.loss(task.forward(model, batch), batch).values())).sum()
                found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            pairs = zip(weights.items(), found, strict=True)
            yield {name: torch.zeros_like(weight) if g is None else g for (name, weight), g in pairs}
            seen = True
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    if not seen:
        raise OptionError("batches", "there are none; an importance by gradient needs at least one training batch")


def each(batches: Any) -> Iterable[Any]:
    """The batches of a training set, or those of any iterable."""
    return batches.epoch(0) if hasattr(batches, "epoch") else batches


@contextmanager
def _inputs(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """While inside, the first input of each layer's latest call, by name, able to take a gradient."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            seen[name] = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
            return (seen[name], *args[1:])

        return before

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
