# SPDX-License-Identifier: Apache-2.0
"""The report of a search: one page with an interactive plot that opens from disk, and the same as JSON.

The page asks for nothing; its one script stands in it and is named by its digest, so no other can run there.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight import files, measure, tables
from featherweight import page as pages
from featherweight.errors import clean, missing_extra
from featherweight.search.front import last_of_each
from featherweight.search.outcome import WRITTEN

if TYPE_CHECKING:
    from featherweight.search.outcome import Search
    from featherweight.search.points import Found, Ground
    from featherweight.search.study import Study

BUSY = 1.5  # processes more than cores that want to run; the race itself keeps the cores at work
LINES = 3  # of hopeless points that are told


def check() -> None:
    """MissingExtra for what a search needs, before any work."""
    for package, extra in (("optuna", "search"), ("onnx", "onnx")):
        if find_spec(package) is None:
            raise missing_extra("`featherweight fit`", package, extra)


def write(found: Search, ground: Ground, study: Study, plan: Mapping[str, Any], seconds: float) -> Path:
    """report.html and search.json in the search's folder; the path of the page."""
    hopeless, failures = study.hopeless(), study.failures()
    story = _story(found, ground, plan, hopeless, failures, seconds)
    points = _points(found)
    values = _values(found, ground, plan, story)
    script = (Path(pages.__file__).parent / "templates" / "fit.js").read_text(encoding="utf-8")
    data = {"points": points, "limits": found.limits.to_dict(), "cost": found.limits.cost}
    text = pages.template("fit.html.j2", **values, **_trusted(script, data))
    files.publish(found.folder / "report.html", text.encode())
    files.publish_json(found.folder / "search.json", _plain(found, plan, story, hopeless))
    return found.folder / "report.html"


