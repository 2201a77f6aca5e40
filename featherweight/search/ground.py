# SPDX-License-Identifier: Apache-2.0
"""What a search begins with: the start measured, the latency model calibrated, the knobs found; once, and kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featherweight import data as sets
from featherweight import deploy, pictures, runs
from featherweight import recipe as recipes
from featherweight.data import Data
from featherweight.doors import json as strict_json
from featherweight.errors import OptionError, shown
from featherweight.explain import Outline
from featherweight.floors import floor
from featherweight.keys import digest, weights_of
from featherweight.options import describe
from featherweight.recipe import Recipe
from featherweight.runtime.preprocess import Preprocess
from featherweight.runtime.session import available_threads
from featherweight.search.domain import other_domain
from featherweight.search.forecast import Forecast, Rates, calibrated
from featherweight.search.knobs import space_of
from featherweight.search.lengths import longest, rungs_of
from featherweight.search.limits import COSTS, Limits, words
from featherweight.search.points import Ground, Tell, numbers, prepared, probabilities
from featherweight.search.space import Knob, Space, checked, split
from featherweight.search.study import Study
from featherweight.tasks.classification import scores
from featherweight.work import Work

START = "start"
IMAGES = 256  # on which answers are compared with the start's
TIMED_STEPS = 3
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class Request:
    """What is searched, as a user said it."""

    base: Recipe
    limits: Limits
    runtime: str
    seconds: float
    workers: int = 1
    images: int | None = None  # of the longest training
    unlabeled: str | None = None
    asked: int = IMAGES
    seed: int = 0

    @property
    def threads(self) -> int:
        """Of each worker."""
        return self.base.threads or max(1, available_threads() // self.workers)


def check_floor(limits: Limits, runtime: str, threads: int, size: tuple[int, int]) -> None:
    """OptionError for a latency that an empty graph does not reach on this machine."""
    if limits.latency_ms is None or limits.as_recipe:
        return
    bare = floor(runtime, threads=threads, shape=(1, 3, *size)).p10_ms
    if limits.latency_ms < bare:
        text = f"{words('latency_ms', limits.latency_ms)} is less than an empty graph takes here in {runtime}"
        raise OptionError("--latency", f"{text}, {words('latency_ms', bare)}; no model can keep to it")


def prepare(
    request: Request,
    folder: Path,
    data: Data | None,
    given: Mapping[str, nn.Module],
    pre: Preprocess | None,
    tell: Tell,
) -> tuple[Ground, dict[str, Any]]:
    """Carry out the recipe's prefix, measure it, and decide how points are trained: the ground, and plan.json."""
    base = dataclasses.replace(request.base, threads=request.threads, budget=None, output=str(folder), name=START)
    work, loaded = _began(base, folder, data, given, pre, tell)
    check_floor(request.limits, request.runtime, request.threads, work.preprocess.size)
    ground = _bare(work, loaded, request, folder, given)
    outline, batches = ground.outline, prepared(ground, work)
    tell({"event": "note", "text": f"what an image takes in {request.runtime} is profiled, operator by operator"})
    calibration = [{**batch} for batch in batches]
    forecast = calibrated(work.stages[-1].model, calibration, work.task, runtime=request.runtime,
                          threads=request.threads)  # fmt: skip
    per_image = _seconds_per_image(work)
    length = {"seconds": request.seconds, "per_image": per_image}
    full = request.images or longest(base, len(loaded.train), **length)
    small = request.limits.size_bytes is not None
    known: dict[str, Any] = {"preprocess": work.preprocess, "images": len(loaded.train), "full": full, "small": small}
    space = space_of(base, outline, **known)
    ground = dataclasses.replace(ground, space=space, forecast=forecast)
    ground = _with_start(ground)
    plan = {
        "schema": 1,
        "folder": str(folder),
        "base": recipes.plain(base),
        "limits": request.limits.to_dict(),
        "runtime": request.runtime,
        "threads": request.threads,
        "seed": request.seed,
        "unlabeled": request.unlabeled,
        "asked": request.asked,
        "rungs": rungs_of(full, base.train.batch_size, per_image),
        "per_image": per_image,
        "rates": {dtype: asdict(rates) for dtype, rates in forecast.rates.items()},
        "knobs": [asdict(knob) for knob in space.knobs],
        "students": space.students,
        "start": dict(ground.about),
        "warnings": warnings_of(ground),
        "about": about(request, work, given),
    }
    return ground, plan


