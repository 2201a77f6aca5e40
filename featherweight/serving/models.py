# SPDX-License-Identifier: Apache-2.0
"""A model that is served: what it is, and an answer with the time of each stage.

Answers have the shape of the transformers library. Beside them stand the patches that a token-dropping model kept and
where they lie on the picture, and milliseconds: prepare, model, answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import InputError, OptionError, closest, shown
from featherweight.pipelines_detection import Call as DetectionCall
from featherweight.pipelines_questions import Call as QuestionCall
from featherweight.pipelines_text import Call as TextCall
from featherweight.runtime.nms import Nms
from featherweight.token_maps import grid_of

PICTURE, TEXT, QUESTION = "picture", "text", "question"
KINDS = {
    "image-classification": PICTURE,
    "object-detection": PICTURE,
    "text-classification": TEXT,
    "question-answering": QUESTION,
}
MOST = 1000  # labels or answers at once
WINDOWS = 8  # of a long context, at a time


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options of a request; None is the pipeline's own default."""

    top_k: int = 5
    threshold: float | None = None
    iou: float | None = None
    truncation: bool = False

    @classmethod
    def read(cls, given: Sequence[tuple[str, str]]) -> Asked:
        """The options in an address, each once. OptionError for what is none."""
        readers: dict[str, Any] = {"top_k": int, "threshold": float, "iou": float, "truncation": _boolean}
        found: dict[str, Any] = {}
        for name, text in given:
            if name not in readers:
                known = ", ".join(readers)
                raise OptionError(shown(name, limit=40), f"no such option; {closest(name, readers)}Known: {known}")
            if name in found:
                raise OptionError(name, "is given twice")
            try:
                found[name] = readers[name](text)
            except ValueError:
                raise OptionError(name, f"{shown(text, limit=40)!r} is not what it takes") from None
        asked = cls(**found)
        if not 1 <= asked.top_k <= MOST:
            raise OptionError("top_k", f"must be 1..{MOST}, not {asked.top_k}")
        asked.detection()
        return asked

    def detection(self) -> DetectionCall:
        """The call of a detector; OptionError for a threshold that is none."""
        return DetectionCall(**{k: v for k in ("threshold", "iou") if (v := getattr(self, k)) is not None})


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


@dataclass(frozen=True)
class Clocked(Nms):
    """Suppression that tells how long it took, since a detector's runner does it together with the model."""

    spent_ms: list[float] = field(default_factory=list)

    def batch(self, predictions: Sequence[NDArray[np.floating]] | NDArray[np.floating]) -> list[NDArray[np.float64]]:
        """As `Nms.batch`."""
        began = time.perf_counter()
        found = super().batch(predictions)
        self.spent_ms.append(1e3 * (time.perf_counter() - began))
        return found


class Clock:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self.latency_ms = {"prepare": 0.0, "model": 0.0, "answer": 0.0}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.latency_ms[stage] += 1e3 * (time.perf_counter() - began)


@dataclass(frozen=True)
class Served:
    """A pipeline with the name that pages and numbers know it by."""

    name: str
    pipe: Any

    @property
    def kind(self) -> str:
        """What it reads: a picture, a text, or a question."""
        return KINDS[self.pipe.task]

    def about(self) -> dict[str, Any]:
        """What the page says of it."""
        runner = self.pipe.runner
        known = {"name": self.name, "task": self.pipe.task, "kind": self.kind, "classes": list(self.pipe.classes)}
        size = list(runner.preprocess.size) if self.kind == PICTURE else None
        return {**known, "runtime": runner.backend, "dtype": runner.dtype, "threads": runner.threads, "input": size}

    def answer(self, given: Any, asked: Asked) -> dict[str, Any]:
        """{"name", "task", "answers", "latency_ms", ...} for a picture (H, W, 3), a text or a question."""
        clock = Clock()
        found = STEPS[self.pipe.task](self.pipe, given, asked, clock)
        if not all(np.isfinite(one["score"]) for one in found["answers"]):
            raise InputError(self.name, "non_finite", "answers with numbers that are not finite")
        return {"name": self.name, "task": self.pipe.task, **found, "latency_ms": clock.latency_ms}

    def warm(self) -> None:
        """Answer once, so that what is only done once is done."""
        if self.kind == PICTURE:
            self.answer(np.full((*self.pipe.runner.preprocess.size, 3), 127, np.uint8), Asked())
        else:
            self.answer("a" if self.kind == TEXT else {"question": "a", "context": "a"}, Asked(truncation=True))


