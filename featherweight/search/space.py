# SPDX-License-Identifier: Apache-2.0
"""What can be varied of a recipe for a model: knobs, and the steps that a choice of them stands for.

A point is a choice for every knob, as plain data. Each knob belongs to one step of recipes; which choices a model can
have is tried on its structure, where nothing is trained. Options of a step that are not searched stay as the recipe
gives them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
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
from featherweight.runtime.preprocess import Preprocess
from featherweight.search.students import students_of
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
PLACED = {"width": "prune"}  # a step of its own place in the order, as what drops tokens cannot be made narrower
SEARCHED = {*ORDER, *(step for steps in BITS.values() for step in steps)}
MANY = 9  # choices of a knob that are not tried one by one
RATES = (1e-4, 2e-4, 3e-4, 5e-4, 1e-3)


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


def _twentieths(first: int, last: int, step: int = 1) -> tuple[float, ...]:
    return tuple(round(n / 20, 2) for n in range(first, last, step))


ASKED = (
    Knob("resolution", "resolution", "size", (), {}),  # the choices depend on the model
    Knob("blocks dropped", "drop", "count", (0, 1, 2, 3, 4, 6), {}),
    Knob("tokens kept", "tokens", "keep", _twentieths(20, 6, -1), {}),
    Knob("mlp cut", "prune", "mlp", _twentieths(0, 17, 2), {"mlp": 0.0, "heads": 0.0}),
    Knob("heads cut", "prune", "heads", (0.0, 0.1, 0.17, 0.25, 0.34, 0.5, 0.67), {"mlp": 0.0, "heads": 0.0}),
    Knob("width cut", "width", "embed", (0.0, 0.15, 0.3, 0.45), {"mlp": 0.0, "heads": 0.0}),
    Knob("channels cut", "prune_channels", "ratio", _twentieths(0, 15), {}),
    Knob("rank kept", "lowrank", "keep", (1.0, 0.8, 0.65, 0.5, 0.35), {"ranks": "share"}),
)


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


def space_of(
    base: recipes.Recipe, start: Outline, *, preprocess: Preprocess, images: int, full: int, small: bool
) -> Space:
    """The knobs that this model has.

    preprocess: how its pictures are prepared; a student that would see others is not tried. images: in the training
    part. full: images of the longest training; a student from random weights is only tried
    where that is an epoch or more. small: bytes are what matters, so weights of few bits are tried too.
    """
    prefix, given = split(base)
    space = Space(base, prefix, given, (), {}, images)
    knobs = [found for knob in ASKED if (found := _possible(space, start, knob)) is not None]
    if any(knob.step == "prune" for knob in knobs):  # whose neurons and heads are the channels of a transformer
        knobs = [knob for knob in knobs if knob.step != "prune_channels"]
    plain = [step.name for step in prefix] == ["load"] and base.teacher is None
    plain = plain and base.model is not None and base.model.name != GIVEN
    students = students_of(start, preprocess) if plain and full >= images else {}
    if students:
        knobs.insert(0, Knob("student", "student", "config", ("as it is", *students), {}))
    kinds = [kind for kind in BITS if small or kind == "int8"]
    possible = [kind for kind in kinds if _macs(space, start, *next(iter(BITS[kind].items()))) is not None]
    if possible:
        knobs.append(Knob("bits", "bits", "bits", (FLOAT, *possible), {}))
    if not knobs:
        raise OptionError("model", f"{type(start.model).__name__} has nothing that the search could vary")
    knobs.append(Knob("learning rate", "train", "lr", _rates(base.train.lr), {}))
    return replace(space, knobs=tuple(knobs), students=students)


def _rates(own: float) -> tuple[float, ...]:
    """Learning rates around the recipe's own, which comes first."""
    return (own, *(rate for rate in RATES if not math.isclose(rate, own, rel_tol=0.2)))


def _possible(space: Space, start: Outline, knob: Knob) -> Knob | None:
    """The knob with those of its choices that make another structure of the model; None where there are none.

    Of many choices the last one tells whether the model can have them.
    """
    choices = tuple(_sides(start)) if knob.name == "resolution" else knob.choices
    step = PLACED.get(knob.step, knob.step)
    options = {**space.given.get(step, {}), **knob.fixed}
    whole = start.macs()
    if len(choices) >= MANY:
        return knob if _macs(space, start, step, {**options, knob.option: choices[-1]}) not in (None, whole) else None
    found, seen = list(choices[:1]), {whole}
    for choice in choices[1:]:
        macs = _macs(space, start, step, {**options, knob.option: choice})
        if macs is None:
            break
        if macs not in seen:
            seen.add(macs)
            found.append(choice)
    return replace(knob, choices=tuple(found)) if len(found) > 1 else None


def _macs(space: Space, start: Outline, step: str, options: Mapping[str, Any]) -> int | None:
    """Multiply-adds after one step, or None where this model cannot have it."""
    with contextlib.suppress(FeatherweightError, LookupError, TypeError, ValueError, RuntimeError):
        return outlined(start, [{step: dict(options)}]).macs()
    return None


def _sides(start: Outline) -> Iterator[int]:
    """Sides of a square picture from the model's own down to half of it; nothing for other shapes."""
    height, width = start.image[1:]
    if height != width:
        return
    yield height
    config = getattr(start.model, "config", None)
    patch = int(getattr(config, "patch_size", 0) or 8)
    step = patch * max(1, round(height / patch / 8))
    yield from range(height - step, height // 2 - 1, -step)
