# SPDX-License-Identifier: Apache-2.0
"""What `fit` and its parts say to each other: a method of training, one forward pass, a task, batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from featherweight.modes import evaluating

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Pass:
    """One forward pass, as a method sees it. May grow fields; no method's signature changes when it does."""

    model: nn.Module
    batch: Batch
    output: Any
    call: Callable[[nn.Module], Any]  # another model's output on this batch: in eval mode, without gradient
    progress: float  # the fraction of the run that is done, 0 at the first step
    task_terms: tuple[str, ...]  # the terms that are the task's own: what a distiller scales by 1 - alpha
    criterion: Callable[[Any], dict[str, Tensor]] = lambda output: {}  # the task's own terms of another output


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


def answer(task: Task, batch: Batch, trained: nn.Module | None, model: nn.Module) -> Any:
    """`model`'s output on the batch: in eval mode without gradient, unless it is the model being trained.

    A model that recalls (`answers.Remembered`) is asked for what it said before.
    """
    if model is trained:
        return task.forward(model, batch)
    recall: Callable[[Batch], Any] | None = getattr(model, "recall", None)
    if recall is not None:
        return recall(batch)
    with torch.no_grad(), evaluating(model):
        return task.forward(model, batch)
