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

from featherweight.errors import OptionError, closest
from featherweight.schedules import Setting, setting

NO_DECAY = frozenset({"pos_embed", "cls_token", "dist_token", "distillation_token", "position_embeddings"})
# fmt: off
DECAY = {
    "matrices": NO_DECAY,
    "official": frozenset({"pos_embed", "cls_token"}),  # DeiT's code decays dist_token
    "yolo": frozenset({"implicit"}),  # YOLOv7's; three groups in its order: norms and implicit vectors, weights, biases
}
# fmt: on
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
    decay: str = "matrices"  # a key of DECAY: what the weight decay is for

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
        sets: dict[tuple[int, float, float, float], list[nn.Parameter]] = {}
        for name, parameter in named.items():
            starts = _first(self.freeze, name, 0.0)
            if starts >= FOR_EVER:
                parameter.requires_grad_(False)
                continue
            decays = _decays(name, parameter, DECAY[self.decay])
            role = (1 if decays else 2 if name.endswith("bias") else 0) if self.decay == "yolo" else 0
            key = (role, self.lr * _first(self.groups, name, 1.0), self.weight_decay if decays else 0.0, starts)
            sets.setdefault(key, []).append(parameter)
        if not sets:
            raise OptionError("optimizer.freeze", "every parameter is frozen; leave at least one to train")
        rows = sorted(sets.items(), key=lambda row: row[0][0])
        return KINDS[self.kind](
            [
                {"params": p, "lr": lr, "peak_lr": lr, "weight_decay": decay, "starts": starts, "biases": role == 2}
                for (role, lr, decay, starts), p in rows
            ],
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
    decay: str = "matrices",
) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101); `freeze`: names for good, or {name: progress until which}.

    decay: "matrices" spares biases, norms, tokens and positions; "official" decays the distillation token, as DeiT did;
    "yolo" spares implicit vectors, and biases may warm up at a rate of their own.
    """
    _number("optimizer.lr", lr, lambda x: x > 0, "above 0")
    _number("optimizer.eps", eps, lambda x: x > 0, "above 0")
    for beta in betas:
        _number("optimizer.betas", beta, lambda x: 0 <= x < 1, "from 0 to below 1")
    return _checked("adamw", lr, weight_decay, {"betas": tuple(betas), "eps": eps}, groups, freeze, decay)


def sgd(
    lr: float = 0.1,
    *,
    weight_decay: float = 5e-4,
    momentum: float = 0.9,
    nesterov: bool = False,
    groups: Mapping[str, float] | None = None,
    freeze: Sequence[str] | Mapping[str, float] = (),
    decay: str = "matrices",
) -> Optimizer:
    """Stochastic gradient descent with momentum; `groups`, `freeze` and `decay` as in `adamw`."""
    _number("optimizer.lr", lr, lambda x: x > 0, "above 0")
    _number("optimizer.momentum", momentum, lambda x: 0 <= x < 1, "from 0 to below 1")
    if nesterov and momentum == 0:
        raise OptionError("optimizer.nesterov", "needs a momentum above 0")
    return _checked("sgd", lr, weight_decay, {"momentum": momentum, "nesterov": nesterov}, groups, freeze, decay)


KINDS: Mapping[str, type[torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def set_lr(optimizer: torch.optim.Optimizer, value: float | Setting, progress: float) -> float:
    """Set each group's rate to its peak times what a schedule returned (0 before it starts); returns the largest."""
    now = setting(value)
    for group in optimizer.param_groups:
        factor = now.bias_factor if group["biases"] and now.bias_factor is not None else now.factor
        group["lr"] = group["peak_lr"] * factor if progress >= group["starts"] else 0.0
        if now.momentum is not None and "momentum" in group:
            group["momentum"] = now.momentum
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


@dataclass(frozen=True)
class Official:
    """DeiT's published schedule: one rate an epoch, and the rate of an epoch is that of the epoch before."""

    lr: float
    epochs: int
    warmup_epochs: int
    warmup_lr: float
    min_lr: float

    def __call__(self, progress: float) -> float:
        return self.rate(math.ceil(progress * self.epochs - 1e-9) - 1) / self.lr

    def rate(self, epoch: int) -> float:
        """The learning rate while epoch `epoch`, counted from 0, is trained."""
        before = min(max(0, epoch - 1), self.epochs - 1)
        if before < self.warmup_epochs:
            return self.warmup_lr + before * (self.lr - self.warmup_lr) / self.warmup_epochs
        return self.min_lr + 0.5 * (self.lr - self.min_lr) * (1 + math.cos(math.pi * before / self.epochs))


def official(
    lr: float, epochs: int, *, warmup_epochs: int = 5, warmup_lr: float = 1e-6, min_lr: float = 1e-5
) -> Official:
    """The schedule of DeiT's main.py (Touvron 2021, 2012.12877): cosine by epoch, stepped after each, so one behind."""
    for name, value in {"lr": lr, "warmup_lr": warmup_lr, "min_lr": min_lr}.items():
        _number(f"schedule.{name}", value, lambda x: x > 0, "above 0")
    _number("schedule.epochs", epochs, lambda x: x >= 1, "of 1 or more")
    _number("schedule.warmup_epochs", warmup_epochs, lambda x: 0 <= x <= epochs, f"from 0 to {epochs}")
    return Official(lr, epochs, warmup_epochs, warmup_lr, min_lr)


def scaled_lr(lr: float, *, batch_size: int, world: int = 1, reference: int = 512) -> float:
    """The rate for `batch_size` pictures on each of `world` processes, where `lr` is meant for `reference` pictures."""
    return lr * batch_size * world / reference


def _checked(
    kind: str,
    lr: float,
    weight_decay: float,
    options: dict[str, Any],
    groups: Mapping[str, float] | None,
    freeze: Sequence[str] | Mapping[str, float],
    decay: str,
) -> Optimizer:
    if decay not in DECAY:
        raise OptionError("optimizer.decay", f"no {decay!r}; {closest(decay, DECAY)}Known: {', '.join(DECAY)}")
    _number("optimizer.weight_decay", weight_decay, lambda x: x >= 0, "of 0 or more")
    for pattern, factor in (groups or {}).items():
        _number(f"optimizer.groups[{pattern!r}]", factor, lambda x: x > 0, "above 0")
    if isinstance(freeze, str):
        raise OptionError("optimizer.freeze", f"is a list of name patterns, or pattern: progress; write [{freeze!r}]")
    starts = dict(freeze) if isinstance(freeze, Mapping) else dict.fromkeys(freeze, FOR_EVER)
    for pattern, start in starts.items():
        if start != FOR_EVER:
            _number(f"optimizer.freeze[{pattern!r}]", start, lambda x: 0 < x <= 1, "above 0, at most 1")
    return Optimizer(kind, float(lr), float(weight_decay), options, dict(groups or {}), starts, decay)


def _number(where: str, value: object, holds: Callable[[float], bool], wanted: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not holds(value):
        raise OptionError(where, f"{value!r} is not a number {wanted}")


def _decays(name: str, parameter: nn.Parameter, spared: frozenset[str]) -> bool:
    last = name.rsplit(".", 1)[-1]
    return parameter.ndim > 1 and last != "bias" and last not in spared


def _first(patterns: Mapping[str, float], name: str, default: float) -> float:
    return next((value for pattern, value in patterns.items() if fnmatchcase(name, pattern)), default)


def _some(named: Mapping[str, object]) -> str:
    return ", ".join(list(named)[:3])
