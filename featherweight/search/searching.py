# SPDX-License-Identifier: Apache-2.0
"""`fit`: the compression of a model that meets a budget, searched over the steps that recipes are made of."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from torch import nn

from featherweight import files, runs
from featherweight import recipe as recipes
from featherweight.binding import bind
from featherweight.data import Data
from featherweight.errors import CheckFailed, OptionError, closest, shown
from featherweight.recipe import ModelSpec, Recipe, Step
from featherweight.runtime.preprocess import Preprocess
from featherweight.runtime.session import BACKENDS
from featherweight.search import page
from featherweight.search.ground import Request, prepare, read, restored, smallest, study_of
from featherweight.search.limits import Limits, limits, seconds
from featherweight.search.outcome import Search, concluded
from featherweight.search.points import Found, Ground, Tell, carried_out, counted
from featherweight.search.space import LOOKS, Knob, Space
from featherweight.search.study import Study
from featherweight.search.worker import CANNOT, Clock, Others, save, work
from featherweight.texting import task_of_model
from featherweight.vetting import name_problem

RECIPE = "compress"
CLASSIFIERS = "image-classification"
END_SHARE, END_SECONDS = 0.12, 120.0  # of the time, at most, kept for the race, the test and the page at the end
LEVELS = 11
USUAL = ("tokens", "prune", "prune_channels")  # steps that are tried together where the recipe names none


def fit(
    model: str | os.PathLike[str] | nn.Module,
    data: str | os.PathLike[str] | Data,
    *,
    latency: str | float | None = None,
    size: str | float | None = None,
    macs: str | float | None = None,
    max_drop: str | float | None = None,
    runtime: str = BACKENDS[0],
    time: str = "1h",
    workers: int = 1,
    storage: str | None = None,
    recipe: str | os.PathLike[str] | None = None,
    unlabeled: str | os.PathLike[str] | None = None,
    images: int | None = None,
    points: int | None = None,
    project: str | os.PathLike[str] = "runs",
    name: str = "fit",
    seed: int = 0,
    overrides: Sequence[str] = (),
    progress: Tell | None = None,
    preprocess: Preprocess | None = None,
    **spec: Any,
) -> Search:
    """Search for the most accurate model within latency, size or macs, or the cheapest within `max_drop`.

    latency: at batch 1 in `runtime`, "5ms". recipe: whose steps are searched over and whose first steps are done once;
    one that is named is also carried out as it is written. unlabeled: a folder of pictures on which answers are
    compared. images: of the longest training. points: stop after so many. The same call goes on in the same folder.
    Raises OptionError before any work, and CheckFailed, with everything saved, if nothing meets the limits.
    """
    asked = limits(latency=latency, size=size, macs=macs, max_drop=max_drop)
    _check(model, runtime, workers, name, points, images)
    if unlabeled is not None and not Path(unlabeled).is_dir():
        raise OptionError("--unlabeled", f"{shown(str(unlabeled))} is no folder of pictures")
    tell = progress or (lambda event: None)
    began = monotonic()
    base = _base(model, data, recipe, overrides, seed, spec)
    request = Request(base, asked, runtime, seconds("--time", time), workers, images,
                      None if unlabeled is None else str(unlabeled), seed=seed)  # fmt: skip
    given = {runs.GIVEN: model} if isinstance(model, nn.Module) else {}
    folder = Path(project) / name
    loaded = data if isinstance(data, Data) else None
    if (given or loaded) and workers > 1:
        raise OptionError("workers", "a module or a data set in memory cannot be handed to other processes; use 1")
    with files.lock(folder):
        files.clean_stale(folder)
        ground, plan = _ground(request, folder, loaded, given, preprocess, storage, tell)
        smallest(ground, asked)
        study = study_of(plan, ground)
        clock = Clock(_spare(request.seconds), plan["rungs"], plan["per_image"], began)
        found = _searched(ground, study, request, clock, points, recipe is not None, tell)
        page.write(found, ground, study, plan, request.seconds)
        files.point(folder.parent / "latest", folder)
    tell({"event": "end", "folder": str(folder), "report": str(folder / "report.html")})
    if not found.met:
        raise CheckFailed(f"{found.reason}; the nearest is saved in {shown(found.pick.get('place', folder))}")
    return found


def _check(model: Any, runtime: str, workers: int, name: str, points: int | None, images: int | None) -> None:
    if runtime not in BACKENDS:
        raise OptionError("--runtime", f"no {runtime!r}; {closest(runtime, BACKENDS)}Known: {', '.join(BACKENDS)}")
    for option, value in (("--workers", workers), ("--points", points), ("--images", images)):
        if value is not None and value < 1:
            raise OptionError(option, f"must be 1 or more, not {value}")
    if problem := name_problem(name):
        raise OptionError("--name", problem)
    if task := task_of_model(model):
        text = f"is for {task}; `fit` searches for classifiers of pictures: featherweight compress MODEL --target 2x"
        raise OptionError("model", text)
    page.check()


def _base(model: Any, data: Any, recipe: Any, overrides: Sequence[str], seed: int, spec: Mapping[str, Any]) -> Recipe:
    """The recipe that is searched over, of this model and data."""
    known = recipes.read(str(RECIPE if recipe is None else recipe), partial=True)
    if known.task != CLASSIFIERS:
        text = f"{shown(str(recipe))} is for {known.task}; `fit` searches for classifiers of pictures"
        raise OptionError("--recipe", text)
    fields: dict[str, Any] = {} if isinstance(data, Data) else {"data": _data(data, known)}
    if recipe is None:  # its steps may not be for this model; the search finds out what is
        fields["steps"] = ["load"]
    module = isinstance(model, nn.Module)
    if not module:
        fields["model"] = runs.trained_spec({"name": str(model), **spec})
    name = RECIPE if recipe is None else str(recipe)
    plan = recipes.read(name, [*overrides, f"seed={seed}"], given=fields, partial=module)
    if recipe is None and plan.train.validate_images is None:
        plan = dataclasses.replace(plan, train=dataclasses.replace(plan.train, validate_images=64))
    if module:
        plan = dataclasses.replace(plan, model=bind(ModelSpec, {**spec, "name": runs.GIVEN}, "model", "fit"))
    return plan


def _data(data: Any, known: Recipe) -> Any:
    """The data that is asked for; with the options of the recipe where it is the recipe's own."""
    if known.data is not None and known.data.source == str(data):
        return dataclasses.asdict(known.data)
    return {"source": str(data)}


