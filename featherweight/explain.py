# SPDX-License-Identifier: Apache-2.0
"""What a recipe will do, step by step, and what size each step leaves, without training anything.

The structure is made as the steps would make it, on weights that mean nothing where none are at hand, so parameters,
multiply-adds and bytes are those that come out wherever a step's choice depends on its options alone. What depends on
trained weights or on data (which layers get which rank, how well codes compress) is an estimate and says so. Not here:
accuracy and time, which only running tells.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import artifact, counting, data, detecting, official, sources, texting
from .beginning import RANDOM, comes_trained, resized
from .composition import MODEL, NORMS, TEACHER, Moment, outline_of, walk
from .errors import FeatherweightError, InputError, OptionError
from .models import zoo
from .modes import BATCH_NORMS
from .outlines_text import Reading, reading
from .packing import tensors_of
from .recipe import ModelSpec, Recipe, defaults
from .surgery import edits_of
from .texting import TASKS as TEXT_TASKS


@dataclass(frozen=True)
class Outline:
    """A model's structure on its way through a recipe; its weights mean nothing."""

    model: nn.Module
    image: tuple[int, ...]  # (C, H, W); of a text model none
    density: float = 1.0  # share of the weights of linear and convolution layers that are not zero
    bits: float | None = None  # of one such weight in the file; None: as the tensors are
    estimated: bool = False  # something in it depends on weights or data
    reading: Reading | None = None  # of a text model

    def changed(self, change: Callable[[nn.Module], nn.Module], *, estimated: bool = False) -> Outline:
        """The outline of what `change` makes of the model."""
        return dataclasses.replace(self, model=change(self.model), estimated=self.estimated or estimated)

    def at(self, image: tuple[int, ...]) -> Outline:
        """The outline for pictures of another shape (C, H, W)."""
        return dataclasses.replace(self, image=image)

    def thinned(self, density: float) -> Outline:
        """The outline with so many of its weights left."""
        return dataclasses.replace(self, density=min(density, self.density))

    def stored(self, bits: float) -> Outline:
        """The outline whose weights take so many bits each in the file, where zeros are left out."""
        return dataclasses.replace(self, bits=bits, estimated=True)

    @property
    def params(self) -> int:
        """Parameters, zeros included."""
        return counting.parameters(self.model)

    def macs(self) -> int:
        """Multiply-adds of one picture or one text of middling length, zeros included."""
        example = torch.zeros(1, *self.image) if self.reading is None else self.reading.example()
        return counting.macs(self.model, example)

    def size_bytes(self) -> int:
        """Bytes of the tensors in a file: as they are, or with `bits` a weight and the places of those that are left.

        Where d of the weights are left, their places take at least H(d) bits a weight (Shannon), which coders reach
        within some percent.
        """
        total = 0.0
        coded = {id(m.weight) for m in self.model.modules() if isinstance(getattr(m, "weight", None), Tensor)}
        for tensor in {id(t): t for t in _own(self.model)}.values():
            size = tensor.numel() * tensor.element_size()
            if self.bits is not None and id(tensor) in coded and tensor.ndim > 1 and tensor.is_floating_point():
                size = math.ceil(tensor.numel() * (entropy(self.density) + self.density * self.bits) / 8)
            total += size
        return round(total)


