# SPDX-License-Identifier: Apache-2.0
"""From the results of a run to the page a person looks at: stages, pictures, curves, what was kept of each image."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from . import measure, page, recipe, story_detection, story_text, tables, texting
from . import report as reports
from .data.digits import CREDITS
from .deploy import EAGER, RUNTIMES, example
from .detecting import TASK
from .doors import json as strict_json
from .doors import yaml as strict_yaml
from .errors import OptionError
from .judge import outcome
from .measure import Measurement
from .methods.dynamicvit import all_sparse, recording
from .report import Export, Kept, Report, Sample, TokenView
from .work import Work

VIEWED_STAGES = 3
FIGURES = ("top1", "AP", "AP50", "f1", "exact", "interval", "n", "of")  # of an accuracy
BUSY = 1.5  # processes more than cores that want to run; the race itself keeps the cores at work


def write_report(work: Work, *, samples: int) -> Work:
    """report.html, .json, .md and the plots in the run's folder; the table on the screen."""
    found = work.results.get("measure")
    if found is None:
        raise OptionError("report", "there is nothing to report yet: put a step `measure` before it")
    rows, classes = found["rows"], work.data.classes
    last = max(i for i, stage in enumerate(work.stages) if stage.kept)
    reads = work.recipe.task in texting.TASKS
    answers = story_text.shown if reads else story_detection.shown if work.recipe.task == TASK else _answers
    final, reached = work.stages[last], outcome(work) if work.recipe.budget else None
    page_of = Report(
        title=f"{work.recipe.name}: {work.stages[0].title} to {final.title}",
        command=f"featherweight run {work.folder.parent.name}/{work.folder.name}/config.yaml",
        data=_data(work, found["part"]),
        model=story_text.model_line(work, rows[0]) if reads else _model(work, rows[0]),
        stages=_stages(work, rows),
        curves=_curves(work),
        classes=classes,
        **answers(work, found, last, samples),
        layers=tuple(dataclasses.asdict(layer) for layer in measure.layers(final.model, example(work, final))),
        exports=tuple(_export(item) for item in work.results.get("exports", ())),
        environment=strict_json.read(work.folder / "env.json"),
        recipe=strict_yaml.write(recipe.plain(work.recipe)),
        fingerprint=work.data.fingerprint,
        skipped=tuple({"path": s.path, "reason": s.reason} for s in work.data.skipped),
        warnings=(*_warnings(found), *work.left_out),
        notes=story_text.notes(work) if reads else _notes(found),
        budget=reached.asked if reached else "",
        budget_met=reached.met if reached else None,
        license=CREDITS if work.data.format in ("digits", "digits-det") else "",
        seed=work.recipe.seed,
        task=work.recipe.task,
    )
    reports.write(page_of, work.folder)
    headline = tables.sentence(tables.headline(page_of.stages))
    work.tell({"event": "table", "text": tables.table(page_of.stages), "headline": headline})
    return dataclasses.replace(work, results={**work.results, "report": True, "card": page.model_card(page_of)})


def _answers(work: Work, found: Mapping[str, Any], last: int, samples: int) -> dict[str, Any]:
    """What a classifier answered: mistakes, pictures, and the tokens it looked at."""
    rows, labels, classes = found["rows"], np.array(found["labels"]), len(work.data.classes)
    base, small = (np.array(rows[i]["predictions"][RUNTIMES[0]]) for i in (0, last))
    return {
        "confusion_base": story_text.confusion(base, labels, classes),
        "confusion_small": story_text.confusion(small, labels, classes),
        "samples": _samples(work, found, (base, small, labels), rows[last]["confidence"], samples),
        "tokens": _views(work, found["part"], samples),
    }


def _stages(work: Work, rows: list[dict[str, Any]]) -> tuple[reports.Stage, ...]:
    """The start in torch, then each stage's file in ONNX Runtime; the last in OpenVINO too, the faster one last."""
    found = [reports.Stage(f"{rows[0]['title']}, torch", _measurement(rows[0], EAGER), runtime=EAGER)]
    for stage, row in zip(work.stages, rows, strict=True):
        name = f"{row['title']}, exported" if row is rows[0] else f"+ {row['title']}"
        found.append(reports.Stage(name, _measurement(row, RUNTIMES[0]), stage.kept, stage.reason, RUNTIMES[0]))
    last = max(i for i, stage in enumerate(work.stages) if stage.kept)
    name = f"{found[last + 1].name} in OpenVINO"
    other = reports.Stage(name, _measurement(rows[last], RUNTIMES[1]), runtime=RUNTIMES[1])
    times = [stage.latency() for stage in (found[last + 1], other)]
    slower = times[0] is not None and times[1] is not None and times[1].median_ms > times[0].median_ms
    found.insert(last + 1 if slower else last + 2, other)
    return tuple(found)


