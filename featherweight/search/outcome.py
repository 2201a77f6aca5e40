# SPDX-License-Identifier: Apache-2.0
"""The end of a search: the models worth having raced once more side by side, tested, and saved with their recipes."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featherweight import deploy, files, measure
from featherweight import recipe as recipes
from featherweight.doors import yaml as strict_yaml
from featherweight.latency import verdict
from featherweight.runtime.session import open_session
from featherweight.search.front import last_of_each, non_dominated, ordered, pick
from featherweight.search.limits import Limits
from featherweight.search.points import AT_ONCE, Found, Ground, Tell, alone
from featherweight.search.space import LOOKS, Space
from featherweight.tasks.classification import scores

MOST = 10  # models that are raced
PROMISING = 3  # of them by what they promise, also where another is as accurate and cheaper
RACE_SECONDS = 10.0
OPENVINO = "openvino"
WRITTEN = "written"  # instead of a point's key


@dataclass(frozen=True)
class Search:
    """What `fit` found. `pick` is the model for the limits, or the nearest one where `reason` says why none fits."""

    folder: Path
    limits: Limits
    pick: Found
    front: tuple[Found, ...]  # the non-dominated models, the cheapest first, each with `folder`, `recipe` and numbers
    start: Found
    written: Found | None  # the recipe as it was written, where one was named
    points: tuple[Found, ...]  # all that were measured
    reason: str = ""

    @property
    def met(self) -> bool:
        return not self.reason


def written_plan(space: Space, name: str) -> recipes.Recipe:
    """The recipe with its own options and trainings."""
    steps = tuple(step for step in space.base.steps if step.name not in LOOKS)
    return dataclasses.replace(space.base, steps=steps, name=name, budget=None)


def candidates(results: Sequence[Mapping[str, Any]], limits: Limits, start: Found) -> list[Found]:
    """The models that are raced: those that no other beats, and the most promising; only those whose file is here."""
    here = [found for found in last_of_each(results) if Path(found["file"]).is_file()]
    front = non_dominated(here, lambda f: float(f["top1"]), lambda f: float(f[limits.cost]))
    promising = [dict(found) for found in ordered(here, limits, start)[:PROMISING]]
    best = [pick(here, limits, start)[0]] if here else []
    unique = {found["key"]: found for found in (*best, *promising, *sorted(front, key=lambda f: -f["top1"]))}
    return list(unique.values())[:MOST]


def concluded(
    ground: Ground,
    limits: Limits,
    results: Sequence[Found],
    written: Found | None,
    tell: Tell,
    *,
    as_recipe: bool = False,
) -> Search:
    """Race, test and save what is worth having; the pick is by the validation part, the test part is only told.

    The recipe as it is written is one of those that can be picked. as_recipe: the limit is to be no slower than it, as
    far as this race can tell.
    """
    ground.forecast.learn(results)
    raced = {"start": dict(ground.about), **({WRITTEN: written} if written else {})}
    raced |= {found["key"]: found for found in candidates(results, limits, dict(ground.about))}
    tell({"event": "note", "text": f"{len(raced)} models are raced side by side"})
    done = _raced(ground, raced)
    best, reason, limits = _picked(done, limits, as_recipe=as_recipe)
    found = [item for name, item in done.items() if name not in ("start", WRITTEN)]
    front = non_dominated(found, lambda f: float(f["top1"]), lambda f: float(f[limits.cost]))
    front += [item for item in found if item is best and item not in front]
    for item in (*(done[name] for name in ("start", WRITTEN) if name in done), *front):
        item |= {"test": _tested(ground, item), "drop": float(done["start"]["top1"]) - float(item["top1"])}
    saved = [_saved(ground, item, n) for n, item in enumerate(sorted(front, key=lambda f: f[limits.cost]), 1)]
    own = _saved(ground, done[WRITTEN], 0) if written else None
    best = next((item for item in (*saved, own) if item and item["key"] == best.get("key")), best)
    if Path(str(best.get("place", ""))).is_dir():
        files.point(ground.folder / "pick", best["place"])
    return Search(ground.folder, limits, best, tuple(saved), done["start"], own, tuple(results), reason)


def _picked(done: Mapping[str, Found], limits: Limits, *, as_recipe: bool) -> tuple[Found, str, Limits]:
    """The pick of those that were raced, why it does not fit, and the limits; `as_recipe`: with the latency it was."""
    known = [item for name, item in done.items() if name != "start"] or [done["start"]]
    if as_recipe:
        known = [item for item in known if item is done[WRITTEN] or item["against_written"]["interval"][1] >= 1]
        limits = dataclasses.replace(limits, latency_ms=max(float(item["latency_ms"]) for item in known))
    best, reason = pick(known, limits, done["start"])
    return best, reason, limits


def _raced(ground: Ground, found: Mapping[str, Found]) -> dict[str, Found]:
    """Everything in one race, in turns; ratios to the start and to the recipe as it was written."""
    ready = {}
    for name, item in found.items():
        known: dict[str, Any] = {"batch": 1, "backend": ground.runtime, "threads": ground.threads}
        ready[name] = measure.runnable(Path(item["file"]), **known)
    with alone(ground.folder):
        times = measure.race(ready, baseline="start", budget_s=RACE_SECONDS, repeats=200)
    done = {}
    for name, item in found.items():
        new: dict[str, Any] = {
            "latency_ms": times[name].median_ms,
            "p10_ms": times[name].p10_ms,
            "p90_ms": times[name].p90_ms,
        }
        new["conditions"] = dataclasses.asdict(times[name].conditions)
        for other in ("start", WRITTEN):
            if other in found and name != other:
                ratio, interval = times.ratio(name, over=other)
                new[f"against_{other}"] = {"ratio": ratio, "interval": list(interval), "says": verdict(ratio, interval)}
        done[name] = {**item, **new}
    return done


def _tested(ground: Ground, found: Found) -> dict[str, Any] | None:
    """Accuracy on the test part, which nothing in the search has looked at; None where the data has none."""
    if ground.data.test is None:
        return None
    session = open_session(Path(found["file"]), backend=ground.runtime, threads=ground.threads)
    height, width = session.inputs[0].shape[2:]
    size = (int(height), int(width)) if height and width else ground.work.preprocess.size
    work = dataclasses.replace(ground.work, preprocess=dataclasses.replace(ground.work.preprocess, size=size))
    return scores(*deploy.answers(session, work.batches("test", size=AT_ONCE).epoch(0)))


def _saved(ground: Ground, found: Found, number: int) -> Found:
    """The model in `front/NN-.../`: folder, file, numbers, and the recipe that makes it again."""
    told = re.sub(r"[^a-z0-9.]+", "-", str(found["says"]).lower()).strip("-")[:60]
    place = ground.folder / "front" / f"{number:02d}-{told}"
    place.mkdir(parents=True, exist_ok=True)
    formats = ["onnx", *([OPENVINO] if ground.runtime == OPENVINO else [])]
    name = f"{ground.folder.name}-{number:02d}"
    own = found["key"] == WRITTEN
    plan = written_plan(ground.space, name) if own else ground.space.recipe(found["point"], int(found["images"]), name)
    raw = recipes.plain(dataclasses.replace(plan, output=str(ground.folder.parent)))
    raw["steps"].append({"export": {"formats": formats}})
    files.publish(place / "recipe.yaml", strict_yaml.write(raw).encode())
    shutil.copytree(found["model"], place / "model", dirs_exist_ok=True)
    files.publish(place / "model.onnx", Path(found["file"]).read_bytes())
    done = {**found, "place": str(place), "recipe": str(place / "recipe.yaml")}
    files.publish_json(place / "numbers.json", {k: v for k, v in done.items() if k not in ("file", "model", "folder")})
    return done
