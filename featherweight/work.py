# SPDX-License-Identifier: Apache-2.0
"""What walks through the steps of a run: the model so far, the data, the task, and the folder of the step being done.

Frozen: a step returns another one. What is costly is made once per key of the step (`once`) and found again afterwards.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from . import artifact, files, measure, texting
from .data import Batches
from .data.detection_batches import DetectionBatches
from .data.text import TextBatches
from .detecting import TASK, batches_of
from .distributed import here
from .doors import json as strict_json
from .errors import OptionError
from .journal import Journal
from .recipe import ModelSpec, Recipe
from .runtime.preprocess import Preprocess
from .runtime.record import RECORD, Record
from .train import Method

TEMPORARY = ("checkpoints", "answers")  # folders of a step that are of no use once its model is there
Tell = Callable[[Mapping[str, Any]], None]


class Log(Journal):
    """The step's journal, which also tells each row."""

    def __init__(self, work: Work) -> None:
        super().__init__(work.place / "journal.jsonl")
        self.work = work

    def __call__(self, row: dict[str, Any]) -> None:
        super().__call__(row)
        self.work.tell({**row, "step_name": self.work.step})


@dataclass(frozen=True)
class Stage:
    """A model on the way, and what became of it."""

    title: str
    place: Path  # the step's folder, with the model in `model/` unless it came ready-made
    model: nn.Module
    kept: bool = True
    reason: str = ""
    preprocess: Preprocess | None = None  # how its pictures are prepared, where stages differ


@dataclass(frozen=True)
class Work:
    """What walks through the steps; each returns the next one."""

    recipe: Recipe
    folder: Path
    data: Any  # data.Data; of detectors data.scenes.Scenery, of texts data.corpus.Corpus
    task: Any
    preprocess: Any  # Preprocess; of texts None
    tell: Tell
    given: Mapping[str, nn.Module] = field(default_factory=dict)  # modules handed over in Python, by the recipe's name
    model: nn.Module | None = None
    origin: nn.Module | None = None  # where the baseline's training began
    teacher: nn.Module | None = None
    methods: tuple[Method, ...] = ()  # what takes part in every later training
    stages: tuple[Stage, ...] = ()
    results: Mapping[str, Any] = field(default_factory=dict)  # of the steps that measure, export and judge
    left_out: tuple[str, ...] = ()  # steps this model cannot have
    step: str = ""  # "03-prune"
    key: str = ""

    @property
    def place(self) -> Path:
        """The folder of the step that is being done."""
        return self.folder / "steps" / self.step

    def batches(
        self, part: str, *, limit: int | None = None, augment: Any = None, size: int | None = None, **more: Any
    ) -> Batches | DetectionBatches | TextBatches:
        """Batches of a part of the data; the training part in a shuffled order. more: options of `Batches`."""
        if self.recipe.task == TASK:
            return batches_of(self, part, limit=limit, augment=augment, size=size)
        if self.recipe.task in texting.TASKS:
            return texting.batches_of(self, part, limit=limit, size=size)
        images = getattr(self.data, part)
        if images is None:
            raise OptionError("data", f"has no {part} part, which this step needs")
        return Batches(
            images,
            self.preprocess,
            batch_size=size or self.recipe.train.batch_size,
            seed=self.recipe.seed,
            shuffle=part == "train",
            augment=augment or None,
            limit=limit,
            workers=self.recipe.train.workers,
            **more,
        )

    def at(self, stage: Stage) -> Work:
        """The work as this stage sees it: pictures of its size, texts by its tokenizer."""
        model = stage.model if self.recipe.task in texting.TASKS else self.model
        return dataclasses.replace(self, preprocess=stage.preprocess or self.preprocess, model=model)

    def once(self, name: str, make: Callable[[], nn.Module], *, spec: ModelSpec | None = None) -> nn.Module:
        """The model that `make` makes, made only if this step has not saved it yet; `spec` says whose it is."""
        folder = self.place / name
        if (folder / RECORD).is_file():
            self.tell({"event": "note", "text": f"{self.step}: found as it was left"})
            model = artifact.load(folder, base=self._base(folder, spec or self.recipe.model))
        else:
            model = make()
            if here().leads:
                known: dict[str, Any] = {"classes": self.data.classes, "preprocess": self.preprocess}
                artifact.save(model, folder, task=self.recipe.task, **known)
        for name in TEMPORARY if here().leads else ():
            shutil.rmtree(self.place / name, ignore_errors=True)
        return model

    def once_data(self, name: str, make: Callable[[], Any]) -> Any:
        """The same for plain data, kept as JSON."""
        path = self.place / f"{name}.json"
        if not path.is_file():
            files.publish(path, json.dumps(make(), allow_nan=False).encode())
        return strict_json.read(path)

    def _base(self, folder: Path, spec: ModelSpec | None) -> nn.Module | None:
        """The module that was given, for a model that only its maker can build."""
        record = Record.from_text((folder / RECORD).read_text(), folder / RECORD)
        return self.given.get(spec.name) if record.base is None and spec else None


def finished_stage(work: Work, title: str, model: nn.Module, *, stays: bool = True) -> Work:
    """The work with one more stage; a stage that does not stay (a teacher) is not the model from now on."""
    stage = Stage(title, work.place, model, preprocess=work.preprocess)
    work.tell({"event": "stage", "title": title, "parameters": measure.parameters(model), "step_name": work.step})
    return dataclasses.replace(work, model=model, stages=(*work.stages, stage)) if stays else work


def current(work: Work) -> nn.Module:
    """The model so far; an error says which step is missing before."""
    if work.model is None:
        raise OptionError(
            work.step or "steps", "there is no model yet: put a step `baseline`, `load` or `train` before it"
        )
    return work.model
