# SPDX-License-Identifier: Apache-2.0
"""Deep mutual learning (Zhang 2018, 1706.00384): networks trained together learn from each other's answers.

The peers are trained beside the model, in the same run and by the same optimizer; each learns the task and the mean of
its distances to all others. Only the model is left at the end. Peers must not begin with the model's own weights: what
is alike stays alike. They may have any structure that takes the same input and knows the same classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..method import Method, Pass
from ..surgery import Aside
from .distill import Distance, kl
from .listening import Listener, with_listener, without

NAME = "mutual"


class Peers(Listener):
    """Networks that answer to whatever the model is asked in training."""

    def __init__(self, peers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.peers = nn.ModuleList(copy.deepcopy(peer) for peer in peers)
        self.aside = Aside()

    def answer(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """A hook of the model."""
        if self.training:
            self.aside.logits = [logits_of(peer(*args, **kwargs)) for peer in self.peers]


def logits_of(output: Any) -> Tensor:
    """The logits in what a classifier answers, of ours or of the transformers library."""
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise OptionError("peers", f"a peer answers with {type(output).__name__}, not with logits")
    return found


@dataclass(frozen=True)
class Mutual(Method):
    """The task for each network + weight * the mean distance to the others' answers. No peers is plain training."""

    peers: tuple[nn.Module, ...]
    weight: float = 1.0
    temperature: float = 1.0
    distance: Distance = kl

    def __post_init__(self) -> None:
        object.__setattr__(self, "peers", tuple(self.peers))
        if not self.weight >= 0:
            raise OptionError("weight", f"{self.weight!r} is not 0 or more")
        if not self.temperature > 0:
            raise OptionError("temperature", f"{self.temperature!r} is not above 0")

    def prepare(self, model: nn.Module) -> nn.Module:
        if not self.peers:
            return model
        mine = model.state_dict()
        for peer in self.peers:
            theirs = peer.state_dict()
            if list(mine) == list(theirs) and all(torch.equal(mine[name].cpu(), theirs[name].cpu()) for name in mine):
                raise OptionError("peers", "one has the model's own weights; begin with others, such as another seed's")
        new = with_listener(model, NAME, Peers(self.peers))
        listener: Any = getattr(new, NAME)
        new.register_forward_hook(listener.answer, with_kwargs=True)
        return new

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        if not self.peers:
            return terms
        listener: Any = getattr(run.model, NAME)
        answers = [run.output, *listener.aside.take("logits")]
        own = [term for each in answers[1:] for term in run.criterion(each).values()]
        apart = [
            self.distance(each, other.detach(), self.temperature)
            for place, each in enumerate(answers)
            for far, other in enumerate(answers)
            if far != place
        ]
        near = self.weight * torch.stack(apart).sum() / len(self.peers)
        return {**terms, "peers": torch.stack(own).sum(), "mutual": near}

    def finish(self, model: nn.Module) -> nn.Module:
        return without(model, NAME) if self.peers else model
