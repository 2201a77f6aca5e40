# SPDX-License-Identifier: Apache-2.0
"""Which numbers are trained, how fast, and how that changes over a run.

An optimizer here is a description: options, checked when written down, that become a torch optimizer once the
structure of the model is settled. A schedule is a pure function of progress (0 to 1) that returns a factor of the
learning rate; `fit` asks it before every step with the progress the step will have made, so nothing has to be saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from featherweight.errors import OptionError

NO_DECAY = frozenset({"pos_embed", "cls_token", "dist_token", "distillation_token", "position_embeddings"})
FOR_EVER = 2.0  # a progress that is never reached


@dataclass(frozen=True)
class Optimizer:
    """`build(model)` makes the torch optimizer; `groups` and `freeze` say by name pattern how each parameter moves."""

    kind: str  # a key of KINDS
    lr: float
    weight_decay: float
    options: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, float] = field(default_factory=dict)  # pattern -> factor of lr; the first that fits counts
    freeze: Mapping[str, float] = field(default_factory=dict)  # pattern -> progress at which it starts to move

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of `model`'s trainable parameters; frozen ones lose `requires_grad`. OptionError if all do."""
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for where, patterns in (("groups", self.groups), ("freeze", self.freeze)):
            for pattern in patterns:
                if pattern != "*" and not any(fnmatchcase(name, pattern) for name in named):
                    raise OptionError(
                        f"optimizer.{where}",
                        f"{pattern!r} fits no trainable parameter; they are named like {_some(named)}",
                    )
        sets: dict[tuple[float, float, float], list[nn.Parameter]] = {}
        for name, parameter in named.items():
            starts = _first(self.freeze, name, 0.0)
            if starts >= FOR_EVER:
                parameter.requires_grad_(False)
                continue
            decay = self.weight_decay if _decays(name, parameter) else 0.0
            sets.setdefault((self.lr * _first(self.groups, name, 1.0), decay, starts), []).append(parameter)
        if not sets:
            raise OptionError("optimizer.freeze", "every parameter is frozen; leave at least one to train")
        return KINDS[self.kind](
            [{"params": p, "lr": lr, "peak_lr": lr, "weight_decay": d, "starts": s} for (lr, d, s), p in sets.items()],
            **self.options,
        )


def adamw(
    lr: float = 1e-3,
    *,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    groups: Mapping[str, float] | None = None,
    freeze: Sequence[str] | Mapping[str, float] = (),
) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101); `freeze`: names for good, or {name: progress until which}."""
    _number("optimizer.lr", lr, lambda x: x > 0, "above 0")
    _number("optimizer.eps", eps, lambda x: x > 0, "above 0")
    for beta in betas:
        _number("optimizer.betas", beta, lambda x: 0 <= x < 1, "from 0 to below 1")
    return _checked("adamw", lr, weight_decay, {"betas": tuple(betas), "eps": eps}, groups, freeze)


def sgd(
    lr: float = 0.1,
    *,
    weight_decay: float = 5e-4,
    momentum: float = 0.9,
    nesterov: bool = False,
    groups: Mapping[str, float] | None = None,
    freeze: Sequence[str] | Mapping[str, float] = (),
) -> Optimizer:
    """Stochastic gradient descent with momentum; `groups` and `freeze` as in `adamw`."""
    _number("optimizer.lr", lr, lambda x: x > 0, "above 0")
    _number("optimizer.momentum", momentum, lambda x: 0 <= x < 1, "from 0 to below 1")
    if nesterov and momentum == 0:
        raise OptionError("optimizer.nesterov", "needs a momentum above 0")
    return _checked("sgd", lr, weight_decay, {"momentum": momentum, "nesterov": nesterov}, groups, freeze)


KINDS: Mapping[str, type[torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def set_lr(optimizer: torch.optim.Optimizer, factor: float, progress: float) -> float:
    """Set each group's rate to its peak times `factor` (0 before the group starts); returns the largest."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor if progress >= group["starts"] else 0.0
    return max(float(group["lr"]) for group in optimizer.param_groups)


def memories(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter, dict[str, Any]]]:
    """Each trained parameter: its name, itself, and what the optimizer remembers of it (to read or to fill)."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if id(parameter) in trained:
            yield name, parameter, optimizer.state[parameter]


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up over the first `warmup` of a run, then half a cosine down to `min_ratio`."""

    warmup: float
    min_ratio: float

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        passed = (progress - self.warmup) / (1 - self.warmup)
        return self.min_ratio + (1 - self.min_ratio) * 0.5 * (1 + math.cos(math.pi * min(passed, 1.0)))


@dataclass(frozen=True)
class Constant:
    """Linear warm-up over the first `warmup` of a run, then always 1."""

    warmup: float

    def __call__(self, progress: float) -> float:
        return progress / self.warmup if progress < self.warmup else 1.0


def cosine(*, warmup: float = 0.05, min_ratio: float = 0.01) -> Cosine:
    """Schedule of (Loshchilov & Hutter 2017, arXiv 1608.03983), one cycle; both options are fractions."""
    _number("schedule.warmup", warmup, lambda x: 0 <= x < 1, "from 0 to below 1")
    _number("schedule.min_ratio", min_ratio, lambda x: 0 <= x <= 1, "from 0 to 1")
    return Cosine(warmup, min_ratio)


def constant(*, warmup: float = 0.0) -> Constant:
    """A learning rate that stays; `warmup` is a fraction of the run."""
    _number("schedule.warmup", warmup, lambda x: 0 <= x < 1, "from 0 to below 1")
    return Constant(warmup)


def _checked(
    kind: str,
    lr: float,
    weight_decay: float,
    options: dict[str, Any],
    groups: Mapping[str, float] | None,
    freeze: Sequence[str] | Mapping[str, float],
) -> Optimizer:
    _number("optimizer.weight_decay", weight_decay, lambda x: x >= 0, "of 0 or more")
    for pattern, factor in (groups or {}).items():
        _number(f"optimizer.groups[{pattern!r}]", factor, lambda x: x > 0, "above 0")
    if isinstance(freeze, str):
        raise OptionError("optimizer.freeze", f"is a list of name patterns, or pattern: progress; write [{freeze!r}]")
    starts = dict(freeze) if isinstance(freeze, Mapping) else dict.fromkeys(freeze, FOR_EVER)
    for pattern, start in starts.items():
        if start != FOR_EVER:
            _number(f"optimizer.freeze[{pattern!r}]", start, lambda x: 0 < x <= 1, "above 0, at most 1")
    return Optimizer(kind, float(lr), float(weight_decay), options, dict(groups or {}), starts)


def _number(where: str, value: object, holds: Callable[[float], bool], wanted: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not holds(value):
        raise OptionError(where, f"{value!r} is not a number {wanted}")


def _decays(name: str, parameter: nn.Parameter) -> bool:
    last = name.rsplit(".", 1)[-1]
    return parameter.ndim > 1 and last != "bias" and last not in NO_DECAY


def _first(patterns: Mapping[str, float], name: str, default: float) -> float:
    return next((value for pattern, value in patterns.items() if fnmatchcase(name, pattern)), default)


def _some(named: Mapping[str, object]) -> str:
    return ", ".join(list(named)[:3])
