# SPDX-License-Identifier: Apache-2.0
"""Mixed depth: in training, another number of passes through shared blocks in each step, so that all depths work.

Our own design. SReT's paper says that networks of several depths can be trained together, without saying how, and its
authors' code has nothing of it. Works on SReT and on any model that `recursion` changed. In each step all blocks that
run several times run as often as one number drawn from (seed, progress) says: equal in every process, and again after a
restart. With `teach` each step runs the full depth, and the drawn one learns its answers (Yu 2019, 1903.05134, does so
with widths). Afterwards the model runs at full depth; `cut` makes a shallower one of it, for good.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..method import Method, Pass
from ..recurrence import Recurrent
from ..surgery import Edit, all_of, apply, edit_kind, edits_of, record, unheard
from .distill import check_weights, kl


@edit_kind
def fewer_loops(module: nn.Module, loops: int) -> nn.Module:
    """The module whose blocks run `loops` times, without what only the later passes used."""
    if not isinstance(module, Recurrent):
        raise LookupError(f"{type(module).__name__} runs nothing several times")
    if type(loops) is not int or not 1 <= loops <= module.loops:
        raise OptionError("loops", f"{loops!r} is not from 1 to {module.loops}")
    module.forget(loops)
    return module


def plan(model: nn.Module, *, loops: int = 1) -> list[Edit]:
    """The edits after which no block runs more than `loops` times; nothing is touched.

    As many loops as the model has change nothing. Raises OptionError for fewer than 1, LookupError for a model without
    blocks that run several times.
    """
    deepest = depth_of(model)
    if type(loops) is not int or not 1 <= loops <= deepest:
        raise OptionError("loops", f"{loops!r} is not from 1 to {deepest}, the most often a block of this model runs")
    return [Edit(path, "fewer_loops", {"loops": loops}) for path, m in recurrent(model).items() if m.loops > loops]


def cut(model: nn.Module, *, loops: int = 1) -> nn.Module:
    """A shallower copy, for deployment."""
    return apply(model, plan(model, loops=loops))


def recurrent(model: nn.Module) -> dict[str, Recurrent]:
    """Path -> what runs blocks several times; LookupError where nothing does."""
    found = all_of(model, Recurrent)
    if not found:
        raise LookupError(f"{type(model).__name__} runs no block several times: take an SReT, or recursion first")
    return found


def depth_of(model: nn.Module) -> int:
    """The most often a block of this model runs."""
    return max(module.loops for module in recurrent(model).values())


@dataclass(frozen=True)
class MixedDepth(Method):
    """Draws the number of passes of each step, from `least` to the model's own; `teach` weighs the full depth's lesson.

    teach=0: the drawn depth alone is trained in a step, which costs less than plain training; what its passes leave out
    gets a gradient of zeros. teach > 0: the task trains the full depth, and teach * KL(full || drawn) is added.
    """

    least: int = 1
    teach: float = 0.0
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_weights(0.0, self.temperature)
        if type(self.least) is not int or self.least < 1:
            raise OptionError("least", f"{self.least!r} is not a number of passes, 1 or more")
        if not 0 <= self.teach < float("inf"):
            raise OptionError("teach", f"{self.teach!r} is not a weight of 0 or more")
        if type(self.seed) is not int or not 0 <= self.seed < 2**32:
            raise OptionError("seed", f"{self.seed!r} is not from 0 to 2**32 - 1")

    def prepare(self, model: nn.Module) -> nn.Module:
        deepest = depth_of(model)
        if self.least >= deepest:
            raise OptionError("least", f"{self.least} of {deepest} passes leave nothing to mix")
        new = copy.deepcopy(model)
        record(new, edits_of(model))
        if not self.teach:
            _run(new, self.drawn(deepest, 0.0))
        return new

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        if not self.teach:
            return terms
        with unheard(run.model), at_depth(run.model, self.drawn(depth_of(run.model), run.progress)):
            shallow = run.call(run.model)
        distance = kl(shallow, run.output.detach(), self.temperature)
        return {**terms, "mixed_depth": self.teach * distance}

    def after_step(self, model: nn.Module, progress: float) -> None:
        if not self.teach:
            _run(model, self.drawn(depth_of(model), progress))

    def finish(self, model: nn.Module) -> nn.Module:
        new = copy.deepcopy(model)
        record(new, edits_of(model))
        _run(new, None)
        return new

    def drawn(self, deepest: int, progress: float) -> int:
        """The number of passes at this point of a run; of those that the full depth teaches, fewer than it has."""
        top = deepest - 1 if self.teach else deepest
        words = np.frombuffer(struct.pack("<d", progress), dtype="<u4")
        noise = np.random.SeedSequence([self.seed, *words.tolist()]).generate_state(1)
        return self.least + int(noise[0]) % (top - self.least + 1)


@contextmanager
def at_depth(model: nn.Module, loops: int) -> Iterator[Any]:
    """While inside, the model runs its blocks at most `loops` times in training mode."""
    before = [(module, module.running) for module in recurrent(model).values()]
    _run(model, loops)
    try:
        yield model
    finally:
        for module, running in before:
            module.running = running


def _run(model: nn.Module, loops: int | None) -> None:
    for module in recurrent(model).values():
        if loops is None:
            module.running = None
        elif module.running is None:
            module.running = torch.tensor(loops, device=next(module.parameters()).device)
        else:
            module.running.fill_(loops)
