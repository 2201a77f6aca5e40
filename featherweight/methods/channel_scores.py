# SPDX-License-Identifier: Apache-2.0
"""How much each channel of a group matters: one score (C,) per group, the smallest go first.

l1, l2: the norms of all slices of weights that the channel has, summed (Li 2017, 1608.08710; over the whole group Fang
2023, 2301.12900). bn_scale: |γ| of its batch norms (Liu 2017, 1708.06519). fpgm: the distance to all other filters, so
that the most replaceable ones go (He 2019, 1811.00250). taylor: the mean over batches of |Σ weight · gradient| of the
filters that make it, the first-order change of the loss (Molchanov 2017, 1611.06440).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError, closest
from ..method import Task
from ..modes import BATCH_NORMS
from .coupling import Group, Slot
from .importance import NORMS, gradients

KNOWN = (*NORMS, "bn_scale", "fpgm", "taylor")


def check(importance: str, batches: object, task: object) -> None:
    """OptionError for an unknown name, or where `taylor` has nothing to look at."""
    if importance not in KNOWN:
        hint = f"{closest(importance, KNOWN)}Known: {', '.join(KNOWN)}"
        raise OptionError("importance", f"no {importance!r} here; {hint}")
    if importance == "taylor" and (batches is None or task is None):
        raise OptionError("importance", "'taylor' needs batches= (training batches) and task=; 'l2' needs neither")


def scores(
    model: nn.Module, groups: Sequence[Group], importance: str, batches: Any = None, task: Task | None = None
) -> list[Tensor | None]:
    """A score (C,) for each group, or None where the importance has nothing to say, as of a group without batch norm.

    Raises LookupError where that is so of all of them, OptionError for batches that say nothing.
    """
    check(importance, batches, task)
    tensors = {name: parameter.detach().float() for name, parameter in model.named_parameters()}
    if importance == "taylor" and task is not None:
        found: list[Tensor | None] = list(_by_taylor(model, groups, batches, task))
    elif importance == "bn_scale":
        norms = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, BATCH_NORMS)}
        found = [_sum(group, tensors, [s for s in group.members if s[0] in norms], 1.0) for group in groups]
    elif importance == "fpgm":
        found = [_apart(group, tensors) for group in groups]
    else:
        norm = NORMS[importance]
        found = [_sum(g, tensors, [s for s in g.members if _is_weight(s, tensors)], norm) for g in groups]
    if groups and all(score is None for score in found):
        raise LookupError(f"importance {importance!r}: no channel of this model has what it looks at; use 'l2'")
    for group, score in zip(groups, found, strict=True):
        if score is not None and not bool(torch.isfinite(score).all()):
            raise OptionError("importance", f"{group.name} has scores that are not finite; look for NaN in weights")
    return found


def _is_weight(slot: Slot, tensors: Mapping[str, Tensor]) -> bool:
    """Of a layer that multiplies, rather than a bias, a norm or a position."""
    return slot[0] in tensors and tensors[slot[0]].ndim > 1 and slot[0].rpartition(".")[2] == "weight"


def slices(group: Group, tensors: Mapping[str, Tensor], slot: Slot) -> Tensor:
    """What each channel has of a tensor, flat: (C, n)."""
    index = group.members[slot].to(tensors[slot[0]].device)
    found = tensors[slot[0]].index_select(slot[1], index.flatten()).movedim(slot[1], 0)
    return found.reshape(len(index), -1)


def _sum(group: Group, tensors: Mapping[str, Tensor], slots: Sequence[Slot], p: float) -> Tensor | None:
    norms = [slices(group, tensors, slot).norm(p=p, dim=1) for slot in slots]
    return torch.stack(norms).sum(0).cpu() if norms else None


def _apart(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """The sum of a filter's distances to the others: near the geometric median it is small."""
    filters = torch.cat([slices(group, tensors, slot) for slot in group.makers], dim=1)
    return torch.cdist(filters, filters).sum(1).cpu()


def _by_taylor(model: nn.Module, groups: Sequence[Group], batches: Any, task: Task) -> list[Tensor]:
    parameters = dict(model.named_parameters())
    weights = {slot[0]: parameters[slot[0]] for group in groups for slot in group.makers}
    total = [torch.zeros(group.channels) for group in groups]
    seen = 0
    for found in gradients(model, weights, batches, task):
        product = {name: (weight.detach() * found[name]).float() for name, weight in weights.items()}
        for score, group in zip(total, groups, strict=True):
            parts = [slices(group, product, slot).sum(1) for slot in group.makers]
            score += torch.stack(parts).sum(0).abs().cpu()
        seen += 1
    return [score / seen for score in total]
