# SPDX-License-Identifier: Apache-2.0
"""A model whose weights, gradients and moments are split over the processes: PyTorch's FSDP2 (Zhao 2023, 2304.11277).

Each block of a described transformer is gathered when it runs and let go again; what is left is one group of its own.
Checkpoints, averages and results hold whole tensors, so a run may go on with another way of sharing the work.

Not with it: methods that call a part of a block, or change weights by hand after a step.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from featherweight.anatomy import blocks_of
from featherweight.distributed import Team

PARALLEL = ("ddp", "fsdp")


def shard(model: nn.Module, team: Team) -> nn.Module:
    """This very model, split over the team; equal weights everywhere first. Returns an outline: a whole copy."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    team.share(model.state_dict().values())
    outline = copy.deepcopy(model)
    mesh = init_device_mesh(next(model.parameters()).device.type, (team.world,))
    for block in _blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return outline


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of it where it is split: then every process has to ask."""
    return cast(Tensor, cast(Any, tensor).full_tensor()) if _split(tensor) else tensor


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be split."""
    if _split(tensor):
        cast(Any, tensor).to_local().copy_(alike(value, tensor).to_local())  # type: ignore[attr-defined]
    else:
        tensor.copy_(value)


def alike(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, laid out in memory (and split, if it is) as `like`, with a type of its own. Nothing is sent."""
    if not _split(like):
        return torch.empty_like(like, dtype=value.dtype).copy_(value)
    from torch.distributed.tensor import distribute_tensor

    place = cast(Any, like)
    return distribute_tensor(value.to(like.device), place.device_mesh, place.placements, src_data_rank=None)


def _split(tensor: Tensor) -> bool:
    """Whether it is a DTensor, asked without importing what makes them."""
    return hasattr(tensor, "full_tensor")


def _blocks(model: nn.Module) -> list[nn.Module]:
    try:
        return list(blocks_of(model).values())
    except TypeError:  # no transformer, or one that nobody described
        return []