def restored(
    plan: Mapping[str, Any], data: Data | None, given: Mapping[str, nn.Module], pre: Preprocess | None, tell: Tell
) -> Ground:
    """The ground as `prepare` left it."""
    base = checked(plan["base"], "plan.json")
    folder = Path(plan["folder"])
    work, loaded = _began(base, folder, data, given, pre, tell)
    request = Request(base, Limits(**plan["limits"]), plan["runtime"], 0.0, unlabeled=plan["unlabeled"],
                      asked=plan["asked"], seed=plan["seed"])  # fmt: skip
    ground = _bare(work, loaded, request, folder, given)
    knobs = tuple(Knob(**{**knob, "choices": tuple(knob["choices"])}) for knob in plan["knobs"])
    space = dataclasses.replace(ground.space, knobs=knobs, students=plan["students"])
    forecast = Forecast({dtype: Rates(**rates) for dtype, rates in plan["rates"].items()})
    ground = dataclasses.replace(ground, space=space, forecast=forecast, about=plan["start"])
    return dataclasses.replace(ground, answers=_answers(ground))


def opened(plan: Mapping[str, Any], number: int) -> tuple[Ground, Study, Limits]:
    """The ground and the study of a further worker of a search that is prepared."""
    ground = restored(plan, None, {}, None, lambda event: None)
    limits = Limits(**plan["limits"])
    return ground, study_of(plan, ground, number), limits


def study_of(plan: Mapping[str, Any], ground: Ground, number: int = 0) -> Study:
    """The trials of the search, for this worker."""
    where = plan.get("storage") or str(Path(plan["folder"]) / "trials.journal")
    known: dict[str, Any] = {"rungs": len(plan["rungs"]), "seed": plan["seed"] + number, "about": plan["about"]}
    return Study(where, ground.space, Limits(**plan["limits"]), **known)


