# SPDX-License-Identifier: Apache-2.0
"""What can be varied of a recipe for a model: knobs, and the steps that a choice of them stands for.

A point is a choice for every knob, as plain data. Each knob belongs to one step of recipes; `knobs` says which choices
a model can have. Options of a step that are not searched stay as the recipe gives them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from featherweight import recipe as recipes
from featherweight.binding import bind
from featherweight.composition import outline_of
from featherweight.errors import FeatherweightError, OptionError
from featherweight.explain import Outline
from featherweight.models import zoo
from featherweight.runs import GIVEN
from featherweight.surgery import replaying

Point = Mapping[str, Any]
Steps = list[dict[str, dict[str, Any]]]

ORDER = ("student", "resolution", "drop", "width", "tokens", "prune", "prune_channels", "lowrank", "bits")
LOOKS = ("export", "measure", "report", "landscape", "evaluate")  # steps of a recipe that leave the model as it is
TRAINS = ("drop", "tokens", "prune", "prune_channels", "lowrank", "distill", "train")
BITS: dict[str, dict[str, dict[str, Any]]] = {
    "int8": {"quantize": {}},
    "float16": {"half": {}},
    "int4": {"quantize_weights": {"weights": "int4"}},
}
FLOAT = "float32"
UNGRADED = ("bits", "student", "train")  # steps whose choices are no more or less of one thing
CANNOT = (FeatherweightError, LookupError, TypeError, ValueError, RuntimeError)  # what says that a point cannot be
PLACED = {"width": "prune"}  # a step of its own place in the order, as what drops tokens cannot be made narrower
SEARCHED = {*ORDER, *(step for steps in BITS.values() for step in steps)}


@dataclass(frozen=True)
class Knob:
    """One choice to make; the first of the choices leaves the model as it is."""

    name: str
    step: str
    option: str
    choices: tuple[Any, ...]
    fixed: Mapping[str, Any]  # further options of the step, where the recipe does not say otherwise

    @property
    def neutral(self) -> Any:
        return self.choices[0]


@dataclass(frozen=True)
class Space:
    """The knobs of a search and the recipe they vary."""

    base: recipes.Recipe
    prefix: tuple[recipes.Step, ...]  # done once, the same for every point
    given: Mapping[str, Mapping[str, Any]]  # step -> the recipe's own options of it
    knobs: tuple[Knob, ...]
    students: Mapping[str, Mapping[str, Any]]  # choice -> fields of the model's configuration
    images: int  # in the training part

    def point(self, **chosen: Any) -> dict[str, Any]:
        """A point by its choices; every other knob leaves the model as it is."""
        return {knob.name: chosen.get(knob.name, knob.neutral) for knob in self.knobs}

    def own(self) -> dict[str, Any]:
        """The recipe's own options as choices of the knobs, the nearest where there is none of the same value."""
        found = {}
        for knob in self.knobs:
            value = self.given.get(knob.step, {}).get(knob.option)
            if isinstance(value, (int, float)) and knob.step not in ("bits", "train"):
                found[knob.name] = min(knob.choices, key=lambda choice: abs(choice - value))
            elif knob.step == "bits":
                kinds = (kind for kind in knob.choices[1:] if not self.given.keys().isdisjoint(BITS[kind]))
                found[knob.name] = next(kinds, knob.neutral)
        return found

    def suggested(self, trial: Any) -> dict[str, Any]:
        """The point that a trial of the sampler asks for."""
        found = {}
        for knob in self.knobs:
            if knob.step in ("bits", "student"):
                found[knob.name] = trial.suggest_categorical(knob.name, list(knob.choices))
            else:
                found[knob.name] = knob.choices[trial.suggest_int(knob.name, 0, len(knob.choices) - 1)]
        return found

    def parameters(self, point: Point) -> dict[str, Any]:
        """The point as the sampler writes it down."""
        return {
            knob.name: point[knob.name] if knob.step in ("bits", "student") else knob.choices.index(point[knob.name])
            for knob in self.knobs
        }

    def steps(self, point: Point, images: int | None = None) -> Steps:
        """The steps after the prefix; each training sees its share of `images`, the last one twice that of others."""
        found: Steps = []
        for step in ORDER:
            mine = [k for k in self.knobs if k.step == step and point[k.name] != k.neutral]
            if not mine:
                continue
            if step == "bits":
                ((name, options),) = BITS[point["bits"]].items()
                found.append({name: {**options, **self.given.get(name, {})}})
            elif step == "student":
                found += [{"teacher": {}}, {"distill": {"how": "logits", "distance": "soft", "restart": False}}]
            else:
                fixed = {key: value for knob in mine for key, value in knob.fixed.items()}
                chosen = {knob.option: point[knob.name] for knob in mine}
                name = PLACED.get(step, step)
                found.append({name: {**self.given.get(name, {}), **fixed, **chosen}})
        names = [next(iter(step)) for step in found]
        if "resolution" in names and not set(names) & set(TRAINS):
            found.insert(names.index("resolution") + 1, {"train": {}})
        return found if images is None else self._trained(found, point, images)

    def _trained(self, steps: Steps, point: Point, images: int) -> Steps:
        """The steps with how long they train."""
        names = [next(iter(step)) for step in steps if next(iter(step)) in TRAINS]
        last = len(names) - 1
        seen, done = 0, []
        for step in steps:
            ((name, options),) = step.items()
            if name in TRAINS:
                share = images * (2 if seen == last else 1) / (last + 2)
                epochs = math.ceil(share / self.images)
                length = {"epochs": epochs, "images": max(1, round(share / epochs))}
                options, seen = {**options, **length, "lr": point["learning rate"]}, seen + 1
            done.append({name: options})
        return done

    def recipe(self, point: Point, images: int, name: str) -> recipes.Recipe:
        """What `featherweight run` makes the point by, checked."""
        raw = recipes.plain(replace(self.base, name=name, steps=(*self.prefix,), budget=None))
        if (student := point.get("student", "as it is")) != "as it is":
            config = {**raw["model"]["config"], **self.students[student]}
            family = str(config.pop("family"))
            raw |= {"teacher": raw["model"], "model": {"name": family, "config": config}}
        raw["steps"] = [*raw["steps"], *self.steps(point, images)]
        return checked(raw, f"point {name}")

    def outline(self, start: Outline, point: Point) -> Outline:
        """The structure the point has, without training: raises what its steps raise."""
        if (student := point.get("student", "as it is")) != "as it is":
            config = dict(self.students[student])
            start = replace(start, model=zoo.create(str(config.pop("family")), **config).eval())
        return outlined(start, self.steps(point))

    def says(self, point: Point) -> str:
        """ "tokens kept 0.7, mlp cut 0.3, int8"."""
        said = [
            f"{'' if knob.step == 'bits' else knob.name + ' '}{point[knob.name]}"
            for knob in self.knobs
            if point[knob.name] != knob.neutral and knob.name != "learning rate"
        ]
        return ", ".join(said) or "as it is"


