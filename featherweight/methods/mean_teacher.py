# SPDX-License-Identifier: Apache-2.0
"""Self-distillation by a moving average (Tarvainen & Valpola 2017, 1703.01780): the teacher is the student, averaged.

After each step the teacher's weights move a little towards the student's; its answers are asked for without dropout and
learned beside the task. No second training, no larger model. Teacher and student see the same augmented picture. Not
here: unlabelled data, for which the paper made it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..method import Method, Pass
from ..schedules import Young, ramp_up
from ..surgery import edits_of, record
from .distill import Distance, kl, taught
from .listening import Listener, followed, with_listener, without

NAME = "mean_teacher"


class Average(Listener):
    """A copy of a model that follows it; part of a checkpoint, and of no optimizer."""

    updates: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def follow(self, model: nn.Module, decay: float) -> None:
        """Move towards the model's weights: by `decay`, at first faster, as an average over all so far."""
        self.updates += 1
        now = Young(decay)(int(self.updates))
        for mine, theirs in followed(self.model, model, NAME).values():
            if mine.is_floating_point():
                mine.lerp_(theirs.to(mine), 1 - now)
            else:
                mine.copy_(theirs)


@dataclass(frozen=True)
class MeanTeacher(Method):
    """The task + weight * distance(student, its moving average). weight 0 is plain training.

    decay: of the average, per step. ramp: share of the run over which the weight grows. deploy: which of the two is the
    result, "student" or "teacher", which was the better one in the paper.
    """

    weight: float = 1.0
    decay: float = 0.999
    temperature: float = 1.0
    ramp: float = 0.3
    distance: Distance = kl
    deploy: Literal["student", "teacher"] = "student"

    def __post_init__(self) -> None:
        checks = {
            "weight": (self.weight >= 0, "0 or more"),
            "decay": (0 <= self.decay < 1, "a decay from 0 to below 1"),
            "temperature": (self.temperature > 0, "above 0"),
            "ramp": (0 <= self.ramp <= 1, "a share of the run, 0..1"),
            "deploy": (self.deploy in ("student", "teacher"), "one of student, teacher"),
        }
        for name, (holds, wanted) in checks.items():
            if not holds:
                raise OptionError(name, f"{getattr(self, name)!r} is not {wanted}")

    def prepare(self, model: nn.Module) -> nn.Module:
        return with_listener(model, NAME, Average(model))

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        average: Any = getattr(run.model, NAME)
        distance = self.distance(run.output, taught(run.output, run, average.model), self.temperature)
        return {**terms, "self_distill": self.weight * ramp_up(run.progress, self.ramp) * distance}

    def after_step(self, model: nn.Module, progress: float) -> None:
        average: Any = getattr(model, NAME)
        average.follow(model, self.decay)

    def finish(self, model: nn.Module) -> nn.Module:
        if self.deploy == "student":
            return without(model, NAME)
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        average: Any = getattr(model, NAME)
        new: nn.Module = copy.deepcopy(average.model)
        for name, parameter in new.named_parameters():
            parameter.requires_grad_(name in trainable)
        record(new, edits_of(model))
        return new