def _ground(
    request: Request,
    folder: Path,
    data: Data | None,
    given: Mapping[str, nn.Module],
    pre: Preprocess | None,
    storage: str | None,
    tell: Tell,
) -> tuple[Ground, dict[str, Any]]:
    """The search as it was left in this folder, or prepared now."""
    known = read(folder)
    if known is None:
        if any(entry.name not in (".lock", "start") for entry in folder.iterdir()):
            raise OptionError("--name", f"{shown(folder)} holds something that is no search; choose another name")
        ground, plan = prepare(request, folder, data, given, pre, tell)
        for text in plan["warnings"]:
            tell({"event": "warning", "text": text})
        plan = {**plan, "storage": storage}
        save(folder, plan)
        return ground, plan
    plan = {**known, "storage": storage or known["storage"]}
    ground = restored(plan, data, given, pre, tell)
    from featherweight.search.ground import about

    if about(request, ground.work, given) != known["about"]:
        text = f"{shown(folder)} holds the search of something else: model, data, recipe, limits or runtime differ"
        raise OptionError("--name", f"{text}; choose another name, or give the same options to go on")
    tell({"event": "note", "text": f"{shown(folder)}: goes on with the search that is there"})
    return ground, plan


def _searched(
    ground: Ground, study: Study, request: Request, clock: Clock, points: int | None, named: bool, tell: Tell
) -> Search:
    """All points, and the end."""
    written = _as_written(ground, tell) if named else None
    study.take_up()
    if study.empty():
        for point in beginnings(ground, request.limits):
            study.enqueue(point)
    others = Others.begin(ground.folder, request.workers - 1, clock.left)
    try:
        work(ground, study, request.limits, clock, tell, points=points)
        codes = others.wait()
    except BaseException:
        others.stop()
        raise
    if any(codes):
        tell({"event": "note", "text": f"{sum(map(bool, codes))} workers stopped early: see worker-*.log"})
    results = study.results()
    if not results:
        reasons = [*study.failures(), *(item["reason"] for item in study.hopeless()), "the time was too short"]
        raise CheckFailed(f"no point was measured in {request.seconds:g} s: {reasons[0]}")
    return concluded(ground, request.limits, results, written, tell)


