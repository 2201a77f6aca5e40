# SPDX-License-Identifier: Apache-2.0
"""What a model lets vary: the knobs that its structure has, with the choices that make another structure of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from featherweight import recipe as recipes
from featherweight.errors import OptionError
from featherweight.explain import Outline
from featherweight.runs import GIVEN
from featherweight.runtime.preprocess import Preprocess
from featherweight.search.space import BITS, CANNOT, FLOAT, PLACED, Knob, Space, outlined, split
from featherweight.search.students import students_of

MANY = 9  # choices of a knob that are not tried one by one
RATES = (1e-4, 2e-4, 3e-4, 5e-4, 1e-3)


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
    knobs = [_with_own(found, given) for knob in ASKED if (found := _possible(space, start, knob)) is not None]
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


def _with_own(knob: Knob, given: Mapping[str, Mapping[str, Any]]) -> Knob:
    """The knob with the recipe's own value among its choices, where it lies between them."""
    value, (first, *_, last) = given.get(knob.step, {}).get(knob.option), knob.choices
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not min(first, last) < value < max(first, last):
        return knob
    return replace(knob, choices=tuple(sorted({*knob.choices, value}, reverse=first > last)))


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
    with contextlib.suppress(*CANNOT):
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