def about(request: Request, work: Work, given: Mapping[str, nn.Module]) -> str:
    """A digest of what decides the results: equal searches may share a storage."""
    plain = recipes.plain(dataclasses.replace(request.base, name=START, output="", threads=None))
    specs = [spec for spec in (request.base.model, request.base.teacher) if spec]
    facts = {
        "base": plain,
        "weights": [digest(path) for spec in specs for path in weights_of(spec)],
        "given": {name: describe(module) for name, module in given.items()},
        "data": work.data.fingerprint,
        "limits": request.limits.to_dict(),
        "runtime": request.runtime,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _began(
    base: Recipe, folder: Path, data: Data | None, given: Mapping[str, nn.Module], pre: Preprocess | None, tell: Tell
) -> tuple[Work, Data]:
    """The recipe's prefix, carried out in `start/`, or found there."""
    spec = base.data or recipes.DataSpec("")
    loaded = data or sets.load(spec.source, max_bad=spec.max_bad, seed=spec.seed, **spec.options)
    prefix, _ = split(base)
    plan = dataclasses.replace(base, steps=prefix)
    known: dict[str, Any] = {"source": loaded, "given": given, "progress": tell, "preprocess": pre}
    return runs.run(plan, project=folder, name=START, **known), loaded


def _bare(work: Work, loaded: Data, request: Request, folder: Path, given: Mapping[str, nn.Module]) -> Ground:
    """A ground of which nothing was measured."""
    prefix, options = split(request.base)
    outline = Outline(work.stages[-1].model.eval(), (3, *work.preprocess.size))
    space = Space(dataclasses.replace(request.base, threads=request.threads), prefix, options, (), {},
                  len(loaded.train))  # fmt: skip
    others = unlabeled_pictures(request.unlabeled, request.asked) if request.unlabeled else ()
    nothing = Forecast({"float32": Rates(0.0, {})})
    return Ground(folder, loaded, work, space, outline, nothing, request.runtime, request.threads, request.asked,
                  others, given)  # fmt: skip


def _with_start(ground: Ground) -> Ground:
    """With the start's numbers and answers; accuracy is lost against the first stage, as `compress` counts it."""
    stage, first = ground.stage, ground.work.stages[0]
    path = deploy.exported(ground.work, stage)
    found = numbers(ground, ground.work, stage, path)
    if first is not stage:
        found["top1_of_last"] = found["top1"]
        session = deploy.open_session(deploy.exported(ground.work, first), backend=ground.runtime)
        batches = ground.work.at(first).batches("val", size=deploy.EVALUATED_AT_ONCE).epoch(0)
        found["top1"] = float(scores(*deploy.answers(session, batches))["top1"])
    found |= {"says": "the start", "title": stage.title, "agreement": 1.0, "model": str(stage.place / "model")}
    ground = dataclasses.replace(ground, about=found)
    return dataclasses.replace(ground, answers=_answers(ground))


def _answers(ground: Ground) -> np.ndarray:
    batches = prepared(ground, ground.work)
    return probabilities(Path(ground.about["file"]), batches, ground.runtime, ground.threads)


def warnings_of(ground: Ground) -> list[str]:
    """Calibration pictures, and those that answers are compared on, that are unlike those of the validation part."""
    stage, known = ground.stage, {"limit": ground.asked, "size": 50}
    val: Sequence[Mapping[str, Tensor]] = list(ground.work.at(stage).batches("val", **known).epoch(0))
    train = list(ground.work.at(stage).batches("train", augment=False, **known).epoch(0))
    asked: dict[str, Sequence[Mapping[str, Tensor]]] = {
        "the training pictures, on which ranges for 8 bits are found,": train
    }
    if ground.pictures:
        asked[f"the {len(ground.pictures)} pictures without labels"] = prepared(ground, ground.work)
    path, found = Path(ground.about["file"]), []
    sure = {id(b): float(probabilities(path, b, ground.runtime, ground.threads).max(1).mean())
            for b in (val, *asked.values())}  # fmt: skip
    for name, batches in asked.items():
        if told := other_domain(val, batches, sure=(sure[id(val)], sure[id(batches)])):
            found.append(f"{name} look like another domain than the validation part: {told}")
    return found


def unlabeled_pictures(where: str, most: int) -> tuple[np.ndarray, ...]:
    """Up to `most` pictures of a folder, evenly spaced by name."""
    paths = sorted(path for path in Path(where).rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not paths:
        raise OptionError("--unlabeled", f"{shown(where)} holds no pictures ({' '.join(EXTENSIONS)})")
    chosen = np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int)
    return tuple(pictures.load(paths[i]) for i in chosen)


def smallest(ground: Ground, limits: Limits) -> None:
    """OptionError for a size or multiply-adds that not even the smallest point of the space has."""
    last = {knob.name: knob.choices[-1] for knob in ground.space.knobs if knob.step != "student"}
    try:
        outline = ground.space.outline(ground.outline, ground.space.point(**last))
    except (LookupError, ValueError, TypeError, RuntimeError):
        return  # the extremes do not go together; the search finds out what does
    least = {"size_bytes": outline.size_bytes(), "macs": outline.macs()}
    for cost in COSTS[1:]:
        limit = getattr(limits, cost)
        if limit is not None and least[cost] > limit:
            option = {"size_bytes": "--size", "macs": "--macs"}[cost]
            text = f"{words(cost, limit)} is out of reach: the smallest that this search can make of the model has"
            raise OptionError(option, f"{text} {words(cost, least[cost])}")


def _seconds_per_image(work: Work) -> float:
    """Of training, with a teacher of the same size: timed on a few steps of a copy."""
    import copy

    stage = work.stages[-1]
    model, teacher = copy.deepcopy(stage.model).train(), stage.model.eval()
    batches = work.at(stage).batches("train", limit=TIMED_STEPS * work.recipe.train.batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    seen, began = 0, 0.0
    for number, batch in enumerate(batches.epoch(0)):
        if number == 1:
            seen, began = 0, time.monotonic()  # the first step is slower than those after it
        elif number == 0:
            began = time.monotonic()
        with torch.no_grad():
            work.task.forward(teacher, batch)
        optimizer.zero_grad()
        sum(work.task.loss(work.task.forward(model, batch), batch).values()).backward()
        optimizer.step()
        seen += len(batch["label"])
    return max((time.monotonic() - began) / max(seen, 1), 1e-6)


def read(folder: Path) -> dict[str, Any] | None:
    """plan.json of a search that was prepared here, or None."""
    path = folder / "plan.json"
    return strict_json.read(path) if path.is_file() else None
