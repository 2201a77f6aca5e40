# SPDX-License-Identifier: Apache-2.0
"""Model soups (Wortsman 2022, 2203.05482): the mean of the weights of models that began alike; one model, no more cost.

Uniform: all of them. Greedy: from the best on, each is kept if the mean with it scores no worse on held-out data. Works
for models fine-tuned from one initialization, of one structure and with the same masks and ranges: whatever is not a
float must be equal. What is saved as integers is not averaged: average the float models, then quantize. Statistics of
batch norms fit no longer: `swa.renew_norms`, or `repair`. Not here: mixing of single layers, other weights than 1 / n.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import OptionError
from ..packing import tensors_of
from ..surgery import edits_of, record

COUNTERS = ("num_batches_tracked",)  # buffers that only count; the first model's are kept


@dataclass(frozen=True)
class Soup:
    """A soup, the places of the models that are in it (in the order in which they went in), and its score."""

    model: nn.Module
    members: tuple[int, ...]
    score: float


def uniform(models: Sequence[nn.Module]) -> nn.Module:
    """The mean of the models' weights, as a new model in evaluation mode. One model is given back as a copy.

    OptionError for models that do not have the same tensors, edits and masks.
    """
    if not models:
        raise OptionError("models", "there are none to average")
    first, *others = models
    for place, other in enumerate(others, 1):
        _check(first, other, f"models[{place}]")
    new = copy.deepcopy(first)
    record(new, edits_of(first))
    states = [tensors_of(model) for model in models]
    with torch.no_grad():
        for name, mine in tensors_of(new).items():
            if mine.is_floating_point():
                mine.copy_(torch.stack([state[name].to(mine.device).double() for state in states]).mean(0))
    return new.eval()


def greedy(
    models: Sequence[nn.Module],
    score: Callable[[nn.Module], float],
    *,
    mend: Callable[[nn.Module], object] | None = None,
) -> Soup:
    """The best model, and each next best one that does not lower the score: higher is better, on held-out data.

    mend: what is done to each mean of several before it is scored, such as `swa.renew_norms`.
    """
    if not models:
        raise OptionError("models", "there are none to average")
    found = [float(score(model)) for model in models]
    order = sorted(range(len(models)), key=lambda place: -found[place])
    best = Soup(uniform([models[order[0]]]), (order[0],), found[order[0]])
    for place in order[1:]:
        members = (*best.members, place)
        mixed = uniform([models[i] for i in members])
        if mend is not None:
            mend(mixed)
        reached = float(score(mixed))
        if reached >= best.score:
            best = Soup(mixed, members, reached)
    return best


def _check(first: nn.Module, other: nn.Module, where: str) -> None:
    if edits_of(first) != edits_of(other):
        raise OptionError(where, "was changed in another way than the first; only models of one structure are averaged")
    mine, theirs = tensors_of(first), tensors_of(other)
    if odd := sorted(set(mine) ^ set(theirs)):
        raise OptionError(where, f"has not the tensors of the first: {odd[0]}")
    for name, tensor in mine.items():
        if tensor.shape != theirs[name].shape:
            raise OptionError(where, f"{name} is {list(theirs[name].shape)}, the first's {list(tensor.shape)}")
        counts = name.rsplit(".", 1)[-1] in COUNTERS
        if not tensor.is_floating_point() and not counts and not torch.equal(tensor, theirs[name].to(tensor.device)):
            text = f"{name} differs, and has no mean: only models with equal masks and before quantization are averaged"
            raise OptionError(where, text)