def _trusted(script: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Our own script with its digest, and data that cannot end the element it stands in."""
    from markupsafe import Markup

    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    told = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    return {"script": Markup(script), "hash": Markup(f"sha256-{digest}"), "json": Markup(told)}


def _plain(found: Search, plan: Mapping[str, Any], story: Sequence[str], hopeless: Sequence[Found]) -> dict[str, Any]:
    return {
        "schema": 1,
        "limits": found.limits.to_dict(),
        "met": found.met,
        "reason": found.reason,
        "pick": found.pick,
        "start": found.start,
        "written": found.written,
        "front": list(found.front),
        "points": list(found.points),
        "hopeless": list(hopeless),
        "knobs": plan["knobs"],
        "rungs": plan["rungs"],
        "rates": plan["rates"],
        "warnings": plan["warnings"],
        "story": list(story),
        "environment": measure.machine(),
    }


def _kind(found: Found, search: Search) -> str:
    keys = [item["key"] for item in search.front]
    if found.get("key") == search.pick.get("key") and "key" in found:
        return "pick"
    return "front" if found.get("key") in keys else "tried"


def _kind_of_written(search: Search) -> str:
    return "pick" if search.pick.get("key") == WRITTEN else "written"


def _points(search: Search) -> list[dict[str, Any]]:
    """What the plot draws."""
    raced = {item["key"]: item for item in search.front}
    shown = [
        ("start", "start", search.start),
        *([("written", _kind_of_written(search), search.written)] if search.written else []),
    ]
    for found in last_of_each(search.points):
        item = raced.get(found["key"], found)
        shown.append((item["key"], _kind(item, search), item))
    return [
        {
            "key": key,
            "kind": kind,
            "says": clean(item["says"], limit=120),
            **{name: item.get(name) for name in ("latency_ms", "size_bytes", "macs", "top1", "agreement")},
            "test": (item.get("test") or {}).get("top1"),
            "lines": _lines(item),
        }
        for key, kind, item in shown
    ]


def _lines(item: Found) -> list[str]:
    """What the plot tells of a point beside its numbers."""
    found = [f"trained on {item['images']} pictures"] if item.get("images") else []
    for other, words in (("start", "the start"), ("written", "the recipe as it is written")):
        if told := item.get(f"against_{other}"):
            low, high = told["interval"]
            found.append(f"against {words}: {told['says']} ({low:.2f} to {high:.2f})")
    return [*found, *([f"featherweight run {item['recipe']}"] if item.get("recipe") else [])]


def _values(found: Search, ground: Ground, plan: Mapping[str, Any], story: Sequence[str]) -> dict[str, Any]:
    """What the template shows."""
    model = ground.space.base.model
    data = ground.data
    counts = " / ".join(f"{len(part)} {name}" for name in ("train", "val", "test") if (part := getattr(data, name)))
    best, start = cells(found.pick), cells(found.start)
    tested = found.pick.get("test")
    shown = [("start", found.start), *([(_kind_of_written(found), found.written)] if found.written else [])]
    shown += [(_kind(item, found), item) for item in found.front]
    return {
        "title": f"{model.name if model else 'a model'}: {found.limits}",
        "model": f"{model.name if model else 'a model'}: {start['macs']} M multiply-adds, {start['size']}",
        "data": f"{data.name}: {len(data.classes)} classes, {counts}",
        "met": found.met,
        "reason": found.reason,
        "limits": str(found.limits),
        "pick": {
            **best,
            "accuracy": best["test"] if tested else best["top1"],
            "part": "of the test part" if tested else "of the validation part",
            "change": f"{best['drop']} points on the validation part",
            "faster": best["against_start"] or "the start",
        },
        "start": start,
        "written": found.written is not None,
        "tested": ground.data.test is not None,
        "runtime": ground.runtime,
        "threads": ground.threads,
        "env": {"cpu": "", "cores": "", "flags": (), **measure.machine()},
        "seed": plan["seed"],
        "command": "\n".join(_commands(found)),
        "warnings": [*plan["warnings"], *_busy(found)],
        "rows": [{**cells(item), "kind": kind, "key": item.get("key", kind)} for kind, item in shown],
        "story": story,
        "points": len(found.points),
        "every": [cells(item) for item in found.points],
    }


def _busy(found: Search) -> list[str]:
    """What is said of a race on a machine that had more to do."""
    conditions = found.start.get("conditions") or {}
    load, cores = float(conditions.get("load", 0.0)), int(conditions.get("cores", 1))
    if load <= cores + BUSY:
        return []
    text = (
        f"The machine was busy while it was timed (load {load:.0f} on {cores} cores): a quiet one is faster and surer."
    )
    return [text]


def _commands(found: Search) -> list[str]:
    place = found.pick.get("place")
    if not place:
        return ["featherweight fit ..."]
    return [f"featherweight run {found.pick['recipe']}", f"featherweight predict {place}/model.onnx --source PICTURE"]


def cells(item: Found) -> dict[str, str]:
    """A model's numbers as text."""

    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.1f}"

    told = {other: (item.get(f"against_{other}") or {}).get("says", "") for other in ("start", "written")}
    drop = item.get("drop")
    return {
        "says": clean(item["says"], limit=120),
        "top1": percent(item.get("top1")),
        "test": percent((item.get("test") or {}).get("top1")),
        "agreement": percent(item.get("agreement")),
        "drop": "" if drop is None else tables.points(-100 * drop),
        "latency": f"{item['latency_ms']:.3g}",
        "forecast": f"{item['forecast_ms']:.3g}" if item.get("forecast_ms") else "",
        "size": tables.size(item["size_bytes"]),
        "macs": tables.millions(item["macs"]),
        "images": str(item.get("images") or ""),
        "seconds": f"{item['seconds']:.0f}" if item.get("seconds") else "",
        "against_start": told["start"],
        "against_written": told["written"],
        "recipe": str(item.get("recipe", "")),
    }


def _story(
    found: Search,
    ground: Ground,
    plan: Mapping[str, Any],
    hopeless: Sequence[Found],
    failures: Sequence[str],
    seconds: float,
) -> list[str]:
    """How it was searched, in sentences."""
    knobs = "; ".join(f"{knob['name']} {_span(knob['choices'])}" for knob in plan["knobs"])
    rungs = ", ".join(str(n) for n in plan["rungs"])
    trainings = f"{len(found.points)} trainings of {len(last_of_each(found.points))} points in {seconds:g} s at most"
    judged = (
        "A point is judged by its accuracy on the validation part, by the mean probability it gives to the right class "
        f"there, and by how far its file agrees with the start's on {ground.asked} pictures; and raced with it."
    )
    trained = sum(float(item["training_s"]) for item in found.points)
    beside = sum(float(item["seconds"]) for item in found.points) - trained
    told = [
        f"Varied: {knobs}.",
        f"{trainings}; a training sees {rungs} pictures, and the best third of each length goes on to the next.",
        "The last half of the time is for longer trainings of the best.",
        f"Training them took {trained:.0f} s; to export, ask and race them took {beside:.0f} s.",
        judged,
        f"{len(hopeless)} points were not trained because of what they would cost.",
        f"{ground.forecast.says()}.",
    ]
    told += [f"Not trained: {item['says']}: {item['reason']}." for item in hopeless[:LINES]]
    return told + [f"Came to nothing: {why}" for why in failures[:LINES]]


def _span(choices: Sequence[Any]) -> str:
    if all(isinstance(choice, (int, float)) for choice in choices):
        return f"{min(choices):g} to {max(choices):g}"
    return ", ".join(map(str, choices))
