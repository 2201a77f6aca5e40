# SPDX-License-Identifier: Apache-2.0
"""Schedules that set more than a factor of the learning rate: YOLO's warm-up, and the ramp of a moving average.

A schedule is a function of progress (0 to 1); what it returns is a number, or a `Setting`. Both are pure, so that a run
that is taken up again needs nothing of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from featherweight.errors import OptionError


@dataclass(frozen=True)
class Setting:
    """What holds for one step."""

    factor: float  # of every group's learning rate
    bias_factor: float | None = None  # of the groups of biases, where they differ
    momentum: float | None = None  # None: the optimizer's own
    accumulate: int = 1  # steps whose gradients make one change of the weights


def setting(value: float | Setting) -> Setting:
    """What a schedule returned, as a Setting."""
    return value if isinstance(value, Setting) else Setting(value)


@dataclass(frozen=True)
class ByEpoch:
    """One rate an epoch, after a warm-up by steps: learning rate, that of biases, momentum, batches per change."""

    epochs: int
    steps_per_epoch: int
    final: float  # the rate at the end, a share of the first
    warmup: int  # steps, the last of which is still part of it
    bias_start: float  # factor of the rate of biases at the first step
    momentum_start: float
    momentum: float
    batches: float  # that make the nominal batch, not rounded
    linear: bool

    @property
    def accumulate(self) -> int:
        """Steps per change of the weights after the warm-up."""
        return max(round(self.batches), 1)

    def __call__(self, progress: float) -> Setting:
        return self.at(max(round(progress * self.epochs * self.steps_per_epoch) - 1, 0))

    def at(self, step: int) -> Setting:
        """The setting of a step, counted from 0."""
        factor = self.factor(step // self.steps_per_epoch)
        if step > self.warmup or not self.warmup:
            return Setting(factor, factor, self.momentum, self.accumulate)
        done = step / self.warmup

        def between(start: float, end: float) -> float:
            return start + (end - start) * done

        accumulate = max(round(between(1.0, self.batches)), 1)
        momentum = between(self.momentum_start, self.momentum)
        return Setting(between(0.0, factor), between(self.bias_start, factor), momentum, accumulate)

    def factor(self, epoch: int) -> float:
        """Of the learning rate in an epoch, counted from 0."""
        if self.linear:
            return (1 - epoch / max(self.epochs - 1, 1)) * (1 - self.final) + self.final
        return (1 - math.cos(math.pi * epoch / self.epochs)) / 2 * (self.final - 1) + 1


def by_epoch(
    *,
    epochs: int,
    steps_per_epoch: int,
    batch_size: int,
    lr: float = 0.01,
    nominal_batch: int = 64,
    final: float = 0.1,
    linear: bool = False,
    momentum: float = 0.937,
    warmup_epochs: float = 3.0,
    warmup_steps: int = 1000,
    warmup_share: float = 0.1,
    warmup_bias_lr: float = 0.1,
    warmup_momentum: float = 0.8,
) -> ByEpoch:
    """YOLOv7's schedule (fact sheet, section 7); the warm-up lasts its epochs, at least its steps, at most its share.

    batch_size: of all processes. warmup_share: of the training, so that a small one is not over before its warm-up is;
    1 is the official rule.
    """
    # fmt: off
    checks = {
        "epochs": (epochs, 1, math.inf), "steps_per_epoch": (steps_per_epoch, 1, math.inf),
        "batch_size": (batch_size, 1, math.inf), "nominal_batch": (nominal_batch, 1, math.inf), "lr": (lr, 1e-12, 1e6),
        "final": (final, 0, 1), "momentum": (momentum, 0, 1), "warmup_epochs": (warmup_epochs, 0, math.inf),
        "warmup_steps": (warmup_steps, 0, math.inf), "warmup_share": (warmup_share, 0, 1),
        "warmup_bias_lr": (warmup_bias_lr, 0, 1e6), "warmup_momentum": (warmup_momentum, 0, 1),
    }
    # fmt: on
    for name, (value, low, high) in checks.items():
        if isinstance(value, bool) or not low <= value <= high:
            raise OptionError(f"schedule.{name}", f"{value!r} is not from {low:g} to {high:g}")
    warmup = max(round(warmup_epochs * steps_per_epoch), warmup_steps) if warmup_epochs else 0
    warmup = min(warmup, math.floor(warmup_share * epochs * steps_per_epoch)) if warmup_share < 1 else warmup
    batches = nominal_batch / batch_size
    rates = (warmup_bias_lr / lr, warmup_momentum, momentum)
    return ByEpoch(epochs, steps_per_epoch, final, warmup, *rates, batches, linear)


def nominal_decay(weight_decay: float, *, batch_size: int, nominal_batch: int = 64) -> float:
    """The weight decay for the batch that one change of the weights really sees (fact sheet, section 7)."""
    return weight_decay * batch_size * max(round(nominal_batch / batch_size), 1) / nominal_batch


@dataclass(frozen=True)
class Ramp:
    """The decay of a moving average that begins fast: decay * (1 - exp(-n / updates)) at the n-th update."""

    decay: float = 0.9999
    updates: float = 2000.0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise OptionError("ema.decay", f"{self.decay!r} is not a decay from 0 to below 1, such as 0.9999")
        if not 0 < self.updates < math.inf:
            raise OptionError("ema.updates", f"{self.updates!r} is not a number above 0")

    def __call__(self, update: int) -> float:
        return self.decay * (1 - math.exp(-update / self.updates))


def ramp_up(progress: float, share: float) -> float:
    """From nearly 0 to 1 over the first `share` of a run: exp(-5 (1 - t)²) (Laine & Aila 2017, 1610.02242); 0: 1."""
    return math.exp(-5 * (1 - min(progress / share, 1.0)) ** 2) if share else 1.0


@dataclass(frozen=True)
class Young:
    """A constant decay, but at first that of an average over all updates so far, and a few more."""

    decay: float

    def __call__(self, update: int) -> float:
        return min(self.decay, update / (9 + update))