def _classified(pipe: Any, pixels: NDArray[np.uint8], asked: Asked, clock: Clock) -> dict[str, Any]:
    with clock("prepare"):
        images = pipe.preprocess(pixels)[None]
    with clock("model"):
        found = pipe.forward(images, return_tokens=True)
    with clock("answer"):
        labels = pipe.postprocess(found.logits[0], top_k=asked.top_k)
    return {"answers": labels, **_tokens(pipe.runner.preprocess, found.kept, pixels)}


def _tokens(preprocess: Any, kept: Any, pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """The patches kept by each stage, row by row; rows and columns; and the shares of the picture's sides between which
    they lie: left, top, right, bottom."""
    if not kept:
        return {}
    height, width = pixels.shape[:2]
    try:
        grid = grid_of(kept[0].shape[1], preprocess.size)
    except OptionError:
        return {}
    if preprocess.resize == "letterbox":
        place = preprocess.place(height, width)
        corners = place.back(np.array([[0, 0, place.net[1], place.net[0]]]), clip=False)[0]
        window = [float(one) for one in corners / (width, height, width, height)]
    else:
        window = list(preprocess.window(height, width))
    return {"kept": [stage[0].tolist() for stage in kept], "grid": list(grid), "window": window}


def _detected(pipe: Any, pixels: NDArray[np.uint8], asked: Asked, clock: Clock) -> dict[str, Any]:
    call = asked.detection()
    nms = Clocked(**vars(call.nms))
    with clock("prepare"):
        images, placement = pipe.preprocess(pixels)
    with clock("model"):
        rows = pipe.runner.detect(images[None], nms)[0]
    with clock("answer"):
        objects = pipe.postprocess(placement.detections(rows))
    suppression = sum(nms.spent_ms)
    clock.latency_ms["model"] -= suppression
    clock.latency_ms["answer"] += suppression
    return {"answers": objects}


def _read(pipe: Any, text: Any, asked: Asked, clock: Clock) -> dict[str, Any]:
    call = TextCall(top_k=asked.top_k, truncation=asked.truncation)
    with clock("prepare"):
        encoding = pipe.preprocess(text, call)
    with clock("model"):
        logits = pipe.forward([encoding], call)[0]
    with clock("answer"):
        labels = pipe.postprocess(logits, call)
    return {"answers": labels, "tokens": len(encoding.ids)}


def _found(pipe: Any, question: Any, asked: Asked, clock: Clock) -> dict[str, Any]:
    call = QuestionCall(top_k=asked.top_k)
    with clock("prepare"):
        one = pipe.preprocess(question, call)
    with clock("model"):
        parts = [one.windows[i : i + WINDOWS] for i in range(0, len(one.windows), WINDOWS)]
        logits = [pair for part in parts for pair in pipe.forward(part, call)]
    with clock("answer"):
        answers = pipe.postprocess(one, logits, call)
    listed = answers if isinstance(answers, list) else [answers]
    return {"answers": listed, "tokens": sum(len(window.ids) for window in one.windows)}


STEPS: Mapping[str, Any] = {
    "image-classification": _classified,
    "object-detection": _detected,
    "text-classification": _read,
    "question-answering": _found,
}


def named(models: Sequence[tuple[str, Any]]) -> list[Served]:
    """Pipelines under names that differ: as much of the end of each path as it takes. OptionError where they do not go
    side by side."""
    kinds = {KINDS[pipe.task] for _, pipe in models}
    if len(kinds) > 1:
        tasks = " and ".join(pipe.task for _, pipe in models)
        raise OptionError("--against", f"{tasks} do not read the same; compare models that do")
    parts = [PurePath(path).parts or (path,) for path, _ in models]
    depth = next(
        (n for n in range(1, max(map(len, parts)) + 1) if len({one[-n:] for one in parts}) == len(parts)), None
    )
    names = ["/".join(one[-(depth or 1) :]) for one in parts]
    if depth is None:
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return [Served(shown(name), pipe) for name, (_, pipe) in zip(names, models, strict=True)]
