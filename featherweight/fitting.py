# SPDX-License-Identifier: Apache-2.0
"""How a step of a recipe trains: `fit` with the recipe's options, its augmentation and the step's checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from .data.presets import augmentation, expanded
from .data.transforms import Augment
from .optim import adamw, cosine, sgd
from .recipe import Train
from .train import Method, fit
from .work import Log, Work

CHECKPOINT_EVERY = 50  # steps of training


def trained(
    work: Work,
    model: nn.Module,
    methods: Sequence[Method],
    epochs: int | None,
    images: int | None,
    lr: float | None,
    groups: Mapping[str, float] | None = None,
) -> nn.Module:
    """`fit` with the recipe's options; it goes on from the step's checkpoint where one is."""
    given: Mapping[str, Any] = {"epochs": epochs, "images": images, "lr": lr}
    plan = dataclasses.replace(work.recipe.train, **{key: value for key, value in given.items() if value is not None})
    known: dict[str, Any] = {"weight_decay": plan.weight_decay, "groups": groups}
    optimizer = adamw(plan.lr, **known) if plan.optimizer == "adamw" else sgd(plan.lr, **known)
    augment = augmented(plan, len(work.data.classes))
    seen = work.batches("train", limit=plan.images, augment=augment)
    judge = work.batches("val", limit=plan.validate_images)
    work.tell(
        {"event": "train", "epochs": plan.epochs, "steps": seen.steps_per_epoch, "images": seen.samples_per_epoch}
    )
    return fit(
        model,
        seen,
        work.task,
        methods=tuple(methods),
        optimizer=optimizer,
        schedule=cosine(warmup=plan.warmup, min_ratio=plan.min_ratio),
        epochs=plan.epochs,
        ema=plan.ema,
        clip=plan.clip,
        precision=plan.precision,
        seed=work.recipe.seed,
        log=Log(work),
        checkpoint=work.place / "checkpoints",
        checkpoint_every=CHECKPOINT_EVERY,
        validate=lambda m: work.task.evaluate(m, judge.epoch(0)),
    )


def augmented(plan: Train, classes: int) -> Augment | None:
    """The recipe's augmentation; mixed labels are smoothed like the others unless it says otherwise."""
    if not plan.augment:
        return None
    options = expanded(plan.augment)
    return augmentation({"label_smoothing": plan.label_smoothing, **options}, classes)
