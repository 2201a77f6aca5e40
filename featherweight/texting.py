# SPDX-License-Identifier: Apache-2.0
"""The text side of a run: what a recipe says of it, its data, task, model and batches.

A recipe with `task: text-classification` or `question-answering` begins with what encoders of BERT's kind are usually
fine-tuned with; what it says itself stands above that. The model is a folder of ours, or one of the transformers
library: a model of the task, or an encoder that gets a new head. Batches are made with the tokenizer that the model
carries; a teacher must read the same tokens.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from . import artifact, detecting, randomness
from .binding import Within
from .data import corpus
from .data.corpus import Corpus
from .data.text import Labelled, TextBatches, classified, located
from .errors import InputError, OptionError, shown
from .models import pretrained
from .runners_text import tokens_in
from .runtime.record import TEXT_TASKS as TASKS
from .runtime.tokens import Tokens, missing_tokenizer
from .tasks.detection.detectors import detector_in
from .tasks.text import QuestionAnswering, TextClassification, fed

if TYPE_CHECKING:
    from .recipe import ModelSpec, Recipe, Step
    from .work import Work

CLASSIFY, ASK = TASKS
AT_ONCE = 64  # texts that one of middling length is found among
STEPS = (
    "teacher", "baseline", "load", "train", "distill", "tinybert", "minilm", "prune", "drop", "lowrank", "vocabulary",
    "power_bert", "star_attention", "quantize", "quantize_dynamic", "quantize_weights", "share", "share_embeddings",
    "code", "export", "measure", "report",
)  # fmt: skip
USUAL = {"epochs": 3, "lr": 5e-5, "weight_decay": 0.01, "warmup": 0.1}  # Devlin et al. 2018, appendix A.3


@dataclass(frozen=True)
class Texting:
    """Options of texts beside those of training."""

    max_length: Annotated[int, Within(8, 8192)] = 128  # tokens; of questions 384 unless said
    alike: bool = True  # texts of like lengths share a batch


def with_usual(raw: Mapping[str, Any], task: str) -> dict[str, Any]:
    """A recipe's mapping over the usual settings."""
    found = dict(raw)
    for key, usual in (("train", USUAL), ("text", {"max_length": 384} if task == ASK else {})):
        given = raw.get(key) or {}
        found[key] = {**usual, **given} if isinstance(given, Mapping) else given
    return found


def is_folder(name: str) -> bool:
    """Whether this is a folder of the transformers library, not one of ours."""
    return os.path.isfile(Path(name) / pretrained.CONFIG) and not artifact.is_artifact(name)


def task_of_folder(name: str) -> str:
    """The task of the text model in a folder of the transformers library; "" where none is."""
    return (pretrained.task_in(Path(name)) or "") if is_folder(name) else ""


def task_of_model(model: str | Path | nn.Module) -> str:
    """What a model that is named or in memory is for; "" of a classifier of pictures."""
    if isinstance(model, nn.Module):
        record = artifact.record_of(model)
        told = record.task if record is not None and record.task in TASKS else ""
        return detecting.TASK if detector_in(model) is not None else pretrained.task_of(model) or told
    task = detecting.task_of_model(str(model)) or task_of_folder(str(model))
    return task if task == detecting.TASK or task in TASKS else ""


def is_ready(spec: ModelSpec, task: str) -> bool:
    """Whether a spec names a folder of the transformers library with a model of the task, whose head is kept."""
    return not spec.reset_head and task_of_folder(spec.name) == task


def problem(step: Step, task: str) -> tuple[str, str] | None:
    """Why a recipe of this task cannot have a step, as reason and text of an InputError; None where it can."""
    name, options = step.name, step.options
    if task not in TASKS:
        alone = name in ("vocabulary", "power_bert", "share_embeddings")
        alone = alone or (name == "tinybert" and bool(options.get("general") or options.get("augment")))
        return ("unknown_name", f"goes with `task: {' or '.join(TASKS)}`") if alone else None
    if name not in STEPS:
        return "unknown_name", f"a text model cannot have it; known with this task: {', '.join(STEPS)}"
    if name == "distill" and options.get("how") != "logits":
        text = "a distillation token is of models of pictures; say how: logits, and distance: soft"
        return "out_of_range", text
    if task == ASK and name == "power_bert":
        return "unknown_name", "every token of a context may be the answer; none can be dropped"
    if task == ASK and options.get("augment"):
        return "out_of_range", "augment: words of labelled sentences are swapped; of a context they may be the answer"
    if (file := options.get("general")) and not Path(file).is_file():
        return "missing", f"general: {shown(file)} is no file; give one of texts, one a line"
    return None


def load(plan: Recipe) -> Corpus:
    """The data set of a recipe."""
    spec = plan.data
    if spec is None:
        raise OptionError("data", "the recipe names none: add `data: texts.tsv`, say, or a folder")
    return corpus.load(spec.source, task=plan.task, seed=spec.seed, **spec.options)


def task_of(plan: Recipe, data: Corpus) -> TextClassification | QuestionAnswering:
    """How the models of a recipe are called and read."""
    if plan.task == ASK:
        return QuestionAnswering()
    return TextClassification(data.classes, label_smoothing=plan.train.label_smoothing)


