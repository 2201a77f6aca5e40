# SPDX-License-Identifier: Apache-2.0
"""Re-parameterization: what training makes of several parts becomes one convolution each, and the answer stays.

Convolution and batch norm, RepConv's branches (Ding 2021, 2101.03697), implicit knowledge in YOLOv7's head, auxiliary
branches that only training needs (Wang 2022, 2207.02696). Which blocks can be merged, and how, stands beside each block
(`convs.fused`); users register theirs the same way. Anchors, class count and names stay the model's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..convs import fused
from ..errors import CheckFailed, OptionError
from ..modes import evaluating
from ..surgery import Edit, apply, edit_kind

__all__ = ["fuse", "fused", "plan"]

M = TypeVar("M", bound=nn.Module)
TOLERANCE = 1e-4  # of the outputs' standard deviation; in float32 merging moves them by about 1e-6


def plan(model: nn.Module) -> list[Edit]:
    """An edit for every block that has something to merge, outer ones first; nothing is touched."""
    return list(_edits("", model))


def fuse(model: M, example: Any = None, *, tolerance: float = TOLERANCE, verify: bool = True) -> M:
    """A copy for deployment with fewer parts, compared with the model on an example before it is returned.

    example: a batch, or the model's arguments as a tuple; noise of the model's own size unless given. Raises
    CheckFailed where an output differs by more than `tolerance` times its standard deviation, OptionError where no
    example is known.
    """
    edits = plan(model)
    new = apply(model, edits)
    if verify and edits:
        off = difference(model, new, example)
        if not off <= tolerance:
            raise CheckFailed(f"fuse: outputs differ by {off:.1e} of their deviation (allowed {tolerance:.0e})")
    return new


@torch.no_grad()
def difference(model: nn.Module, other: nn.Module, example: Any = None) -> float:
    """The largest difference of any output in evaluation, relative to that output's standard deviation."""
    args = _example(model) if example is None else example if isinstance(example, tuple) else (example,)
    with evaluating(model), evaluating(other):
        pairs = zip(_tensors(model(*args)), _tensors(other(*args)), strict=True)
        return max(float((a - b).abs().max() / a.std().clamp(min=1e-12)) for a, b in pairs)


@edit_kind
def merge_parts(module: nn.Module) -> nn.Module:
    """The block's merged form; the block itself where there is nothing to merge."""
    new = fused(module)
    return module if new is None else new


def _edits(path: str, module: nn.Module) -> Iterator[Edit]:
    new = fused(module)
    if new is not None:
        yield Edit(path, "merge_parts")
        module = new
    for name, child in module.named_children():
        yield from _edits(f"{path}.{name}".lstrip("."), child)


def _example(model: nn.Module) -> tuple[Tensor, ...]:
    """Noise that the model takes: two strides of a detector, else the size its configuration names."""
    weight = next(model.parameters())
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    strides = getattr(getattr(model, "head", None), "strides", None)
    size = getattr(getattr(model, "config", None), "image_size", None)
    if strides:
        size = (2 * max(strides), 2 * max(strides))
    if size is None or first is None:
        raise OptionError("example", "is needed: this model does not say what size of picture it takes")
    noise = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    return (noise.to(weight.device, weight.dtype),)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output.float()
    elif isinstance(output, dict):
        yield from _tensors(tuple(output.values()))
    elif isinstance(output, (list, tuple)):
        for item in output:
            yield from _tensors(item)
