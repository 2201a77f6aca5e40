# SPDX-License-Identifier: Apache-2.0
"""Several processes training one model: what `fit` needs of torch.distributed, and nothing where there is one process.

Started by `torchrun`, which sets RANK and WORLD_SIZE. Gloo on CPU, NCCL on CUDA. A process that has already called
`torch.distributed.init_process_group` (for another backend, another timeout) is taken as it is.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from featherweight.errors import FeatherweightError, OptionError

PATIENCE = 300.0  # seconds for all processes of a start to come
SIGNS = ("timed out", "timeout", "connection closed", "connection reset", "broken pipe")  # of a process that is lost


class Lost(FeatherweightError):
    """Another process of the team hangs or is gone."""


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

    def wait(self) -> None:
        """Until all are here."""
        self.any(False)

    def differs(self, number: int) -> bool:
        """Whether not all have the same number."""
        return len({int(theirs) for theirs in self.gather(torch.tensor([number]))}) > 1

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give everybody rank 0's values."""
        if self.world > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While inside, the loss of another process is told as what it is."""
        try:
            yield
        except RuntimeError as error:
            said = str(error).lower()
            if self.world == 1 or not any(sign in said for sign in SIGNS):
                raise
            text = f"process {self.rank} of {self.world} waits in vain: another one hangs or is gone"
            raise Lost(f"{text}; under torchrun --max-restarts all are started again ({error})") from error


def join(device: torch.device, timeout: float | None = None) -> Team:
    """The team this process was started in: `torchrun`'s, or a team of one.

    timeout: seconds after which a process that does not answer is given up; PyTorch's own unless given.
    """
    if timeout is not None and not timeout > 0:
        raise OptionError("timeout", f"{timeout!r} is not a number of seconds above 0")
    if not distributed.is_available():
        return Team()
    if not distributed.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
            return Team()
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        _init("nccl" if device.type == "cuda" else "gloo", timeout)
        atexit.register(_leave)
    return Team(distributed.get_rank(), distributed.get_world_size())


def _init(backend: str, timeout: float | None) -> None:
    """Join the processes of this start, and not what an earlier start has left in torchrun's store.

    PyTorch keeps one store over all restarts, with the addresses of the processes that died (seen in 2.14).
    """
    patience = timedelta(seconds=timeout) if timeout is not None else None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        distributed.init_process_group(backend, timeout=patience)
        return
    store, rank, world = next(distributed.rendezvous("env://"))
    store = distributed.PrefixStore(f"featherweight/{_start(store, rank, world)}", store)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience)


def _start(store: distributed.Store, rank: int, world: int) -> str:
    """A name for this start that all its processes agree on: rank 0 answers what nobody has asked before."""
    if rank:
        question = secrets.token_hex(8)
        store.set(f"featherweight/asks/{rank}", question)
        name = store.get(f"featherweight/answer/{question}").decode()
        store.set(f"featherweight/heard/{name}/{rank}", "1")
        return name
    name, waiting = secrets.token_hex(8), set(range(1, world))
    end = time.monotonic() + PATIENCE
    while waiting:
        if time.monotonic() > end:
            raise Lost(f"{len(waiting)} of {world} processes have not come: {sorted(waiting)[:8]}")
        for other in sorted(waiting):
            if store.check([f"featherweight/asks/{other}"]):
                store.set(f"featherweight/answer/{store.get(f'featherweight/asks/{other}').decode()}", name)
            if store.check([f"featherweight/heard/{name}/{other}"]):
                waiting.discard(other)
        time.sleep(0.01)
    return name


def here() -> Team:
    """The team this process is in already; a team of one where none was joined."""
    if not distributed.is_available() or not distributed.is_initialized():
        return Team()
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
