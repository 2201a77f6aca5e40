# SPDX-License-Identifier: Apache-2.0
"""After neurons or heads were cut: let the layer that read them make up for the rest (He 2017, 1707.06168).

The reader of what was cut (`fc2`, the attention's projection) is solved anew by least squares, so that from what is
left it gives what it gave from everything, on a few calibration images without labels. One solve per layer, no
training; fine-tuning starts from there. Not here: solving layers one after the other on what the cut ones before give.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import anatomy_of
from ..modes import evaluating
from ..surgery import Edit, edits_of, record, submodule
from ..train import Task
from .prune import Heads, Mlp

PARTS: dict[str, type[Mlp] | type[Heads]] = {"narrow_mlp": Mlp, "narrow_heads": Heads}


class Moments:
    """Mean (C,) and covariance (C, C) of a layer's inputs, summed in double precision."""

    def __init__(self, width: int) -> None:
        self.count, self.sum = 0, torch.zeros(width, dtype=torch.float64)
        self.products = torch.zeros(width, width, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        rows = x.detach().reshape(-1, x.shape[-1]).double().cpu()  # (samples, C)
        self.count += len(rows)
        self.sum += rows.sum(0)
        self.products += rows.T @ rows

    @property
    def mean(self) -> Tensor:
        return self.sum / self.count

    @property
    def covariance(self) -> Tensor:
        return self.products / self.count - torch.outer(self.mean, self.mean)


def refit(
    model: nn.Module, pruned: nn.Module, batches: Iterable[Mapping[str, Any]], task: Task, *, ridge: float = 1e-3
) -> nn.Module:
    """`pruned`, made from `model` by `prune`, with the readers of what was cut solved anew; both are left as they were.

    ridge: share of the mean variance added to each channel's, which keeps the solution near where images are few.
    """
    edits = [edit for edit in edits_of(pruned)[len(edits_of(model)) :] if edit.kind in PARTS]
    parts = [_part(model, edit) for edit in edits]
    found = [Moments(part.reader.in_features) for part in parts]
    hooks = [part.reader.register_forward_pre_hook(_adder(seen)) for part, seen in zip(parts, found, strict=True)]
    try:
        with evaluating(model), torch.no_grad():
            for batch in batches:
                task.forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    new = copy.deepcopy(pruned)
    record(new, edits_of(pruned))
    for edit, part, seen in zip(edits, parts, found, strict=True):
        if seen.count:
            _solve(part.reader, _part(new, edit).reader, _kept(part, edit), seen, ridge)
    return new


def _part(model: nn.Module, edit: Edit) -> Mlp | Heads:
    block = edit.spec["block"]
    return PARTS[edit.kind].of(submodule(model, block), anatomy_of(model), block)


def _kept(part: Mlp | Heads, edit: Edit) -> list[int]:
    """The reader's input channels that are left."""
    each = part.reader.in_features // part.groups
    return [group * each + i for group in edit.spec["keep"] for i in range(each)]


def _adder(moments: Moments) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _reader, args: moments.add(args[0])


@torch.no_grad()
def _solve(old: nn.Linear, new: nn.Linear, keep: list[int], seen: Moments, ridge: float) -> None:
    covariance, mean = seen.covariance, seen.mean
    left = covariance[keep][:, keep]
    left = left + torch.eye(len(keep), dtype=left.dtype) * (ridge * covariance.diagonal().mean()).clamp(min=1e-12)
    spread = torch.linalg.solve(left, covariance[keep])  # (K, C): each old channel from those that are left
    weight = old.weight.double().cpu()
    new.weight.copy_((weight @ spread.T).to(new.weight))
    if new.bias is not None and old.bias is not None:
        new.bias.copy_((old.bias.double().cpu() + weight @ (mean - spread.T @ mean[keep])).to(new.bias))
