# SPDX-License-Identifier: Apache-2.0
"""The only training loop. It knows models, batches, a task and a list of methods, and nothing about any method.

`fit` copies the model, lets each method prepare it, trains, and lets the methods finish in reverse order. A loss is a
dictionary of named terms that the methods transform in turn; their sum goes backward, and each is in the log by name.
The same loop runs alone or under `torchrun`, where a step takes one batch per process and averages the gradients.

Not here: methods that replace the optimizer's step (an optimizer) or mix samples (data).
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from featherweight import distributed, optim
from featherweight.checkpoint import State, Store, describe, interruptible, random_state_kept, seed_all
from featherweight.errors import Diverged, OptionError, closest

Batch = Mapping[str, Tensor]
Log = Callable[[dict[str, Any]], object]
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Pass:
    """One forward pass, as a method sees it. May grow fields; no method's signature changes when it does."""

    model: nn.Module
    batch: Batch
    output: Any
    call: Callable[[nn.Module], Any]  # another model's output on this batch: in eval mode, without gradient
    progress: float  # the fraction of the run that is done, 0 at the first step
    task_terms: tuple[str, ...]  # the terms that are the task's own: what a distiller scales by 1 - alpha


class Method:
    """What takes part in training. Holds options only: its memory is parameters and buffers of the model."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model to train: a copy with edits (they stay) or scaffold (`finish` takes it away)."""
        return model

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        """The terms with this method's own added, and others scaled."""
        return terms

    def after_step(self, model: nn.Module, progress: float) -> None:
        """Change numbers, never modules; progress is 1 after the last step."""

    def finish(self, model: nn.Module) -> nn.Module:
        """The trained model without scaffold."""
        return model


class Task(Protocol):
    """What `fit` asks of a task."""

    def forward(self, model: nn.Module, batch: Any) -> Any: ...
    def loss(self, output: Any, batch: Any) -> dict[str, Tensor]: ...


class Batches(Protocol):
    """What `fit` asks of the data: epoch `epoch`, from batch `start` on, always the same."""

    @property
    def steps_per_epoch(self) -> int: ...
    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...
    def shard(self, rank: int, world: int) -> Batches: ...


def fit(
    model: nn.Module,
    batches: Batches,
    task: Task,
    *,
    methods: Sequence[Method] = (),
    optimizer: optim.Optimizer | None = None,
    schedule: Callable[[float], float] | None = None,
    epochs: int = 1,
    ema: float | None = None,
    clip: float | None = 1.0,
    precision: str = "float32",
    seed: int = 0,
    log: Log | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    validate: Callable[[nn.Module], Mapping[str, Any]] | None = None,
    allow: Sequence[str] = (),
) -> nn.Module:
    """A trained copy of `model`, in eval mode; with `ema` (a decay, such as 0.999) the moving average of its weights.

    log: gets a dict per step and per epoch, with every loss term by name. validate: gets the model after each epoch.
    checkpoint: a folder. The same call with the same folder goes on exactly where it was, after a kill too; after the
    end it returns the finished model. Options that differ are refused unless `allow` names them; more epochs may be had.
    Raises Diverged where a loss, a gradient or a weight is not finite.
    """
    plan = Plan(task, tuple(methods), optimizer or optim.adamw(), schedule or optim.cosine(), epochs, ema, clip, precision, seed)
    team = distributed.join(_device(model))
    with random_state_kept():
        state, trained = _begin(model, plan)
        batches = batches.shard(team.rank, team.world) if team.world > 1 else batches
        seed_all(seed, team.rank)
        with Store.open(checkpoint, plan.facts(batches, team), team, every=checkpoint_every, allow=allow) as store:
            rewind = getattr(log, "rewind", None)
            if store.restore(state) and rewind is not None:
                rewind(state.rows)
            loop = Loop(plan, state, batches, store, team, team.wrap(state.model), log if team.leads else None, validate)
            loop.run()
        return _end(state, plan, team, trained)


@dataclass(frozen=True)
class Plan:
    """The options of one training run, checked."""

    task: Task
    methods: tuple[Method, ...]
    optimizer: optim.Optimizer
    schedule: Callable[[float], float]
    epochs: int
    ema: float | None
    clip: float | None
    precision: str
    seed: int

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise OptionError("epochs", f"{self.epochs!r} is not 1 or more")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise OptionError("ema", f"{self.ema!r} is not a decay from 0 to below 1, such as 0.999")
        if self.clip is not None and not self.clip > 0:
            raise OptionError("clip", f"{self.clip!r} is not a gradient norm above 0; None for no clipping")
        if self.precision not in PRECISIONS:
            known = f"{closest(self.precision, PRECISIONS)}Known: {', '.join(PRECISIONS)}"
            raise OptionError("precision", f"no {self.precision!r} here; {known}")
        if not 0 <= self.seed < 2**32:
            raise OptionError("seed", f"{self.seed!r} is not from 0 to 2**32 - 1")

    def facts(self, batches: Batches, team: distributed.Team) -> dict[str, Any]:
        """What must be the same when a run is taken up again."""
        data = {name: value for name, value in vars(batches).items() if name not in ("images", "rank")}
        data["samples"] = len(getattr(batches, "images", ()))
        return {
            **{name: describe(value) for name, value in vars(self).items()},
            "data": describe(data),
            "steps_per_epoch": batches.steps_per_epoch,
            "world": team.world,
            "torch": torch.__version__,
        }


