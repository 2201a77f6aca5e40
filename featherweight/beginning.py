# SPDX-License-Identifier: Apache-2.0
"""The model a run begins with: made, loaded or given, and checked to fit the data before anything is spent on it."""

from __future__ import annotations

import copy

import torch
from torch import nn

from . import artifact, official, randomness
from .errors import OptionError, shown
from .models import zoo
from .recipe import ModelSpec
from .work import Work


def start(spec: ModelSpec, work: Work) -> nn.Module:
    """The model a spec names, with as many classes as the data."""
    given = work.given.get(spec.name)
    if given is not None:
        model = copy.deepcopy(given)
    elif artifact.is_artifact(spec.name):
        model = artifact.load(spec.name)
    elif spec.weights == "shipped":
        model = artifact.load(zoo.shipped_weights(spec.name))
    else:
        with randomness.kept():
            torch.manual_seed(work.recipe.seed)
            model = _made(spec, len(work.data.classes), work)
    return _fitting(model, spec, work)


def _made(spec: ModelSpec, classes: int, work: Work) -> nn.Module:
    """A model of the table with random weights or those of a file, which may know another number of classes."""
    model = zoo.create(spec.name, **{"num_classes": classes, **spec.config})
    if spec.weights is None:
        return model
    file = official.read(spec.weights)
    theirs = official.classes_of(file, model)
    if theirs not in (None, classes) and not spec.reset_head:
        text = f"{shown(spec.weights)} has {theirs} classes, the data {classes}; reset_head trains a new classifier"
        raise OptionError("weights", text)
    return official.load(model, file, tell=lambda text: work.tell({"event": "note", "text": text}))


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
            return artifact.with_classes(model, len(wanted))
    theirs = f"{count} classes{_some(names)}"
    text = f"{shown(spec.name)} knows {theirs}, the data has {len(wanted)}{_some(wanted)}"
    raise OptionError("data", f"{text}; reset_head trains a new classifier")


def _some(names: tuple[str, ...]) -> str:
    listed = ", ".join(shown(name, limit=20) for name in names[:4])
    return f" ({listed}{', ...' if len(names) > 4 else ''})" if names else ""


def _answers(model: nn.Module, work: Work) -> int:
    """How many logits the model answers a picture of the data with."""
    (batch,) = work.batches("val", size=1, limit=1).epoch(0)
    try:
        with torch.inference_mode():
            logits = work.task.forward(model.eval(), batch)
    except (RuntimeError, AssertionError) as error:  # what PyTorch and timm raise for shapes that do not fit
        size = "x".join(map(str, batch["image"].shape[1:]))
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OptionError("model", f"cannot take a picture of {size}: {said}") from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise OptionError("model", "must answer with one tensor of logits (images, classes)")
    return int(logits.shape[1])