def _measurement(row: Mapping[str, Any], runtime: str) -> Measurement:
    latencies = row["latencies"]
    return Measurement.from_dict(
        {
            "name": row["title"],
            "params": row["params"],
            "macs": row["macs"],
            "size_bytes": row["sizes"][EAGER if runtime == EAGER else "file"],
            "accuracy": {key: value for key, value in row["accuracy"][runtime].items() if key in FIGURES},
            "latencies": latencies,
            "conditions": next(t["conditions"] for t in latencies if t["conditions"]["runtime"] == runtime),
            "schema": measure.SCHEMA,
        }
    )


def _data(work: Work, part: str) -> str:
    counts = [
        f"{len(images)} {name}" for name in ("train", "val", "test") if (images := getattr(work.data, name)) is not None
    ]
    what = {TASK: "AP", texting.ASK: "F1"}.get(work.recipe.task, "accuracy")
    if work.recipe.task == texting.ASK:
        return f"{work.data.name}: questions, {' / '.join(counts)}; {what} on {part}"
    return f"{work.data.name}: {len(work.data.classes)} classes, {' / '.join(counts)}; {what} on {part}"


def _model(work: Work, row: Mapping[str, Any]) -> str:
    name = work.recipe.model.name if work.recipe.model else ""
    height, width = work.at(work.stages[0]).preprocess.size
    return (
        f"{name}: {row['params'] / 1e6:.2f} M parameters, {row['macs'] / 1e6:.0f} M multiply-adds at {width}x{height}"
    )


def _notes(found: Mapping[str, Any]) -> tuple[str, ...]:
    rows = found["rows"]
    dtypes = {name: sorted({row["dtype"][name] for row in rows if name in row["dtype"]}) for name in RUNTIMES}
    detects = ("AP is COCO's, of pictures letterboxed to the input.",) if "classes" in rows[0] else ()
    return (
        *detects,
        "A row is the exported file in ONNX Runtime unless it names another; 'vs base' is against the first row.",
        "Types in the exported files: "
        + "; ".join(f"{runtime}: {', '.join(kinds)}" for runtime, kinds in dtypes.items())
        + ".",
        "MACs count the multiply-adds of linear layers, convolutions and matrix products of one image.",
    )


def _warnings(found: Mapping[str, Any]) -> tuple[str, ...]:
    """What makes the numbers less certain than they look."""
    raced = [latency["conditions"] for row in found["rows"] for latency in row["latencies"]]
    load, cores = max(c["load"] for c in raced), raced[0]["cores"]
    if load <= cores + BUSY:
        return ()
    return (
        f"The machine was busy while it was timed (load {load:.0f} on {cores} cores): a quiet one is faster and surer.",
    )


def _export(item: Mapping[str, Any]) -> Export:
    known = {key: item[key] for key in ("file", "format", "size_bytes", "agreement", "sqnr_db", "max_abs")}
    return Export(**known, note=f"opset {item['opset']}, {item['dtype']}, {item['images']} images")


def _curves(work: Work) -> tuple[dict[str, Any], ...]:
    path = work.folder / "metrics.csv"
    if not path.is_file():
        return ()
    with path.open(newline="", encoding="utf-8") as stream:
        return tuple(
            {key: _number(value) for key, value in row.items() if value != ""} for row in csv.DictReader(stream)
        )


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _samples(
    work: Work, found: Mapping[str, Any], said: tuple[np.ndarray, ...], score: list[float], count: int
) -> tuple[Sample, ...]:
    """Newly wrong pictures first, then newly right ones, then any."""
    base, small, labels = said
    newly_wrong, newly_right = (base == labels) & (small != labels), (base != labels) & (small == labels)
    order = np.argsort(-(2 * newly_wrong + newly_right).astype(int), kind="stable")[: 2 * count]
    images, names = getattr(work.data, found["part"]), work.data.classes
    return tuple(Sample(images[int(i)][0], names[labels[i]], names[base[i]], names[small[i]], score[i]) for i in order)


def _views(work: Work, part: str, count: int) -> tuple[TokenView, ...]:
    """What the last model that drops tokens kept of the first images of the part."""
    dropping = [stage for stage in work.stages if stage.kept and all_sparse(stage.model)]
    if not dropping or count == 0:
        return ()
    model = dropping[-1].model
    batch = next(iter(work.at(dropping[-1]).batches(part, size=count, limit=count).epoch(0)))
    with recording(model) as sparse, torch.inference_mode():
        logits = work.task.forward(model, batch)
        places = [stage.clone() for stage in sparse.aside.places]
        shares, total = [place for place, _ in sparse.keep], int(sparse.aside.count)
    images, names = getattr(work.data, part), work.data.classes
    views = []
    for i, index in enumerate(batch["index"].tolist()):
        kept = []
        for before, chosen in list(zip(shares, places, strict=True))[-VIEWED_STAGES:]:
            mask = torch.zeros(total, dtype=torch.bool)
            mask[chosen[i]] = True
            kept.append(Kept(f"from block {before}", tuple(mask.tolist()), names[int(logits[i].argmax())]))
        views.append(TokenView(images[index][0], names[int(batch["label"][i])], tuple(kept)))
    return tuple(views)