@dataclass
class Loop:
    """One process's part of a run."""

    plan: Plan
    state: State
    batches: Batches
    store: Store
    team: distributed.Team
    wrapped: nn.Module  # the model, averaging gradients over the team
    log: Log | None
    validate: Callable[[nn.Module], Mapping[str, Any]] | None
    seconds: float = field(default_factory=time.perf_counter)

    def run(self) -> None:
        """From where the state is to the last epoch."""
        state, length = self.state, self.batches.steps_per_epoch
        state.model.train()
        with interruptible(self.store.active) as asked:
            while state.epoch < self.plan.epochs:
                for batch in self.batches.epoch(state.epoch, state.position):
                    self.step({k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()})
                    if state.position == length:
                        self.end_epoch()
                    stop = self.store.active and self.team.any(asked.signal is not None, self.device)
                    self.store.keep(state, now=stop, epoch_ended=state.position == 0)
                    if stop:
                        raise asked.error(state.step, self.store.folder)
                    if state.position == 0:
                        break
                if state.position:
                    raise OptionError("batches", f"epoch {state.epoch} ended after {state.position} of {length} batches")

    def step(self, batch: Batch) -> None:
        """Forward, loss, backward, one change of the weights."""
        plan, state = self.plan, self.state
        total = plan.epochs * self.batches.steps_per_epoch
        after = (state.step + 1) / total
        lr = optim.set_lr(state.optimizer, plan.schedule(after), after)
        state.optimizer.zero_grad(set_to_none=True)
        terms, values = self.terms(batch, state.step / total)
        torch.stack([term.float() for term in terms.values()]).sum().backward()
        norm = self.grad_norm(batch)
        state.optimizer.step()
        for method in plan.methods:
            method.after_step(state.model, after)
        state.advance(values, ema=plan.ema)
        self.tell("step", progress=after, loss=sum(values.values()), terms=values, lr=lr, grad_norm=norm, samples=_size(batch))

    def terms(self, batch: Batch, progress: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The loss terms of a batch, and their values; Diverged if one is not finite."""
        plan, model = self.plan, self.state.model
        with torch.autocast(self.device.type, PRECISIONS[plan.precision], enabled=plan.precision != "float32"):
            with lone_sample(model, _size(batch)):
                output = plan.task.forward(self.wrapped, batch)
            terms = dict(plan.task.loss(output, batch))
            run = Pass(model, batch, output, partial(_call, plan.task, batch, model), progress, tuple(terms))
            for method in plan.methods:
                terms = method.loss(terms, run)
        values = dict(zip(terms, torch.stack([term.detach().double() for term in terms.values()]).tolist(), strict=True))
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if bad:
            raise self.diverged(f"loss term {', '.join(f'{n} is {v}' for n, v in bad.items())} (all: {values})", batch)
        return terms, values

    def grad_norm(self, batch: Batch) -> float:
        """Clip the gradients; their norm before."""
        named = {name: p for name, p in self.state.model.named_parameters() if p.grad is not None}
        norm = float(nn.utils.clip_grad_norm_(named.values(), self.plan.clip or math.inf))
        if not math.isfinite(norm):
            bad = [name for name, p in named.items() if p.grad is not None and not p.grad.isfinite().all()]
            raise self.diverged(f"the norm of the gradients is {norm} (first in {', '.join(bad[:3]) or 'their sum'})", batch)
        return norm

    def end_epoch(self) -> None:
        """Means of the epoch's terms, the user's validation, the next epoch."""
        state, row = self.state, {}
        if self.validate is not None and self.team.leads:
            row["validation"] = dict(self.validate(state.deployable().eval()))
            state.compare(row["validation"])
        means = state.next_epoch()
        self.tell("epoch", at=state.epoch - 1, loss=sum(means.values()), terms=means, **row)

    def tell(self, event: str, *, at: int | None = None, samples: int = 0, **row: Any) -> None:
        state, now = self.state, time.perf_counter()
        state.rows += 1
        if samples:
            row["images_per_s"] = samples * self.team.world / max(now - self.seconds, 1e-9)
        self.seconds = now
        if self.log is not None:
            self.log({"event": event, "epoch": state.epoch if at is None else at, "step": state.step, **row})

    def diverged(self, what: str, batch: Batch) -> Diverged:
        index = batch["index"].tolist() if "index" in batch else []
        samples = f"; samples {index[:16]}{' and more' if len(index) > 16 else ''}" if index else ""
        return Diverged(f"step {self.state.step + 1} (epoch {self.state.epoch}): {what}{samples}; try a lower learning rate")

    @property
    def device(self) -> torch.device:
        return _device(self.state.model)


@contextlib.contextmanager
def lone_sample(model: nn.Module, size: int) -> Iterator[None]:
    yield


def _begin(model: nn.Module, plan: Plan) -> tuple[State, set[str]]:
    """The prepared copy with its optimizer, and the names of what was trainable before the optimizer froze some."""
    seed_all(plan.seed, 0)  # new weights are drawn alike in every process
    model = copy.deepcopy(model)
    for method in plan.methods:
        model = method.prepare(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    return State(model, plan.optimizer.build(model), averaged=plan.ema is not None), trained


def _end(state: State, plan: Plan, team: distributed.Team, trained: set[str]) -> nn.Module:
    """The weights to deploy, the methods' finish; the optimizer is gone."""
    state.check_finite()
    model = state.deployable()
    team.share(model.state_dict().values())
    for name, parameter in model.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(name in trained)
    del state.optimizer
    for method in reversed(plan.methods):
        model = method.finish(model)
    return model.eval()


def _call(task: Task, batch: Batch, trained: nn.Module, model: nn.Module) -> Any:
    """`model`'s output on the batch: in eval mode without gradient, unless it is the model being trained."""
    if model is trained:
        return task.forward(model, batch)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            return task.forward(model, batch)
    finally:
        for module in training:
            module.training = True


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))


def _size(batch: Batch) -> int:
    return next((len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim), 0)