def _own(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor of the state, with the identity that modules know it by."""
    kept = tensors_of(model).keys()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in kept:
            yield tensor


def entropy(share: float) -> float:
    """Bits of a yes or no that is yes with this probability."""
    return -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)


@dataclass(frozen=True)
class Row:
    """A step of a recipe: what it does and what it leaves. params, macs and bytes are None before there is a model."""

    number: int
    step: str
    says: str
    options: Mapping[str, Any]  # those given
    params: int | None
    macs: int | None
    size_bytes: int | None
    estimated: bool
    changes: bool  # the structure is another one
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def explain(recipe: Recipe) -> list[Row]:
    """One row for each step. Raises what reading the model raises; a step that cannot be outlined says so in a note."""
    from .steps import STEPS

    origin = begin(recipe)
    steps = [(step.name, {**defaults(step.name), **step.options}) for step in recipe.steps]
    bare = not any(isinstance(module, BATCH_NORMS) for module in origin.model.modules())
    moments = walk(steps, done=[e.kind for e in edits_of(origin.model)], lasting=[NORMS] if bare else ())
    current, shown = origin, False
    counted = figures(origin)
    rows = []
    for step, moment, (_, options) in zip(recipe.steps, moments, steps, strict=True):
        before = current
        if moment.effect.anew:
            current = origin
        current, problem = _after(current, step.name, options)
        if current is not before:
            counted = figures(current)
        shown = shown or MODEL in moment.holds
        notes = (*_notes(moment, recipe), *problem)
        says = (STEPS[step.name].__doc__ or "").strip().partition("\n")[0]
        given = dict(step.options)
        params, macs, size = counted if shown else (None, None, None)
        changes = current is not before
        rows.append(Row(moment.number, step.name, says, given, params, macs, size, current.estimated, changes, notes))
    return rows


def figures(outline: Outline) -> tuple[int, int, int]:
    """Parameters, multiply-adds of one picture, bytes."""
    return outline.params, outline.macs(), outline.size_bytes()


def _after(outline: Outline, step: str, options: Mapping[str, Any]) -> tuple[Outline, tuple[str, ...]]:
    """The outline after a step, and what could not be told."""
    change = outline_of(step)
    if change is None:
        return outline, ()
    try:
        with torch.no_grad():
            return change(outline, options), ()
    except (FeatherweightError, LookupError, TypeError) as error:
        if isinstance(error, (InputError, OptionError)):
            raise OptionError(f"steps.{step}", error.text) from None
        return outline, (f"cannot be told before it is done: {error.args[0] if error.args else error}",)


def _notes(moment: Moment, recipe: Recipe) -> Iterator[str]:
    """What a person should know about a step in its place."""
    if TEACHER in moment.effect.gives and recipe.teacher is not None:
        yield f"the teacher is {recipe.teacher.name}"
    if moment.step == "load" and recipe.model is not None and not comes_trained(recipe.model, recipe.task):
        yield f"{recipe.model.name} {RANDOM}"
    if moment.effect.anew:
        yield "begins where the baseline began"
    for number in moment.dropped:
        yield f"what steps[{number}] did is not in it"
    for fact in moment.lost:
        mend = f"; put {fact.renewed} after it" if fact.renewed else ""
        yield f"no longer: {fact.says}{mend}"


def begin(recipe: Recipe) -> Outline:
    """The model a recipe starts from, for as many classes as its data has where that can be told."""
    spec = recipe.model
    if spec is None:
        raise OptionError(
            "model", "the recipe names none, so there is nothing to explain; add `model: vit_digits`, say"
        )
    if recipe.task in TEXT_TASKS:
        return _of_texts(recipe, spec)
    model = _model(spec, classes_of(recipe)).eval()
    record = artifact.record_of(model)
    known = record.preprocess if record is not None else None
    size = (known or zoo.preprocess_of(spec.name, model, spec.config)).size
    return Outline(model, (_channels(model), *size))


def _of_texts(recipe: Recipe, spec: ModelSpec) -> Outline:
    """The text model a recipe starts from, and how it reads."""
    try:
        corpus = texting.load(recipe)
    except (InputError, OptionError):
        corpus = None
    model = texting.made(spec, recipe, corpus.classes if corpus is not None else ()).eval()
    return Outline(model, (), reading=reading(recipe, model, corpus))


def _model(spec: ModelSpec, classes: int | None) -> nn.Module:
    if artifact.is_artifact(spec.name):
        return resized(artifact.load(spec.name), spec)
    if spec.weights == "shipped":
        return artifact.load(zoo.shipped_weights(spec.name))
    if sources.is_picture_model(spec.name):
        return sources.picture_model(spec.name)
    wanted = {"num_classes": classes} if classes is not None else {}
    return official.create(spec.name, **{**wanted, **spec.config})


def _channels(model: nn.Module) -> int:
    """Of a picture, by the first convolution."""
    return next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)


def classes_of(recipe: Recipe) -> int | None:
    """How many classes the recipe's data has; None where it is not there, or cannot be read."""
    spec = recipe.data
    if spec is None:
        return None
    try:
        if recipe.task == detecting.TASK:
            return len(detecting.load(recipe).classes)
        return len(data.load(spec.source, max_bad=spec.max_bad, seed=spec.seed, **spec.options).classes)
    except (InputError, OptionError):
        return None
