# SPDX-License-Identifier: Apache-2.0
"""How a step of a recipe trains: `fit` with the recipe's options, its augmentation and the step's checkpoints."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from . import detecting, distributed, randomness, texting
from .answers import remember
from .data import Batches
from .data.presets import augmentation, expanded
from .data.text import TextBatches
from .data.transforms import Augment
from .errors import OptionError
from .method import Batch, Task
from .methods.distill import Distill
from .methods.masks import KeepMasks, masks_of
from .optim import Optimizer, adamw, constant, cosine, official, scaled_lr, sgd
from .recipe import Train
from .surgery import Edit, apply
from .train import PRECISIONS, Method, Schedule, fit
from .work import Log, Work, current

CHECKPOINT_EVERY = 50  # steps of training


def trained(
    work: Work,
    model: nn.Module,
    methods: Sequence[Method],
    epochs: int | None,
    images: int | None,
    lr: float | None,
    groups: Mapping[str, float] | None = None,
    *,
    freeze: Mapping[str, float] | None = None,
    cache: int | None = None,
    answers: str | None = None,
    texts: TextBatches | None = None,
) -> nn.Module:
    """`fit` with the recipe's options; it goes on from the step's checkpoint where one is. Zeros of pruning stay.

    cache: epochs of augmentation, in which teachers are asked once; answers: where what they said is kept. texts: what
    a text model is trained on instead of the training part.
    """
    given: Mapping[str, Any] = {"epochs": epochs, "images": images, "lr": lr}
    plan = dataclasses.replace(work.recipe.train, **{key: value for key, value in given.items() if value is not None})
    device = torch.device(plan.device)
    team = distributed.join(device, plan.timeout)
    rate = plan.lr if plan.lr_batch is None else rate_of(plan, team.world)
    detects = work.recipe.task == detecting.TASK
    if work.recipe.task in texting.TASKS:
        work = dataclasses.replace(work, model=model)  # whose tokenizer reads the texts
        seen: Any = texts or work.batches("train", limit=plan.images)
    elif detects:
        model = detecting.with_anchors(work, model)
        work = dataclasses.replace(work, model=model, task=detecting.sized(work))
        seen = work.batches("train", limit=plan.images, augment=detecting.augmentation(plan))
        freeze = {**detecting.frozen(model, plan.freeze), **(freeze or {})} if plan.freeze else freeze
    else:
        order: dict[str, Any] = {"repeats": plan.repeats, "sampler": plan.sampler, "cycle": cache}
        seen = work.batches("train", limit=plan.images, augment=augmented(plan, len(work.data.classes)), **order)
    judge = work.batches("val", limit=plan.validate_images)
    length = {"epochs": plan.epochs, "steps": seen.steps_per_epoch, "images": seen.samples_per_epoch}
    work.tell({"event": "train", **length, **({"metric": "AP %"} if detects else {})})
    if plan.channels_last:
        model = copy.deepcopy(model)
        for values in (*model.parameters(), *model.buffers()):
            if values.dim() == 4:  # weights of group convolutions have five
                values.data = values.data.contiguous(memory_format=torch.channels_last)
    methods = [_placed(method, device) for method in [*methods, *([KeepMasks()] if masks_of(model) else [])]]
    if cache:
        kept = {"folder": answers or work.place / "answers", "precision": PRECISIONS[plan.precision]}
        methods = [_remembering(m, seen, work.task, fingerprint=work.data.fingerprint, **kept) for m in methods]
    found = fit(
        model if device.type == "cpu" else copy.deepcopy(model).to(device),
        seen,
        work.task,
        methods=tuple(methods),
        optimizer=optimizer_of(plan, rate, groups, freeze, world=team.world),
        schedule=schedule_of(plan, rate, seen.steps_per_epoch, team.world),
        epochs=plan.epochs,
        ema=detecting.average_of(plan),
        reduction="mean" if plan.nominal_batch is None else "sum",
        clip=plan.clip,
        precision=plan.precision,
        seed=work.recipe.seed,
        log=Log(work) if team.leads else None,
        checkpoint=work.place / "checkpoints",
        checkpoint_every=CHECKPOINT_EVERY,
        validate=lambda m: work.task.evaluate(m, judge if detects else _moved(judge.epoch(0), device)),
        validate_every=plan.validate_every,
        parallel=plan.parallel,
        timeout=plan.timeout,
    )
    return found.cpu()


def rate_of(plan: Train, world: int) -> float:
    """The learning rate for all pictures of a step, where the recipe's is meant for `lr_batch` of them."""
    return scaled_lr(plan.lr, batch_size=plan.batch_size, world=world, reference=plan.lr_batch or plan.batch_size)


