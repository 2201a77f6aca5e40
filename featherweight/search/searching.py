# SPDX-License-Identifier: Apache-2.0
"""`fit`: the compression of a model that meets a budget, searched over the steps that recipes are made of."""

from __future__ import annotations

import contextlib
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
from featherweight.recipe import ModelSpec, Recipe
from featherweight.runtime.preprocess import Preprocess
from featherweight.runtime.session import BACKENDS
from featherweight.search import page
from featherweight.search.beginnings import beginnings
from featherweight.search.ground import Request, prepare, read, restored, smallest, study_of
from featherweight.search.lengths import Clock, own_length
from featherweight.search.limits import EQUAL, Limits, limits, seconds
from featherweight.search.outcome import WRITTEN, Search, concluded, written_plan
from featherweight.search.points import Found, Ground, Tell, carried_out, counted
from featherweight.search.space import CANNOT
from featherweight.search.study import Study
from featherweight.search.worker import Others, save, work
from featherweight.texting import task_of_model
from featherweight.vetting import name_problem

BASE = "compress"
BEFORE = (".lock", "race.lock", "start", "points")  # in a search's folder before it has a plan
CLASSIFIERS = "image-classification"
END_SHARE, END_SECONDS = 0.12, 120.0  # of the time, at most, kept for the race, the test and the page at the end


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

    latency: at batch 1 in `runtime`, "5ms", or "recipe": no more than the recipe that is named takes. recipe: whose
    steps are searched over and whose first steps are done once; one that is named is also carried out as it is written.
    unlabeled: a folder of pictures on which answers are compared. images: of the longest training. points: stop after
    so many. The same call goes on in the same folder.
    Raises OptionError before any work, and CheckFailed, with everything saved, if nothing meets the limits.
    """
    asked = limits(latency=latency, size=size, macs=macs, max_drop=max_drop)
    _check(model, runtime, workers, name, points, images)
    if asked.as_recipe and recipe is None:
        raise OptionError("--latency", "recipe is the latency of the recipe that --recipe names; name one")
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
        named = recipe is not None
        ground, plan = _ground(request, folder, loaded, given, preprocess, storage, named, tell)
        smallest(ground, asked)
        study = study_of(plan, ground)
        clock = Clock(_spare(request.seconds), plan["rungs"], plan["per_image"], began)
        found = _searched(ground, study, request, clock, points, plan, tell)
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
    known = recipes.read(str(BASE if recipe is None else recipe), partial=True)
    if known.task != CLASSIFIERS:
        text = f"{shown(str(recipe))} is for {known.task}; `fit` searches for classifiers of pictures"
        raise OptionError("--recipe", text)
    fields: dict[str, Any] = {} if isinstance(data, Data) else {"data": _data(data, known)}
    if recipe is None:  # its steps may not be for this model; the search finds out what is
        fields["steps"] = ["load"]
    module = isinstance(model, nn.Module)
    if not module:
        fields["model"] = runs.trained_spec({"name": str(model), **spec})
    name = BASE if recipe is None else str(recipe)
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
    named: bool,
    tell: Tell,
) -> tuple[Ground, dict[str, Any]]:
    """The search as it was left in this folder, or prepared now."""
    known = read(folder)
    if known is None:
        if any(entry.name not in BEFORE for entry in folder.iterdir()):
            raise OptionError("--name", f"{shown(folder)} holds something that is no search; choose another name")
        ground, plan = prepare(request, folder, data, given, pre, tell)
        for text in plan["warnings"]:
            tell({"event": "warning", "text": text})
        written = _as_written(ground, tell) if named else None
        asked = request.limits
        if asked.as_recipe:
            if written is None:
                raise CheckFailed("the recipe as it is written came to nothing, so its latency is not known")
            asked = dataclasses.replace(asked, latency_ms=EQUAL * written["latency_ms"])
        plan = {**plan, "storage": storage, "written": written, "limits": asked.to_dict()}
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
    ground: Ground,
    study: Study,
    request: Request,
    clock: Clock,
    points: int | None,
    plan: Mapping[str, Any],
    tell: Tell,
) -> Search:
    """All points, and the end."""
    written, asked = plan.get("written"), Limits(**plan["limits"])
    study.take_up()
    if study.empty():
        if written:
            ground.forecast.learn([written])
        for point in beginnings(ground, asked):
            if not written or point != written["point"]:
                study.enqueue(point)
    others = Others.begin(ground.folder, request.workers - 1, clock.left)
    try:
        work(ground, study, asked, clock, tell, points=points, written=written)
        codes = others.wait()
    except BaseException:
        others.stop()
        raise
    if any(codes):
        tell({"event": "note", "text": f"{sum(map(bool, codes))} workers stopped early: see worker-*.log"})
    results = study.results()
    if not results and not written:
        reasons = [*study.failures(), *(item["reason"] for item in study.hopeless()), "the time was too short"]
        raise CheckFailed(f"no point was measured in {request.seconds:g} s: {reasons[0]}")
    return concluded(ground, asked, results, written, tell, as_recipe=request.limits.as_recipe)


def _spare(seconds: float) -> float:
    """The time without what the end takes."""
    return max(seconds - min(END_SECONDS, END_SHARE * seconds), 1.0)


def _as_written(ground: Ground, tell: Tell) -> Found | None:
    """The recipe with its own options and trainings, for comparison."""
    space = ground.space
    tell({"event": "note", "text": "the recipe is carried out as it is written, for comparison"})
    point = space.point(**space.own())
    known: Found = {}
    with contextlib.suppress(*CANNOT):  # its options may be such as the search does not have
        told = counted(ground, point)
        known = {"raw_ms": told["raw_ms"], "kind": told["kind"], "forecast_ms": told["latency_ms"]}
    try:
        found = carried_out(ground, written_plan(space, "as-written"), lambda event: None)
    except CANNOT as error:
        tell({"event": "note", "text": f"the recipe as it is written came to nothing: {error}"})
        return None
    known |= {"point": point, "key": WRITTEN}
    says = "the recipe as it is written"
    return {**found, **known, "says": says, "images": own_length(space.base, space.images)}