def checked(raw: Mapping[str, Any], name: str) -> recipes.Recipe:
    """A recipe from plain data, also one of a module that was given, which no file can name."""
    if (raw.get("model") or {}).get("name") != GIVEN:
        return recipes.parse(raw, name)
    plan = recipes.parse({key: value for key, value in raw.items() if key != "model"}, name, partial=True)
    return replace(plan, model=bind(recipes.ModelSpec, raw["model"], "model", name))


def key_of(point: Point) -> str:
    """A short name for a point, the same wherever it is asked for."""
    return hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:10]


def outlined(start: Outline, steps: Steps) -> Outline:
    """What the steps make of a structure."""
    for step in steps:
        ((name, options),) = step.items()
        change = outline_of(name)
        if change is not None:
            numbers = replaying() if name == "lowrank" else contextlib.nullcontext()  # its factors take seconds
            with torch.no_grad(), numbers:
                start = change(start, {**recipes.defaults(name), **options})
    return start


def split(base: recipes.Recipe) -> tuple[tuple[recipes.Step, ...], dict[str, dict[str, Any]]]:
    """The steps before the first that is searched over, and the options of those that are."""
    steps = [step for step in base.steps if step.name not in LOOKS]
    first = next((n for n, step in enumerate(steps) if step.name in SEARCHED), len(steps))
    for step in steps[first:]:
        if step.name not in SEARCHED:
            known = ", ".join(name for name in ORDER if name not in ("student", "width", "bits"))
            text = f"stands behind what is searched over, where only these can: {known}, quantize"
            raise OptionError(f"steps.{step.name}", text)
    if not first:
        raise OptionError("steps", "no model is there to search from: begin the recipe with `load` or `baseline`")
    lengths = ("epochs", "images", "lr")
    given = {s.name: {k: v for k, v in s.options.items() if k not in lengths} for s in steps[first:]}
    return tuple(steps[:first]), given
