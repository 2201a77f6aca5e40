# SPDX-License-Identifier: Apache-2.0
"""Stochastic weight averaging (Izmailov 2018, 1803.05407): the mean of the weights that the end of a run goes through.

From `start` of the run on, every `every` of it, the weights are added to a plain mean, which is the result; the
statistics of its batch norms, which fit none of the weights that were passed, are then taken anew. It works best with a
rate that stays high while it averages: `schedule`. A moving average (EMA) is an option of `fit`. Not here: cycles.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..method import Method, Task
from ..modes import BATCH_NORMS, evaluating
from ..surgery import edits_of, record
from .listening import Listener, followed, with_listener

NAME = "swa"


class Mean(Listener):
    """A copy of a model whose weights are the mean of those it was given; part of a checkpoint, and of no optimizer."""

    count: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        """One more in the mean."""
        self.count += 1
        for mine, theirs in followed(self.model, model, NAME).values():
            if mine.is_floating_point():
                mine.lerp_(theirs.to(mine), 1 / int(self.count))
            else:
                mine.copy_(theirs)


@torch.no_grad()
def renew_norms(model: nn.Module, batches: Iterable[Mapping[str, Any]], task: Task) -> None:
    """Take the batch norms' statistics of this very model anew: plain means over these batches, everything else in
    evaluation. Their weights are left as they are.
    """
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True
        count = 0
        for batch in batches:
            task.forward(model, batch)
            count += 1
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum, norm.training = momentum, False
    if not count:
        raise OptionError("batches", "there are none to take the batch norms' statistics from")


@dataclass(frozen=True)
class SWA(Method):
    """The mean of the weights from `start` of the run on, one in each `every` of it; start 1 is plain training.

    batches, task: some training data and how the model is called, for models with batch norms; asked for once, after
    the training.
    """

    start: float = 0.75
    every: float = 0.025
    batches: Iterable[Mapping[str, Any]] | None = None
    task: Task | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1:
            raise OptionError("start", f"{self.start!r} is not a share of the run, 0..1")
        if not 0 <= self.every <= 1:
            raise OptionError("every", f"{self.every!r} is not a share of the run, 0..1; 0 is every step")

    def prepare(self, model: nn.Module) -> nn.Module:
        known = self.batches is not None and self.task is not None
        if not known and self.start < 1 and any(isinstance(module, BATCH_NORMS) for module in model.modules()):
            text = "the mean's batch norms need statistics: give batches of training data, and the task"
            raise OptionError("batches", text)
        return with_listener(model, NAME, Mean(model)) if self.start < 1 else model

    def after_step(self, model: nn.Module, progress: float) -> None:
        mean: Any = getattr(model, NAME, None)
        if mean is not None and progress >= self.start + int(mean.count) * self.every - 1e-9:
            mean.add(model)

    def finish(self, model: nn.Module) -> nn.Module:
        if not hasattr(model, NAME):
            return model
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        mean: Any = getattr(model, NAME)
        new: nn.Module = copy.deepcopy(mean.model)
        for name, parameter in new.named_parameters():
            parameter.requires_grad_(name in trainable)
        record(new, edits_of(model))
        if self.batches is not None and self.task is not None:
            renew_norms(new, self.batches, self.task)
        return new


@dataclass(frozen=True)
class Tail:
    """Half a cosine from 1 to `rate` until `start`, then `rate`."""

    start: float
    rate: float
    warmup: float

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        if progress >= self.start:
            return self.rate
        passed = (progress - self.warmup) / (self.start - self.warmup)
        return self.rate + (1 - self.rate) * 0.5 * (1 + math.cos(math.pi * passed))


def schedule(*, start: float = 0.75, rate: float = 0.1, warmup: float = 0.05) -> Tail:
    """A learning rate that falls to `rate` of its peak and stays there from `start` on, where the averaging begins."""
    if not 0 <= warmup < start <= 1:
        raise OptionError("schedule", f"warmup {warmup!r} and start {start!r} are not shares of the run in this order")
    if not 0 < rate <= 1:
        raise OptionError("schedule.rate", f"{rate!r} is not above 0, at most 1")
    return Tail(start, rate, warmup)
