# SPDX-License-Identifier: Apache-2.0
"""ONE, on-the-fly native ensemble (Lan 2018, 1806.04606): a network with several last parts teaches itself.

The modules at `at` get copies; what stands before the first of them is shared. In training each copy sees its own part
of a batch that the first module splits and the last one puts together again, so that what stands between them and has
no weights (pooling, activations) needs no change, and no graph is traced. A gate on the shared features weighs the
branches' logits into an ensemble, which learns the labels like each branch and teaches them all. What is left at the
end is one branch, as big as the model was, or the gated ensemble. Not here: branches of different structure.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..method import Method, Pass
from ..schedules import ramp_up
from ..surgery import Aside, Edit, all_of, apply, edit_kind, edits_of, put, record, submodule
from .distill import kl
from .features import embedding

Deploy = Literal["first", "ensemble"]


class Gate(nn.Module):
    """Shared features (B, C, H, W), (B, N, C) or (B, C) -> the share of each branch (B, n), which sum to 1."""

    def __init__(self, width: int, branches: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(embedding(x))).relu().softmax(1)


class Branched(nn.Module):
    """A module of the host and its copies; in training the i-th of them gets the i-th part of the batch.

    The first of a chain gets one batch and gives it to all; the last puts the logits of all aside, and returns those of
    the host's own branch in training, and in evaluation, where the whole ensemble is kept, the gated ones.
    """

    def __init__(
        self, module: nn.Module, branches: int, letter: Aside, gate: Gate | None, last: bool, ensemble: bool
    ) -> None:
        super().__init__()
        self.module = module
        self.others = nn.ModuleList(copy.deepcopy(module) for _ in range(branches - 1))
        self.letter, self.gate, self.last, self.ensemble = letter, gate, last, ensemble

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not (self.training or self.ensemble):
            return self.module(x, *args, **kwargs)  # type: ignore[no-any-return]
        branches = [self.module, *self.others]
        if self.gate is not None:
            self.letter.gates = self.gate(x)
        parts = [x] * len(branches) if self.gate is not None else x.unflatten(0, (len(branches), -1)).unbind(0)
        found = [branch(part, *args, **kwargs) for branch, part in zip(branches, parts, strict=True)]
        if not self.last:
            return torch.cat(found)
        self.letter.logits = found
        return found[0] if self.training else gated(self.letter.take("gates"), self.letter.take("logits"))


def gated(gates: Tensor, logits: Sequence[Tensor]) -> Tensor:
    """Shares (B, n) and n times logits (B, K) -> the ensemble's logits (B, K)."""
    return torch.stack(list(logits), 2).mul(gates[:, None]).sum(2)


@edit_kind
def branches(model: nn.Module, *, at: Sequence[str], count: int, features: int) -> nn.Module:
    """The model as the gated ensemble of `count` branches, which differ in the modules at these paths."""
    return _branched(model, at, count, features, ensemble=True)


def _branched(model: nn.Module, at: Sequence[str], count: int, features: int, *, ensemble: bool) -> nn.Module:
    """The very model with copies at these paths."""
    if all_of(model, Branched):
        raise OptionError("one", f"{type(model).__name__} has branches already")
    letter = Aside()
    for place, path in enumerate(at):
        gate = Gate(features, count) if place == 0 else None
        last = place == len(at) - 1
        new = Branched(submodule(model, path), count, letter, gate, last, ensemble)
        put(model, path, new.train(model.training))
    return model


def width_of(module: nn.Module, path: str) -> int:
    """How many channels a module reads, by the first layer in it that says so. OptionError where none does."""
    for layer in module.modules():
        for name in ("in_channels", "in_features", "num_features", "normalized_shape"):
            if width := getattr(layer, name, None):
                return int(width if isinstance(width, int) else width[-1])
    raise OptionError("features", f"cannot be seen from {path}; say how many channels the module there reads")


@dataclass(frozen=True)
class ONE(Method):
    """`count` branches, their gated ensemble and its knowledge: CE of all + weight * T² * KL(ensemble || branch).

    at: paths from the first module that is not shared to the one that gives the logits, in the order in which they run.
    ramp: share of the run over which the KL's weight grows. deploy: what is left, "first" branch (no edit, the host's
    own structure) or "ensemble". spread: the branches' weights begin as the host's, with noise of that share of each
    tensor's deviation; None draws them anew, for a host that is untrained. count 1 is plain training.
    """

    at: tuple[str, ...]
    count: int = 3
    weight: float = 1.0
    temperature: float = 3.0
    ramp: float = 0.3
    deploy: Deploy = "first"
    features: int | None = None  # channels of what the first module reads, where it cannot be seen
    spread: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.at, str) or not self.at:
            raise OptionError("at", "is a list of paths, from the first module that is not shared to the classifier")
        object.__setattr__(self, "at", tuple(self.at))
        checks = {
            "count": (type(self.count) is int and self.count >= 1, "a whole number of 1 or more"),
            "weight": (self.weight >= 0, "0 or more"),
            "temperature": (self.temperature > 0, "above 0"),
            "ramp": (0 <= self.ramp <= 1, "a share of the run, 0..1"),
            "spread": (self.spread is None or self.spread > 0, "above 0; branches that are alike stay alike"),
        }
        for name, (holds, wanted) in checks.items():
            if not holds:
                raise OptionError(name, f"{getattr(self, name)!r} is not {wanted}")

    def prepare(self, model: nn.Module) -> nn.Module:
        if self.count == 1:
            return model
        width = self.features or width_of(submodule(model, self.at[0]), self.at[0])
        spec = {"at": list(self.at), "count": self.count, "features": width}
        if self.deploy == "ensemble":
            new = apply(model, [Edit("", "branches", spec)])
        else:
            new = copy.deepcopy(model)
            record(_branched(new, self.at, self.count, width, ensemble=False), edits_of(model))
        for part in all_of(new, Branched).values():
            for other in part.others:
                _apart(other, self.spread)
        return new

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        if self.count == 1:
            return terms
        letter = next(iter(all_of(run.model, Branched).values())).letter
        logits = letter.take("logits")
        ensemble = gated(letter.take("gates"), logits)
        others = torch.stack([term for each in logits[1:] for term in run.criterion(each).values()]).sum()
        taught = torch.stack([kl(each, ensemble.detach(), self.temperature) for each in logits]).sum()
        together = torch.stack(list(run.criterion(ensemble).values())).sum()
        weight = self.weight * ramp_up(run.progress, self.ramp)
        return {**terms, "branches": others, "ensemble": together, "distill": weight * taught}

    def finish(self, model: nn.Module) -> nn.Module:
        if self.deploy == "ensemble":
            return model
        new = copy.deepcopy(model)
        for path, part in all_of(new, Branched).items():
            put(new, path, part.module)
        return new


@torch.no_grad()
def _apart(module: nn.Module, spread: float | None) -> None:
    """Other weights than the host's, in this very module."""
    for part in module.modules():
        redraw = getattr(part, "reset_parameters", None)
        if spread is None and callable(redraw):
            redraw()
    for parameter in module.parameters():
        if spread is not None and parameter.numel() > 1:
            parameter.add_(torch.randn_like(parameter) * parameter.std() * spread)
