# SPDX-License-Identifier: Apache-2.0
"""The first points of a search: the recipe's own, what lies next to it, and mild to strong ones of all knobs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from featherweight.search.limits import Limits
from featherweight.search.points import Ground, counted
from featherweight.search.space import CANNOT, UNGRADED, Knob, Space

LEVELS = 11
USUAL = ("tokens", "prune", "prune_channels")  # steps that are tried together where the recipe names none
NEAR = 6  # neighbors of the recipe's own point among the first
LOOKED_AT = 16  # neighbors whose cost is forecast
Chosen = dict[str, Any]


def beginnings(ground: Ground, asked: Limits) -> list[Chosen]:
    """The first points: the recipe's own, its neighbors, 8 bits alone, then the mildest that the forecast lets pass.

    That of the recipe's own steps, of all knobs, and, where the recipe has no point, of each knob by itself. Where no
    cost is limited they are a mild, a middle and a strong one of the recipe's own steps and of all.
    """
    space = ground.space
    bits = next((knob for knob in space.knobs if knob.step == "bits"), None)
    few = {"bits": bits.choices[1]} if bits else {}
    own = space.point(**space.own())
    found = [] if own == space.point() else [own, {**own, **few}, *neighbors(ground, own, asked)]
    found.append(space.point(**few))
    free = [knob for knob in space.knobs if knob.step not in UNGRADED]
    usual = [knob for knob in free if knob.step in (space.given or USUAL)]
    alone = [[knob] for knob in usual if len(usual) > 1] if own == space.point() else []
    for group in (usual, free, *alone) if asked.bounded else ():
        low, high = 0, LEVELS  # the mildest level that passes lies above low, at high or below
        while high - low > 1:
            level = (low + high) // 2
            low, high = (low, level) if _passes(ground, graded(space, few, group, level), asked) else (level, high)
        if high < LEVELS:
            found.append(graded(space, few, group, high))
    for group in () if asked.bounded else (usual, free):
        found += [graded(space, few, group, level) for level in (LEVELS // 4, LEVELS // 2, 3 * LEVELS // 4)]
    return [point for n, point in enumerate(found) if point not in found[:n]]


def neighbors(ground: Ground, own: Mapping[str, Any], asked: Limits) -> list[Chosen]:
    """Points that differ from this one in one or two choices, by a step each, and are to cost no more.

    What they cost is forecast; the dearest of them first, as what they lose is likely to be least. Each knob is made
    stronger in one of them only, so that one that the model cannot spare does not spoil several.
    """
    try:
        known = counted(ground, own)
    except CANNOT:
        return []
    most = min(float(known[asked.cost]), float(getattr(asked, asked.cost) or known[asked.cost]))
    stronger, milder = (list(_steps(ground.space, own, side)) for side in (1, -1))
    pairs = [(one, {**one, **other}) for one in stronger for other in milder if one.keys() != other.keys()]
    random.Random(0).shuffle(pairs)
    passing: list[tuple[float, str, Chosen]] = []
    for one, change in [*((step, step) for step in stronger), *pairs][:LOOKED_AT]:
        point = {**own, **change}
        try:
            told = counted(ground, point)
        except CANNOT:
            continue
        if float(told[asked.cost]) <= most and not asked.excess({**told, asked.cost: 0.0}):
            passing.append((float(told[asked.cost]), next(iter(one)), point))
    dearest: dict[str, Chosen] = {}
    for _, knob, point in sorted(passing, key=lambda found: -found[0]):
        dearest.setdefault(knob, point)
    return list(dearest.values())[:NEAR]


def _steps(space: Space, own: Mapping[str, Any], side: int) -> Iterator[Chosen]:
    """Changes of one knob to the next choice, or to the one before."""
    for knob in space.knobs:
        if knob.step in UNGRADED:
            continue
        place = knob.choices.index(own[knob.name]) + side
        if 0 <= place < len(knob.choices):
            yield {knob.name: knob.choices[place]}


def graded(space: Space, few: Mapping[str, Any], group: Sequence[Knob], level: int) -> Chosen:
    """The point whose knobs of a group are so far from neutral, of `LEVELS`."""
    return space.point(**few, **{knob.name: _at(knob.choices, level / (LEVELS - 1)) for knob in group})


def _at(choices: Sequence[Any], share: float) -> Any:
    return choices[round(share * (len(choices) - 1))]


def _passes(ground: Ground, point: Mapping[str, Any], asked: Limits) -> bool:
    try:
        return not asked.excess(counted(ground, point))
    except CANNOT:
        return False
