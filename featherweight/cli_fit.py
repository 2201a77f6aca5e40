# SPDX-License-Identifier: Apache-2.0
"""The verb that searches for a compression within a budget: fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from featherweight import cli_options as options
from featherweight.console import columns, current, line
from featherweight.errors import CheckFailed, shown

if TYPE_CHECKING:
    from featherweight.search import Search


def fit(
    model: options.Model,
    *,
    data: options.Data,
    latency: Annotated[
        str | None, Parameter(help="5ms at batch 1 in the runtime; or recipe: no more than --recipe takes")
    ] = None,
    size: Annotated[str | None, Parameter(help="2MB of the file")] = None,
    macs: Annotated[str | None, Parameter(help="0.3G multiply-adds of one picture")] = None,
    max_drop: Annotated[str | None, Parameter(help="0.5 points of accuracy that may be lost")] = None,
    runtime: Annotated[
        str, Parameter(name=("--runtime", "--backend"), help="the runtime it is for: onnxruntime or openvino")
    ] = "onnxruntime",
    time: Annotated[str, Parameter(help="90s, 5m, 1h: how long to search; the same command goes on")] = "1h",
    workers: Annotated[int, Parameter(help="processes on this machine that search at once")] = 1,
    storage: Annotated[
        str | None, Parameter(help="a file or database address, to share with workers on other machines")
    ] = None,
    recipe: Annotated[str | None, Parameter(help="whose steps are searched over, and which is compared with")] = None,
    unlabeled: Annotated[
        str | None, Parameter(name=("--unlabeled", "--unlabelled"), help="a folder of pictures to compare answers on")
    ] = None,
    images: Annotated[int | None, Parameter(help="training pictures of the best; by the time unless given")] = None,
    points: Annotated[int | None, Parameter(help="stop after so many trainings")] = None,
    weights: options.WeightsFile = None,
    reset_head: options.ResetHead = False,
    arch: options.Arch = None,
    max_bad: options.Skipped = None,
    running: options.Running = options.RUNNING,
) -> int:
    """Search for the best model within a latency, a size, multiply-adds or a loss."""
    from featherweight.verbs.training import model_spec

    screen = current()
    spec = model_spec(model, arch=arch, weights=weights, reset_head=reset_head)
    called = spec.pop("name")
    from featherweight.search import fit as search

    asked: dict[str, Any] = {"latency": latency, "size": size, "macs": macs, "max_drop": max_drop}
    project = running.project or "runs"
    name = running.name or name_of(called, data, asked)
    asked |= {"runtime": runtime, "time": time, "workers": workers, "storage": storage, "recipe": recipe}
    asked |= {"unlabeled": unlabeled, "images": images, "points": points, "project": project, "name": name}
    asked |= {"seed": running.seed or 0, "overrides": overrides(running, max_bad), "progress": told}
    folder = Path(project) / name
    try:
        found = search(called, data, **asked, **spec)
    except KeyboardInterrupt:
        screen.warn("the same command goes on where it stopped")
        raise
    except CheckFailed:
        if (folder / "report.html").is_file():
            screen.say(line("saved", f"{shown(folder)}/   report: {shown(folder / 'report.html')}"))
        raise
    _shown(found)
    return 0


def overrides(running: options.Running, max_bad: float | None) -> list[str]:
    """Fields of the recipe that were given; the seed is handed over by itself."""
    return [text for text in running.overrides(**{"data.max_bad": max_bad}) if not text.startswith("seed=")]


def name_of(model: str, data: str, asked: Mapping[str, str | None]) -> str:
    """A name by what is asked for, so that the same command finds its search again."""
    limits = [f"{key.replace('_', '-')}-{value}" for key, value in asked.items() if value is not None]
    told = "-".join(["fit", Path(model).name, Path(data).name, *limits])
    return re.sub(r"[^A-Za-z0-9_.]+", "-", told).strip("-.")[:80] or "fit"


def told(event: Mapping[str, Any]) -> None:
    """What a search says while it goes on: a line for each point."""
    screen = current()
    kind = event.get("event")
    if kind == "point":
        screen.detail(line("", f"{event['says']}: {event['images']} pictures, {event['left_s']} s left"))
    elif kind == "measured":
        shares = f"{100 * event['agreement']:.1f} % agreement, {100 * event['top1']:.1f} % right"
        figures = f"{shares}, {event['latency_ms']:.3g} ms"
        screen.say(line(str(event["images"]), f"{event['says']}: {figures}"))
    elif kind == "warning":
        screen.warn(str(event["text"]))
    elif kind in ("note", "data"):
        screen.progress(event)


def _shown(found: Search) -> None:
    """The models worth having as a table, the pick, and where everything is."""
    from featherweight.search.page import cells

    screen = current()
    rows: list[tuple[str, ...]] = [
        ("", "model", "acc %", "test %", "Δ points", "ms", "size", "MMACs", "against the start")
    ]
    shown_first = [found.start, *([found.written] if found.written else [])]
    for item in (*shown_first, *found.front):
        told_of, mark = cells(item), "→" if item.get("key") == found.pick.get("key") and "key" in item else ""
        names = ("says", "top1", "test", "drop", "latency", "size", "macs", "against_start")
        rows.append((mark, *(told_of[name] for name in names)))
    screen.answer(columns(rows, left=2))
    screen.say("\n" + line("pick", f"{found.pick['says']}, within {found.limits}"))
    screen.say(line("saved", f"{shown(found.folder)}/   report: {shown(found.folder / 'report.html')}"))
    screen.emit({"run": str(found.folder), "pick": found.pick, "front": list(found.front), "start": found.start})
    place = found.pick.get("place", found.folder)
    screen.next(
        f"featherweight run {shown(found.pick['recipe'])}" if "recipe" in found.pick else "featherweight fit ...",
        f"featherweight predict {shown(place)}/model.onnx --source PICTURE",
        f"featherweight bench {shown(place)}/model.onnx",
    )


VERBS = (fit,)
