# SPDX-License-Identifier: Apache-2.0
"""Several processes training one model: what `fit` needs of torch.distributed, and nothing where there is one process.

Started by `torchrun`, which sets RANK and WORLD_SIZE. Gloo on CPU, NCCL on CUDA. A process that has already called
`torch.distributed.init_process_group` (for another backend, another timeout) is taken as it is.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Team:
    """This process among `world` equal ones; rank 0 writes and logs."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose backward pass averages gradients over the team. Every trained parameter must be used."""
        if self.world == 1 or not any(p.requires_grad for p in model.parameters()):
            return model
        return DistributedDataParallel(model)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Everybody's tensor (all of one shape and dtype), in order of rank, on the CPU."""
        if self.world == 1:
            return [tensor]
        tensor = tensor.to(_device())
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        distributed.all_gather(parts, tensor)
        return [part.cpu() for part in parts]

    def any(self, flag: bool) -> bool:
        """True everywhere if it is true anywhere."""
        return flag if self.world == 1 else any(bool(vote) for vote in self.gather(torch.tensor([float(flag)])))

    def differs(self, number: int) -> bool:
        """Whether not all have the same number."""
        return len({int(theirs) for theirs in self.gather(torch.tensor([number]))}) > 1

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give everybody rank 0's values."""
        if self.world > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)


def join(device: torch.device) -> Team:
    """The team this process was started in: `torchrun`'s, or a team of one."""
    if not distributed.is_available():
        return Team()
    if not distributed.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
            return Team()
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    return Team(distributed.get_rank(), distributed.get_world_size())


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _device() -> torch.device:
    """Where NCCL, which moves nothing else, wants its tensors."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if distributed.get_backend() == "nccl"
        else torch.device("cpu")
    )
