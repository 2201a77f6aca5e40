# SPDX-License-Identifier: Apache-2.0
"""From a run's models to files and numbers: export with a parity check, accuracy of a file, the race of stages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from . import deploy_detection, deploy_text, measure, texting
from .detecting import TASK
from .errors import OptionError
from .export import onnx, openvino
from .export.check import Exported, describe
from .files import publish, publish_json
from .latency import Times
from .methods.dynamicvit import all_sparse
from .runtime.session import Session, open_session
from .surgery import edits_of
from .tasks.classification import scores
from .work import Stage, Work

EAGER, RUNTIMES = "torch eager", ("onnxruntime", "openvino")
CHECKED_IMAGES = 32  # on which a stage's file is compared with its model
EVALUATED_AT_ONCE = 50


def exported(work: Work, stage: Stage) -> Path:
    """The stage's .onnx file in the folder of its step, written and checked if it is not there yet."""
    path = stage.place / "model.onnx"
    if not path.is_file():
        write(work, stage, path, CHECKED_IMAGES)
    return path


def write(work: Work, stage: Stage, path: Path, images: int, *, form: str = "decoded") -> Exported:
    """Export a stage's model; it must answer as the model does on so many validation images, else CheckFailed."""
    if work.recipe.task == TASK:
        return deploy_detection.write(work, stage, path, images, form=form)
    if work.recipe.task in texting.TASKS:
        return deploy_text.write(work, stage, path, images)
    work = work.at(stage)
    batches = list(work.batches("val", limit=images, size=EVALUATED_AT_ONCE).epoch(0))
    about = describe(
        task=work.recipe.task,
        classes=work.data.classes,
        preprocess=work.preprocess,
        compression=[{"kind": kind} for kind in dict.fromkeys(edit.kind for edit in edits_of(stage.model))],
        license="Apache-2.0",
    )
    example, known = batches[0]["image"][:2], {"task": work.task, "metadata": about, "batches": batches}
    if all_sparse(stage.model):
        known |= {"extra": ("kept_tokens",)}
    return onnx.export(stage.model, example, path, **known)


def export_model(work: Work, *, formats: Sequence[str], images: int, form: str = "decoded") -> Work:
    """The last model's files in `export/`; `parity.json` says how they answer validation images beside the model."""
    if work.recipe.task != TASK and form != "decoded":
        raise OptionError("export.form", "is for detectors")
    if not work.stages:
        raise OptionError("export", "there is no model yet: put a step `baseline`, `load` or `train` before it")
    stage = [stage for stage in work.stages if stage.kept][-1]
    target = work.folder / "export"
    target.mkdir(exist_ok=True)

    def make() -> list[dict[str, Any]]:
        found = [write(work, stage, target / "model.onnx", images, form=form)]
        if form == "decoded":  # checked, need not be made again
            publish(stage.place / "model.onnx", (target / "model.onnx").read_bytes())
        if "openvino" in formats:
            found.append(_openvino(work, stage, target, images, form))
        return [_about(item) for item in found if item.path.suffix != ".onnx" or "onnx" in formats]

    rows = work.once_data("exports", make)
    publish_json(target / "parity.json", rows)
    for row in rows:
        work.tell({"event": "export", **row})
    return dataclasses.replace(work, results={**work.results, "exports": rows})


def _openvino(work: Work, stage: Stage, target: Path, images: int, form: str) -> Exported:
    files = target / "model.onnx", target / "openvino_model.xml"
    if work.recipe.task == TASK:
        return deploy_detection.write_openvino(work, stage, *files, images, form=form)
    if work.recipe.task in texting.TASKS:
        return deploy_text.write_openvino(work, stage, *files, images)
    batches = work.at(stage).batches("val", limit=images, size=EVALUATED_AT_ONCE).epoch(0)
    return openvino.export(*files, model=stage.model, task=work.task, batches=batches)