def optimizer_of(
    plan: Train,
    rate: float,
    groups: Mapping[str, float] | None,
    freeze: Mapping[str, float] | None = None,
    *,
    world: int = 1,
) -> Optimizer:
    known: dict[str, Any] = {"weight_decay": detecting.decay_of(plan, world), "groups": groups, "decay": plan.decay}
    known["freeze"] = freeze or ()
    if plan.optimizer == "adamw":
        return adamw(rate, **known)
    return sgd(rate, momentum=plan.momentum, nesterov=plan.nesterov, **known)


def schedule_of(plan: Train, rate: float, steps: int = 1, world: int = 1) -> Schedule:
    """The recipe's schedule for so many steps an epoch; `min_ratio` is a share in each of them."""
    if plan.schedule in ("yolo", "yolo_linear"):
        return detecting.schedule_of(plan, steps, world)
    if plan.schedule == "official":
        whole = round(plan.warmup * plan.epochs)
        return official(rate, plan.epochs, warmup_epochs=whole, min_lr=max(plan.min_ratio * rate, 1e-12))
    if plan.schedule == "constant":
        return constant(warmup=plan.warmup)
    return cosine(warmup=plan.warmup, min_ratio=plan.min_ratio)


def _placed(method: Method, device: torch.device) -> Method:
    """The method with its teachers where the model will be."""
    if device.type == "cpu" or not dataclasses.is_dataclass(method):
        return method
    parts = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    moved = {name: copy.deepcopy(part).to(device) for name, part in parts.items() if isinstance(part, nn.Module)}
    return dataclasses.replace(method, **moved)


def _remembering(method: Method, seen: Batches, task: Task, **known: Any) -> Method:
    """A distilling method whose teacher is asked once."""
    if not isinstance(method, Distill):
        return method
    return dataclasses.replace(method, teacher=remember(method.teacher, seen, task, **known))


def _moved(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    for batch in batches:
        yield {name: value.to(device) for name, value in batch.items()}


def augmented(plan: Train, classes: int) -> Augment | None:
    """The recipe's augmentation; mixed labels are smoothed like the others unless it says otherwise."""
    if not plan.augment:
        return None
    options = expanded(plan.augment)
    return augmentation({"label_smoothing": plan.label_smoothing, **options}, classes)


def changed(
    work: Work,
    plan: Callable[[nn.Module], list[Edit]],
    restart: bool,
    epochs: int | None,
    images: int | None,
    lr: float | None,
) -> nn.Module:
    """The model with the edits, trained; what is drawn is drawn by the recipe's seed. With `restart` as it began."""
    begin = began(work, restart)
    edits = plan(begin)

    def make() -> nn.Module:
        with randomness.kept():
            randomness.seed(work.recipe.seed, 0)
            model = apply(begin, edits)
        if restart:
            return trained(work, model, work.methods, epochs, images, lr)
        return taught(work, model, epochs, images, lr)

    return work.once("model", make)


def taught(work: Work, model: nn.Module, epochs: int | None, images: int | None, lr: float | None) -> nn.Module:
    """The model trained; where nothing else teaches it, by the model as it was."""
    own = (Distill(copy.deepcopy(current(work)).eval()),)
    return trained(work, model, work.methods or own, epochs, images, lr)


def began(work: Work, restart: bool) -> nn.Module:
    """The model so far; with `restart` the one that the baseline's training began with."""
    before = current(work)
    if restart and work.origin is None:
        raise OptionError("restart", "no training began here yet: put a step `baseline` before it")
    return work.origin if restart and work.origin is not None else before