def start(spec: ModelSpec, work: Work) -> nn.Module:
    """The model a spec names, with its tokenizer; it must be of the recipe's task and know the data's classes."""
    given, wanted = work.given.get(spec.name), work.data.classes
    model = copy.deepcopy(given) if given is not None else made(spec, work.recipe, wanted)
    if pretrained.tokens_of(model) is None:
        raise missing_tokenizer(spec.name)
    task = pretrained.task_of(model)
    if task not in (None, work.recipe.task):
        raise OptionError("model", f"{shown(spec.name)} is for {task}, the recipe for {work.recipe.task}")
    record = artifact.record_of(model)
    names = (record.classes if record is not None else ()) or pretrained.labels_of(model)
    if work.recipe.task == CLASSIFY and names != wanted and not _same_by_number(names, wanted):
        theirs = ", ".join(shown(name, limit=20) for name in names[:4])
        text = f"{shown(spec.name)} knows {len(names)} classes ({theirs}), the data has {', '.join(wanted[:4])}"
        raise OptionError("data", f"{text}; give data.classes in the model's order, or reset_head")
    return model


def _same_by_number(names: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    """Whether one of the two has numbers for names, which say nothing."""
    numbers = {str(i) for i in range(len(wanted))}
    nameless = set(wanted) == numbers or all(name.startswith("LABEL_") for name in names)
    return len(names) == len(wanted) and nameless


def made(spec: ModelSpec, plan: Recipe, classes: Sequence[str]) -> nn.Module:
    """The model in a folder, with a new head for these classes where it comes without one for the recipe's task."""
    if artifact.is_artifact(spec.name):
        if spec.reset_head:
            raise OptionError("reset_head", "is for folders of the transformers library; one of ours keeps its head")
        return artifact.load(spec.name)
    folder = Path(spec.name)
    tokens = tokens_in(folder)
    if is_ready(spec, plan.task):
        model = pretrained.load(folder, task=plan.task)
    else:
        with randomness.kept():
            torch.manual_seed(plan.seed)
            model = pretrained.with_head(folder, task=plan.task, classes=classes)
    return pretrained.with_tokens(model.float(), tokens)


def tokens_of(model: nn.Module | None) -> Tokens:
    """The tokenizer that a model carries. OptionError where it has none."""
    told = None if model is None else pretrained.tokens_of(model)
    if told is None:
        raise OptionError("model", "carries no tokenizer, so texts cannot be read; begin with a folder that has one")
    return Tokens.from_metadata(told, type(model).__name__)


def batches_of(work: Work, part: str, *, limit: int | None = None, size: int | None = None) -> TextBatches:
    """Batches of a part of the data, read by the model's tokenizer; the training part shuffled."""
    texts, plan = getattr(work.data, part), work.recipe
    if texts is None:
        raise OptionError("data", f"has no {part} part, which this step needs")
    tokens = tokens_of(work.model).with_longest(pretrained.longest_of(work.model) if work.model else None)
    training = part == "train"
    known: dict[str, Any] = {"batch_size": size, "shuffle": training, "alike": training and plan.text.alike}
    return read(texts[:limit], tokens, plan, **known)


def read(texts: Sequence[Any], tokens: Tokens, plan: Recipe, **options: Any) -> TextBatches:
    """Batches of some of a recipe's texts, cut to what the recipe says and the tokenizer takes."""
    longest = min(plan.text.max_length, tokens.settings.max_length or plan.text.max_length)
    known = {**options, "seed": plan.seed, "batch_size": options.get("batch_size") or plan.train.batch_size}
    if plan.task == ASK:
        return located(tokens, texts, max_length=longest, **known)
    data = Labelled(tuple(text for text, _ in texts), tuple(label for _, label in texts), ())
    return classified(tokens, data, max_length=longest, **known)


def middling(batches: TextBatches) -> dict[str, Tensor]:
    """What the model is fed for a text of middling length, (1, N) each; batches of one text."""
    rows = sorted(batches.epoch(0), key=lambda batch: batch["input_ids"].shape[1])
    return fed(rows[len(rows) // 2])


def check_teacher(work: Work, teacher: nn.Module) -> None:
    """OptionError for a teacher that reads other tokens than the model."""
    if pretrained.tokens_of(teacher) != pretrained.tokens_of(work.model or teacher):
        raise OptionError("teacher", "reads other tokens than the model; they need the same tokenizer")


def recognized(name: str, path: str | Path, where: str) -> None:
    """InputError where a name is no folder that a text recipe can begin with."""
    if not (is_folder(name) or artifact.is_artifact(name)):
        text = f"{where}: {shown(name)} is no folder of a text model, ours or the transformers library's"
        raise InputError(path, "unknown_name", text)


def narrowed_methods(work: Work, change: Any) -> Work:
    """The work whose teachers, and where its training began, are changed as the model is."""
    methods = []
    for method in work.methods:
        taught: Any = method
        teacher = getattr(method, "teacher", None)
        methods.append(
            dataclasses.replace(taught, teacher=change(teacher)) if isinstance(teacher, nn.Module) else method
        )
    teaching = None if work.teacher is None else change(work.teacher)
    origin = None if work.origin is None else change(work.origin)
    return dataclasses.replace(work, methods=tuple(methods), teacher=teaching, origin=origin)