def _about(item: Exported) -> dict[str, Any]:
    p = item.parity
    snr = p.snr_db if math.isfinite(p.snr_db) else None
    names = {"file": f"export/{item.path.name}", "format": "openvino" if item.path.suffix == ".xml" else "onnx"}
    figures = {"agreement": p.top1_agreement, "sqnr_db": snr, "max_abs": p.max_abs_difference, "images": p.n}
    return {
        **names,
        "size_bytes": item.size_bytes,
        "opset": item.opset,
        "dtype": p.dtype,
        "backend": p.backend,
        **figures,
    }


def answers(session: Session, batches: Iterator[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, K) of a file and the labels (N,)."""
    name = session.inputs[0].name
    pairs = [(session.run({name: batch["image"].numpy()})["logits"], batch["label"].numpy()) for batch in batches]
    return np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])


def right(accuracy: Mapping[str, Any]) -> float:
    """The share that a model is judged by: top-1, of a detector AP, of answers F1."""
    return float(next(accuracy[name] for name in ("AP", "f1", "top1") if name in accuracy))


def evaluate_file(work: Work, path: Path, part: str, backend: str) -> dict[str, Any]:
    """Top-1 of an exported file on a part of the data; of a detector COCO's numbers."""
    if work.recipe.task == TASK:
        return deploy_detection.evaluate_file(work, path, part, backend)
    if work.recipe.task in texting.TASKS:
        return deploy_text.evaluate_file(work, path, part, backend)
    return scores(*answers(open_session(path, backend=backend), work.batches(part, size=EVALUATED_AT_ONCE).epoch(0)))


def measure_stages(work: Work, *, batch: Sequence[int], repeats: int, budget_s: float, part: str) -> Work:
    """Numbers of every stage, in `measure.json`; the part of the data is read here and nowhere else in the run."""
    if part == "test" and work.data.test is None:
        work.tell({"event": "note", "text": "the data has no test part: measured on val, which training has looked at"})
        part = "val"
    found = work.once_data("measure", lambda: _measured(work, batch, repeats, budget_s, part))
    stages = tuple(dataclasses.replace(s, reason=s.reason or found["remarks"][s.place.name]) for s in work.stages)
    return dataclasses.replace(work, stages=stages, results={**work.results, "measure": found})


def _measured(work: Work, batch: Sequence[int], repeats: int, budget_s: float, part: str) -> dict[str, Any]:
    rows, labels = [], np.zeros(0, np.int64)
    for stage in work.stages:
        work.tell({"event": "note", "text": f"measuring {stage.title}"})
        row, labels = _accuracy(work, stage, part)
        weights = stage.place / "model" / "model.safetensors"
        sizes = {
            EAGER: measure.size(weights) if weights.is_file() else None,
            "file": measure.size(exported(work, stage)),
        }
        counts = {"params": measure.parameters(stage.model), "macs": measure.macs(stage.model, example(work, stage))}
        rows.append({"title": stage.title, "place": stage.place.name, **counts, "sizes": sizes, **row})
    races = {size: _race(work, size, repeats, budget_s) for size in batch}
    for row in rows:
        names = [f"{row['place']}|{runtime}" for runtime in (EAGER, *RUNTIMES)]
        row["latencies"] = [race[name].to_dict() for race in races.values() for name in names]
    remarks, before = {rows[0]["place"]: ""}, rows[0]
    for stage, row in list(zip(work.stages, rows, strict=True))[1:]:
        remarks[row["place"]] = _remark(row, before, races)
        before = row if stage.kept else before
    return {"part": part, "labels": labels.tolist(), "rows": rows, "remarks": remarks}


def example(work: Work, stage: Stage) -> Any:
    """One picture as the stage sees it, (1, 3, H, W); of texts the tokens of one, by name."""
    if work.recipe.task == TASK:
        return deploy_detection.example(work, stage)
    if work.recipe.task in texting.TASKS:
        return deploy_text.example(work, stage)
    return next(iter(work.at(stage).batches("val", size=1, limit=1).epoch(0)))["image"]


def runnable(
    work: Work, stage: Stage, source: nn.Module | Path, *, batch: int = 1, backend: str | None = None
) -> measure.Runnable:
    """A stage's model or file with what it is timed on."""
    known: dict[str, Any] = {"batch": batch, "backend": backend, "threads": work.recipe.threads}
    if work.recipe.task in texting.TASKS:
        return deploy_text.runnable(work, stage, source, **known)
    return measure.runnable(source, images=example(work, stage).numpy(), **known)


def _accuracy(work: Work, stage: Stage, part: str) -> tuple[dict[str, Any], np.ndarray]:
    """Accuracy and answers in ONNX Runtime; of the first stage also in torch, of the last that stayed in OpenVINO."""
    work = work.at(stage)
    found: dict[str, Any] = {"accuracy": {}, "predictions": {}, "dtype": {}}
    labels = np.zeros(0, np.int64)
    last = stage is [stage for stage in work.stages if stage.kept][-1]
    runtimes = RUNTIMES if last else RUNTIMES[:1]
    models: dict[str, Any] = dict.fromkeys(runtimes, exported(work, stage))
    models |= {EAGER: stage.model} if stage is work.stages[0] else {}
    if work.recipe.task == TASK:
        return deploy_detection.accuracy(work, stage, part, models), labels
    if work.recipe.task in texting.TASKS:
        return deploy_text.accuracy(work, stage, part, models)
    for runtime in runtimes:
        session = open_session(exported(work, stage), backend=runtime)
        logits, labels = answers(session, work.batches(part, size=EVALUATED_AT_ONCE).epoch(0))
        found["accuracy"][runtime] = scores(logits, labels)
        found["predictions"][runtime] = logits.argmax(1).tolist()
        found["dtype"][runtime] = session.dtype
        if runtime == RUNTIMES[0]:
            found["confidence"] = (np.exp(logits.max(1) - np.logaddexp.reduce(logits, axis=1))).round(4).tolist()
    if stage is work.stages[0]:
        found["accuracy"][EAGER] = work.task.evaluate(stage.model, work.batches(part, size=EVALUATED_AT_ONCE).epoch(0))
    return found, labels


def _race(work: Work, size: int, repeats: int, budget_s: float) -> Times:
    """All stages in all runtimes in turns; each against the first stage in torch."""
    text = f"racing {len(work.stages)} stages in {len(RUNTIMES) + 1} runtimes at batch {size}"
    work.tell({"event": "note", "text": text})
    ready = {}
    for stage in work.stages:
        ready[f"{stage.place.name}|{EAGER}"] = runnable(work, stage, stage.model, batch=size)
        for runtime in RUNTIMES:
            file = exported(work, stage)
            ready[f"{stage.place.name}|{runtime}"] = runnable(work, stage, file, batch=size, backend=runtime)
    return measure.race(ready, repeats=repeats, budget_s=budget_s)


def _remark(row: Mapping[str, Any], before: Mapping[str, Any], races: Mapping[int, Times]) -> str:
    """What a step brought over the one before, in one runtime; new weights alone are judged by their answers."""
    same = all(0.95 < new / old < 1.05 for new, old in ((row["macs"], before["macs"]), (_file(row), _file(before))))
    if same:
        return _gain(row, before)
    said = []
    for size, race in races.items():
        ratio, interval = race.ratio(f"{row['place']}|{RUNTIMES[0]}", f"{before['place']}|{RUNTIMES[0]}")
        said.append(f"{measure.verdict(ratio, interval)} at batch {size}")
    return "over the step before: " + ", ".join(said)


def _file(row: Mapping[str, Any]) -> int:
    return int(row["sizes"]["file"])


def _gain(row: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """Points over the step before; within noise where the pictures they disagree on could be chance."""
    if "AP" in row["accuracy"][RUNTIMES[0]]:
        return deploy_detection.gain(row, before, RUNTIMES[0])
    if "f1" in row["accuracy"][RUNTIMES[0]]:
        return deploy_text.gain(row, before, RUNTIMES[0])
    new, old = (what["accuracy"][RUNTIMES[0]] for what in (row, before))
    pairs = zip(row["predictions"][RUNTIMES[0]], before["predictions"][RUNTIMES[0]], strict=True)
    differ = sum(a != b for a, b in pairs)
    noise = 1.96 * math.sqrt(differ) / new["n"]
    gain = new["top1"] - old["top1"]
    return f"{100 * gain:+.1f} points over the step before{', within noise' if abs(gain) <= noise else ''}"
