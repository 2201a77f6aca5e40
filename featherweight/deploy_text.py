# SPDX-License-Identifier: Apache-2.0
"""A run's text models as files, each compared with its model on validation texts, and how good and fast they are.

A file takes batches and texts of any length. It is timed on one real text of middling length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from . import measure, texting
from .data.text import Asked
from .export import openvino
from .export import text as exporting
from .export.check import Exported
from .models import pretrained
from .runners_text import TextRunner, open_text
from .runtime.spans import Found, best, best_spans, characters, merged
from .scores.answers import exact, f1
from .tasks.classification import scores
from .work import Stage, Work

AT_ONCE = 16  # texts
LONGEST = 15  # tokens of an answer, as pipelines have it
LEAST = 0.5  # of places that must agree: of many some are nearly as likely, and F1 judges


def texts_of(work: Work, part: str, limit: int) -> list[Any]:
    """At most so many texts of a part, evenly spaced; of questions pairs."""
    texts = getattr(work.data, part)
    count = min(limit, len(texts))
    some = [texts[i * len(texts) // count] for i in range(count)]
    return [(one.question, one.context) if isinstance(one, Asked) else one[0] for one in some]


def write(work: Work, stage: Stage, path: Path, images: int) -> Exported:
    """Export a stage's model as .onnx; it must answer so many validation texts as the model does."""
    known = {"texts": texts_of(work, "val", images), "classes": work.data.classes, "task": work.recipe.task}
    return exporting.export(stage.model, path, min_agreement=_least(work), **known)


def write_openvino(work: Work, stage: Stage, onnx_file: Path, path: Path, images: int) -> Exported:
    """The same file for OpenVINO."""
    known: dict[str, Any] = {"texts": texts_of(work, "val", images), "min_agreement": _least(work)}
    return openvino.export_text(onnx_file, path, model=stage.model, **known)


def _least(work: Work) -> float | None:
    return LEAST if work.recipe.task == texting.ASK else None


def example(work: Work, stage: Stage) -> dict[str, Tensor]:
    """The tokens of one validation text of middling length, (1, N) each."""
    return texting.middling(texting.batches_of(work.at(stage), "val", size=1, limit=texting.AT_ONCE))


def runnable(
    work: Work, stage: Stage, source: nn.Module | Path, *, batch: int, backend: str | None, threads: int | None
) -> measure.Runnable:
    """A stage's model or file with one text in front of it, `batch` times."""
    found = _runner(stage.model, source, backend, threads)
    tokens = {name: np.repeat(value.numpy(), batch, axis=0) for name, value in example(work, stage).items()}
    machine, package = measure.machine(), "torch" if found.backend == "torch" else found.backend
    here = measure.Conditions(
        cpu=machine["cpu"],
        flags=tuple(machine["flags"]),
        cores=machine["cores"],
        threads=found.threads,
        dtype=found.dtype,
        runtime="torch eager" if found.backend == "torch" else found.backend,
        version=machine["versions"].get(package, ""),
        batch=batch,
        resolution=(next(iter(tokens.values())).shape[1],),
    )
    return measure.Runnable(lambda: found.run(tokens), here)


def _runner(model: nn.Module, source: nn.Module | Path, backend: str | None, threads: int | None = None) -> TextRunner:
    known: dict[str, Any] = {"threads": threads or measure.available_threads()}
    if isinstance(source, nn.Module):
        found = open_text(source, task=pretrained.task_of(model), **known)
    else:
        found = open_text(source, backend=backend or "auto", **known)
    if found is None:
        raise LookupError(f"{type(model).__name__} is no text model")
    return found


def evaluate_file(work: Work, path: Path, part: str, backend: str) -> dict[str, Any]:
    """Top-1 of an exported file on a part of the data, or F1 and exact match of its answers."""
    texts = getattr(work.data, part)
    return judged(_runner(nn.Identity(), path, backend), texts, max_length=work.recipe.text.max_length)[0]


def accuracy(
    work: Work, stage: Stage, part: str, models: Mapping[str, nn.Module | Path]
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Figures and answers of a stage in each runtime of `models`, and the labels."""
    found: dict[str, Any] = {"accuracy": {}, "predictions": {}, "dtype": {}}
    labels = np.zeros(0, np.int64)
    for runtime, model in models.items():
        runner = _runner(stage.model, model, None if isinstance(model, nn.Module) else runtime)
        told = judged(runner, getattr(work.data, part), max_length=work.recipe.text.max_length)
        found["accuracy"][runtime], found["predictions"][runtime], labels = told
        found["dtype"][runtime] = runner.dtype
    return found, labels


def judged(
    runner: TextRunner, texts: Sequence[Any], *, max_length: int, batch_size: int = AT_ONCE
) -> tuple[dict[str, Any], list[Any], NDArray[np.int64]]:
    """Figures; for each text the class that is said, of a question its F1; the labels. texts: a part of a `Corpus`."""
    longest = min(max_length, runner.tokens.settings.max_length or max_length)
    if runner.task == texting.ASK:
        said = _answers(runner, texts, longest)
        each = [f1(answer, one.answers) for answer, one in zip(said, texts, strict=True)]
        matches = [exact(answer, one.answers) for answer, one in zip(said, texts, strict=True)]
        mean, half = float(np.mean(each)), 1.96 * float(np.std(each)) / len(each) ** 0.5
        interval = [max(0.0, mean - half), min(1.0, mean + half)]
        known = {"exact": float(np.mean(matches)), "interval": interval, "n": len(each), "of": "questions"}
        return {"f1": mean, **known}, each, np.zeros(0, np.int64)
    rows = [runner.tokens.encode(text, max_length=longest)[0] for text, _ in texts]
    some = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    logits = np.concatenate([runner.run(runner.tokens.batch(one))["logits"] for one in some])
    labels = np.array([label for _, label in texts], np.int64)
    return {**scores(logits, labels), "of": "texts"}, logits.argmax(1).tolist(), labels


def _answers(runner: TextRunner, asked: Sequence[Asked], longest: int) -> list[str]:
    """The best answer to each question, as the pipeline would find it."""
    found = []
    for one in asked:
        known: dict[str, Any] = {"max_length": longest, "stride": longest // 3, "strategy": "only_second"}
        windows = runner.tokens.encode(one.question, one.context, **known)
        output = runner.run(runner.tokens.batch(windows))
        places: list[Found] = []
        for i, window in enumerate(windows):
            start, end = (output[name][i, : len(window.ids)] for name in ("start_logits", "end_logits"))
            spans, _ = best_spans(start, end, window, count=1, longest=LONGEST, cls_id=runner.tokens.settings.cls_id)
            places += [Found(s.score, *characters(window, s.first, s.last, whole_words=True)) for s in spans]
        top = best(merged(places, one.context), 1)
        found.append(one.context[top[0].start : top[0].end] if top else "")
    return found


def gain(row: Mapping[str, Any], before: Mapping[str, Any], runtime: str) -> str:
    """Points of F1 over the step before; within noise where other questions might have said the opposite."""
    new, old = (np.array(what["predictions"][runtime]) for what in (row, before))
    points, noise = float((new - old).mean()), 1.96 * float((new - old).std()) / len(new) ** 0.5
    return f"{100 * points:+.1f} points of F1 over the step before{', within noise' if abs(points) <= noise else ''}"