def _spare(seconds: float) -> float:
    """The time without what the end takes."""
    return max(seconds - min(END_SECONDS, END_SHARE * seconds), 1.0)


def _as_written(ground: Ground, tell: Tell) -> Found | None:
    """The recipe with its own options and trainings, for comparison."""
    base = ground.space.base
    steps: tuple[Step, ...] = tuple(step for step in base.steps if step.name not in LOOKS)
    tell({"event": "note", "text": "the recipe is carried out as it is written, for comparison"})
    try:
        found = carried_out(ground, dataclasses.replace(base, steps=steps, name="as-written", budget=None),
                            lambda event: None)  # fmt: skip
    except CANNOT as error:
        tell({"event": "note", "text": f"the recipe as it is written came to nothing: {error}"})
        return None
    return {**found, "says": "the recipe as it is written", "images": 0}


def beginnings(ground: Ground, asked: Limits) -> list[dict[str, Any]]:
    """The first points: 8 bits alone, the recipe's own, then the mildest that the forecast lets pass.

    That of the recipe's own steps, of all knobs, and of each of those steps. Where no cost is limited they are a mild,
    a middle and a strong one of the recipe's own steps and of all.
    """
    space = ground.space
    bits = next((knob for knob in space.knobs if knob.step == "bits"), None)
    few = {"bits": bits.choices[1]} if bits else {}
    found = [space.point(**few), space.point(**few, **_own(space))]
    free = [knob for knob in space.knobs if knob.step not in ("bits", "student", "train")]
    own = [knob for knob in free if knob.step in (space.given or USUAL)]
    for group in (own, free, *([knob] for knob in own if len(own) > 1)) if asked.bounded else ():
        low, high = 0, LEVELS  # the mildest level that passes lies above low, at high or below
        while high - low > 1:
            level = (low + high) // 2
            low, high = (low, level) if _passes(ground, _graded(space, few, group, level), asked) else (level, high)
        if high < LEVELS:
            found.append(_graded(space, few, group, high))
    for group in () if asked.bounded else (own, free):
        found += [_graded(space, few, group, level) for level in (LEVELS // 4, LEVELS // 2, 3 * LEVELS // 4)]
    return [point for n, point in enumerate(found) if point not in found[:n]]


def _own(space: Space) -> dict[str, Any]:
    """The recipe's own options as choices of the knobs, the nearest where there is none of the same value."""
    found = {}
    for knob in space.knobs:
        value = space.given.get(knob.step, {}).get(knob.option)
        if isinstance(value, (int, float)) and knob.step not in ("bits", "train"):
            found[knob.name] = min(knob.choices, key=lambda choice: abs(choice - value))
    return found


def _graded(space: Space, few: Mapping[str, Any], group: Sequence[Knob], level: int) -> dict[str, Any]:
    """The point whose knobs of a group are so far from neutral, of `LEVELS`."""
    return space.point(**few, **{knob.name: _at(knob.choices, level / (LEVELS - 1)) for knob in group})


def _at(choices: Sequence[Any], share: float) -> Any:
    return choices[round(share * (len(choices) - 1))]


def _passes(ground: Ground, point: Mapping[str, Any], asked: Limits) -> bool:
    try:
        return not asked.excess(counted(ground, point))
    except CANNOT:
        return False
