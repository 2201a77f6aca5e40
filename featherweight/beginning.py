# SPDX-License-Identifier: Apache-2.0
"""The model a run begins with: made, loaded or given, and checked to fit the data before anything is spent on it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Container

import torch
from torch import nn

from . import artifact, detecting, official, randomness, sources, texting
from .errors import OptionError, shown
from .methods import deit
from .models import zoo
from .recipe import ModelSpec
from .surgery import apply
from .work import Work

RANDOM = "begins with random weights; `weights` of the model names trained ones"


def start(spec: ModelSpec, work: Work) -> nn.Module:
    """The model a spec names, with as many classes as the data."""
    if work.recipe.task in texting.TASKS:
        return texting.start(spec, work)
    given = work.given.get(spec.name)
    if work.recipe.task == detecting.TASK:
        spec = detecting.with_form(spec)
    if given is not None:
        model = copy.deepcopy(given)
    elif artifact.is_artifact(spec.name):
        model = resized(artifact.load(spec.name), spec)
    elif spec.weights == "shipped":
        model = artifact.load(zoo.shipped_weights(spec.name))
    elif sources.is_picture_model(spec.name):
        model = sources.picture_model(spec.name)
    else:
        with randomness.kept():
            torch.manual_seed(work.recipe.seed)
            model = _made(spec, work)
    return _fitting(model, spec, work)


def comes_trained(spec: ModelSpec, task: str, given: Container[str] = ()) -> bool:
    """Whether the weights are those of a file, a folder or a model that was given, and not random."""
    pictures = sources.is_picture_model(spec.name) and not spec.reset_head
    known = spec.name in given or artifact.is_artifact(spec.name) or pictures
    return spec.weights is not None or known or texting.is_ready(spec, task)


def resized(model: nn.Module, spec: ModelSpec) -> nn.Module:
    """A saved model for pictures of the size that the recipe says, if it says one."""
    size = spec.config.get("image_size")
    return model if size is None else official.resized(model, size)


def _made(spec: ModelSpec, work: Work) -> nn.Module:
    """A model of the table with random weights or those of a file, which may know another number of classes."""
    classes = len(work.data.classes)
    model = official.create(spec.name, **{"num_classes": classes, **spec.config})
    if spec.weights is None:
        return model
    file = official.read(spec.weights)
    theirs = official.classes_of(file, model)
    if theirs not in (None, classes) and not spec.reset_head:
        text = f"{shown(spec.weights)} has {theirs} classes, the data {classes}; reset_head trains a new classifier"
        raise OptionError("weights", text)
    if spec.reset_head and work.recipe.task == detecting.TASK:
        artifact.remember(model, classes=work.data.classes)  # a detector keeps those of the same names
    return official.load(model, file, tell=_notes(work))


def _notes(work: Work) -> Callable[[str], None]:
    """Where notes of this run go."""
    return lambda text: work.tell({"event": "note", "text": text})


def _fitting(model: nn.Module, spec: ModelSpec, work: Work) -> nn.Module:
    """The model if it knows the data's classes; with `reset_head` a new classifier takes the place of another one."""
    record, wanted = artifact.record_of(model), work.data.classes
    names = record.classes if record else ()
    if names == wanted:
        return model
    count = len(names) or _answers(model, work)
    if not names and count == len(wanted):
        return model
    if spec.reset_head:
        with randomness.kept():
            torch.manual_seed(work.recipe.seed)
            return artifact.with_classes(model, wanted, tell=_notes(work))
    theirs = f"{count} classes{_some(names)}"
    text = f"{shown(spec.name)} knows {theirs}, the data has {len(wanted)}{_some(wanted)}"
    raise OptionError("data", f"{text}; reset_head trains a new classifier")


def check_teacher(work: Work, teacher: nn.Module) -> None:
    """OptionError for a teacher that cannot take the pictures of this run, or knows other classes."""
    if work.recipe.task in texting.TASKS:
        texting.check_teacher(work, teacher)
    elif (count := _answers(teacher, work, where="teacher")) != len(work.data.classes):
        text = f"answers with {count} classes, the data has {len(work.data.classes)}{_some(work.data.classes)}"
        raise OptionError("teacher", f"{text}; train it on this data, or reset_head")


def check_student(spec: ModelSpec, work: Work) -> None:
    """OptionError for a model that cannot have a distillation token; one of the table is not built for it."""
    model = work.given.get(spec.name)
    if model is None and artifact.is_artifact(spec.name):
        model = artifact.load(spec.name)
    elif model is None and sources.is_picture_model(spec.name):
        model = sources.picture_model(spec.name)
    with contextlib.nullcontext() if model is not None else torch.device("meta"):
        if model is None:
            model = official.create(spec.name, **{"num_classes": len(work.data.classes), **spec.config})
        try:
            apply(model, deit.plan(model))
        except (TypeError, LookupError, OptionError) as error:
            said = error.text if isinstance(error, OptionError) else str(error.args[0] if error.args else error)
            text = f"{type(model).__name__} cannot have a distillation token; use how: logits ({said})"
            raise OptionError("how", text) from None


def _some(names: tuple[str, ...]) -> str:
    listed = ", ".join(shown(name, limit=20) for name in names[:4])
    return f" ({listed}{', ...' if len(names) > 4 else ''})" if names else ""


def _answers(model: nn.Module, work: Work, where: str = "model") -> int:
    """How many logits the model answers a picture of the data with, or how many classes a detector knows."""
    if work.recipe.task == detecting.TASK:
        return detecting.classes_of(model)
    (batch,) = work.batches("val", size=1, limit=1).epoch(0)
    try:
        with torch.inference_mode():
            logits = work.task.forward(model.eval(), batch)
    except (RuntimeError, AssertionError, ValueError) as error:  # what models raise for shapes that do not fit
        size = "x".join(map(str, batch["image"].shape[1:]))
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OptionError(where, f"cannot take a picture of {size}: {said}") from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise OptionError(where, "must answer with one tensor of logits (images, classes)")
    return int(logits.shape[1])
