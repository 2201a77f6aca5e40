# SPDX-License-Identifier: Apache-2.0
"""The only training loop. It knows models, batches, a task and a list of methods, and nothing about any method.

`fit` copies the model, lets each method prepare it, trains, and lets the methods finish in reverse order. A loss is a
dictionary of named terms that the methods transform in turn; their sum goes backward, and each is in the log by name.
The same loop runs alone or under `torchrun`, where a step takes one batch per process and averages the gradients.

Not here: methods that replace the optimizer's step (an optimizer) or mix samples (data).
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from featherweight import distributed, optim, randomness
from featherweight.checkpoint import State, Store, tensors_of
from featherweight.errors import Diverged, OptionError, shown
from featherweight.interrupt import interruptible
from featherweight.method import Batch, Batches, Method, Pass, Task, answer
from featherweight.modes import lone_sample
from featherweight.options import facts_of
from featherweight.schedules import Setting, Young, setting
from featherweight.sharding import PARALLEL, shard, whole

__all__ = ["Batch", "Batches", "Method", "Pass", "Task", "fit"]

Log = Callable[[dict[str, Any]], object]
Schedule = Callable[[float], float | Setting]
REDUCTIONS = ("mean", "sum")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def fit(
    model: nn.Module,
    batches: Batches,
    task: Task,
    *,
    methods: Sequence[Method] = (),
    optimizer: optim.Optimizer | None = None,
    schedule: Schedule | None = None,
    epochs: int = 1,
    ema: float | Callable[[int], float] | None = None,
    clip: float | None = 1.0,
    precision: str = "float32",
    reduction: str = "mean",
    seed: int = 0,
    log: Log | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    validate: Callable[[nn.Module], Mapping[str, Any]] | None = None,
    validate_every: int = 1,
    allow: Sequence[str] = (),
    parallel: str = "ddp",
    timeout: float | None = None,
) -> nn.Module:
    """A trained copy of `model`, in eval mode; with `ema` (a decay, such as 0.999) the moving average of its weights.

    ema: also a function of the number of updates, such as `schedules.Ramp`. A schedule may return a `Setting`, whose
    `accumulate` adds up the gradients of several steps. reduction: what goes backward, the "mean" of the loss over all
    of these, or the loss times the pictures of the batch, "sum", as YOLO's recipes want it.
    log: gets a dict per step and per epoch, with every loss term by name. validate: gets the model after every so many
    epochs, and after the last.
    checkpoint: a folder. The same call with the same folder goes on exactly where it was, after a kill too; after the
    end it returns the finished model. Options that differ are refused unless `allow` names them; more epochs may be.
    parallel: how several processes share the work, "ddp" (each has the whole model) or "fsdp" (`sharding`); timeout:
    seconds after which a process that hangs is given up.
    Raises Diverged where a loss, a gradient or a weight is not finite, `distributed.Lost` where a process is lost.
    """
    optimizer, schedule = optimizer or optim.adamw(), schedule or optim.cosine()
    plan = Plan(task, tuple(methods), optimizer, schedule, epochs, ema, clip, precision, reduction, seed, parallel)
    team = distributed.join(_device(model), timeout)
    batches = batches.shard(team.rank, team.world) if team.world > 1 else batches
    with randomness.kept(), team.watched():
        state = _begin(model, plan, team)
        randomness.seed(seed, team.rank)
        facts = facts_of(plan, batches, team.world)
        with Store.open(checkpoint, facts, team, every=checkpoint_every, allow=allow) as store:
            store.restore(state)
            wrapped = state.model if state.outline else team.wrap(state.model)
            Loop(plan, state, batches, store, team, wrapped, log, validate, validate_every).run()
        return _end(state, plan, team)


@dataclass(frozen=True)
class Plan:
    """The options of one training run, checked."""

    task: Task
    methods: tuple[Method, ...]
    optimizer: optim.Optimizer
    schedule: Schedule
    epochs: int
    ema: float | Callable[[int], float] | None
    clip: float | None
    precision: str
    reduction: str
    seed: int
    parallel: str

    def __post_init__(self) -> None:
        checks = {
            "epochs": (self.epochs >= 1, "is not 1 or more"),
            "ema": (
                not isinstance(self.ema, float | int) or 0 <= self.ema < 1,
                "is not a decay from 0 to below 1, such as 0.999",
            ),
            "clip": (self.clip is None or self.clip > 0, "is not a norm of gradients above 0; None does not clip"),
            "precision": (self.precision in PRECISIONS, f"is not one of {', '.join(PRECISIONS)}"),
            "reduction": (self.reduction in REDUCTIONS, f"is not one of {', '.join(REDUCTIONS)}"),
            "parallel": (self.parallel in PARALLEL, f"is not one of {', '.join(PARALLEL)}"),
            "seed": (0 <= self.seed < 2**32, "is not from 0 to 2**32 - 1"),
        }
        for name, (holds, wrong) in checks.items():
            if not holds:
                raise OptionError(name, f"{getattr(self, name)!r} {wrong}")

    @property
    def average(self) -> Callable[[int], float] | None:
        """The moving average's decay by number of updates."""
        return Young(self.ema) if isinstance(self.ema, float | int) else self.ema


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
    every: int = 1  # epochs, after which the model is validated
    clock: float = field(default_factory=time.perf_counter)  # when the last step ended

    def run(self) -> None:
        """From where the state is to the last epoch."""
        state, length = self.state, self.batches.steps_per_epoch
        if length < 1:
            raise OptionError("batches", "there are none: no samples, or fewer than one batch with drop_last")
        rewind = getattr(self.log, "rewind", None)
        if self.team.leads and rewind is not None:
            rewind(state.rows)
        state.model.train()
        with interruptible(self.store.folder is not None) as asked:
            while state.epoch < self.plan.epochs:
                for batch in self.batches.epoch(state.epoch, state.position):
                    self.step(self.moved(batch))
                    if state.position == length:
                        self.end_epoch()
                    stop = self.team.any(asked.signal is not None)
                    self.store.keep(state, now=stop)
                    if stop:
                        where = f"the same command goes on from {shown(self.store.folder)}"
                        raise asked.error(f"after step {state.step}", where)
                    if state.position == 0:
                        break
                if state.position:
                    raise OptionError("batches", f"epoch {state.epoch} has {state.position} batches, not {length}")

    def step(self, batch: Batch) -> None:
        """Forward, loss, backward, and where enough gradients have added up, one change of the weights."""
        plan, state = self.plan, self.state
        total = plan.epochs * self.batches.steps_per_epoch
        after = (state.step + 1) / total
        now = setting(plan.schedule(after))
        lr = optim.set_lr(state.optimizer, now, after)
        terms, values = self.terms(batch, state.step / total)
        weight = _size(batch) * self.team.world if plan.reduction == "sum" else 1 / now.accumulate
        (torch.stack([term.float() for term in terms.values()]).sum() * weight).backward()
        changed = state.step % now.accumulate == 0
        norm = self.change(batch, after) if changed else None
        state.advance(values, changed=changed, ema=plan.average)
        before, self.clock = self.clock, time.perf_counter()
        speed = _size(batch) * self.team.world / max(self.clock - before, 1e-9)
        row = {"progress": after, "lr": lr, "images_per_s": speed} | ({} if norm is None else {"grad_norm": norm})
        self.tell("step", state.epoch, loss=sum(values.values()), terms=values, **row)

    def change(self, batch: Batch, after: float) -> float:
        """Change the weights by the gradients, which are forgotten; their norm."""
        norm = self.grad_norm(batch)
        self.state.optimizer.step()
        for method in self.plan.methods:
            method.after_step(self.state.model, after)
        self.state.optimizer.zero_grad(set_to_none=True)
        return norm

    def terms(self, batch: Batch, progress: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The loss terms of a batch, and their values; Diverged if one is not finite."""
        plan, model = self.plan, self.state.model
        mixed = torch.autocast(_device(model).type, PRECISIONS[plan.precision], enabled=plan.precision != "float32")
        with mixed, lone_sample(model, _size(batch)):
            output = plan.task.forward(self.wrapped, batch)
            terms = dict(plan.task.loss(output, batch))
            call = partial(answer, plan.task, batch, model)
            run = Pass(model, batch, output, call, progress, tuple(terms), lambda o: plan.task.loss(o, batch))
            for method in plan.methods:
                terms = method.loss(terms, run)
        values = dict(zip(terms, torch.stack([term.detach().float() for term in terms.values()]).tolist(), strict=True))
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if bad:
            raise self.diverged(f"loss term {', '.join(f'{n} is {v}' for n, v in bad.items())} (all: {values})", batch)
        return terms, values

    def grad_norm(self, batch: Batch) -> float:
        """Clip the gradients; their norm before."""
        named = {name: p for name, p in self.state.model.named_parameters() if p.grad is not None}
        norm = float(whole(nn.utils.clip_grad_norm_(named.values(), self.plan.clip or math.inf)))
        if not math.isfinite(norm):
            bad = [name for name, p in named.items() if p.grad is not None and not whole(p.grad).isfinite().all()]
            raise self.diverged(f"the gradients' norm is {norm} (first in {', '.join(bad[:3]) or 'their sum'})", batch)
        return norm

    def end_epoch(self) -> None:
        """Means of the epoch's terms, the user's validation, the next epoch."""
        state, row = self.state, dict[str, Any]()
        due = (state.epoch + 1) % self.every == 0 or state.epoch + 1 == self.plan.epochs
        if self.validate is not None and due and (self.team.leads or state.outline):
            model = state.deployable().eval()
        if self.validate is not None and due and self.team.leads:
            with torch.no_grad():
                metrics = dict(self.validate(model))
            state.compare(metrics)
            row = {"validation": metrics, "best": state.best}
        means = state.next_epoch()
        self.clock = time.perf_counter()
        self.tell("epoch", state.epoch - 1, loss=sum(means.values()), terms=means, **row)

    def tell(self, event: str, epoch: int, **row: Any) -> None:
        """A row for the log, which only the leading process has."""
        self.state.rows += 1
        if self.log is not None and self.team.leads:
            self.log({"event": event, "epoch": epoch, "step": self.state.step, **row})

    def diverged(self, what: str, batch: Batch) -> Diverged:
        """The error that names step, term and samples."""
        index = batch["index"].tolist() if "index" in batch else []
        name = getattr(getattr(self.batches, "images", None), "names", str)
        samples = f"samples {index[:16]}, {', '.join(shown(name(i), limit=40) for i in index[:3])}, …"
        where = f"step {self.state.step + 1} (epoch {self.state.epoch})"
        return Diverged(f"{where}: {what}; {samples}; look at these, or try a lower learning rate")

    def moved(self, batch: Batch) -> Batch:
        """The batch where the model is."""
        device = _device(self.state.model)
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _begin(model: nn.Module, plan: Plan, team: distributed.Team) -> State:
    """A copy, prepared by the methods, with its optimizer."""
    randomness.seed(plan.seed, 0)  # new weights are drawn alike in every process
    model = copy.deepcopy(model)
    for method in plan.methods:
        model = method.prepare(model)
    trainable = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    outline = shard(model, team) if plan.parallel == "fsdp" and team.world > 1 else None
    known: dict[str, Any] = {"trainable": trainable, "averaged": plan.ema is not None, "outline": outline}
    return State(model, plan.optimizer.build(model), **known)


def _end(state: State, plan: Plan, team: distributed.Team) -> nn.Module:
    """The weights to deploy, without optimizer and scaffold."""
    state.check_finite()
    model = state.deployable()
    team.share(tensors_of(model).values())
    for method in reversed(plan.methods):
        model = method.finish(model)
    return model.eval()


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in tensors_of(model).values()), torch.device("cpu"))


def _size(batch: Batch) -> int:
    """How many samples; a batch may have rows of something else, too, such as boxes."""
    rows = [batch["image"]] if "image" in batch else batch.values()
    return next((len(value) for value in rows if isinstance(value, Tensor) and value.ndim), 0)
