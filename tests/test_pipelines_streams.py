# SPDX-License-Identifier: Apache-2.0
"""Long streams keep memory flat, and a batch of one answers as a batch of 32, for pictures and for questions."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_text
import torch
from tiny_detector import small

from featherweight import pipeline
from featherweight.export import detector, onnx, text
from featherweight.export.check import describe
from featherweight.models import pretrained
from featherweight.runtime.preprocess import Preprocess
from featherweight.tokenizer import open_tokens

transformers = pytest.importorskip("transformers")

EXACT = Preprocess((32, 32), "exact", 1.0, "bilinear")
BOXED = Preprocess((64, 64), "letterbox", 1.0, "bilinear", (0.0,) * 3, (1.0,) * 3)
CLASSES = ("a", "b", "c")
RANDOM = np.random.default_rng(0)
PICTURES = [RANDOM.integers(0, 256, (int(h), int(w), 3), np.uint8) for h, w in RANDOM.integers(20, 90, (32, 2))]
LONG = {"question": tiny_text.WHO, "context": tiny_text.LONG}
SHORT = {"question": tiny_text.WHERE, "context": tiny_text.CHINA}


def classifier(folder: Path) -> Path:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, 8), torch.nn.Flatten(), torch.nn.Linear(64, 3)).eval()
    about = describe(task="image-classification", classes=CLASSES, preprocess=EXACT)
    return onnx.export(model, torch.rand(2, 3, 32, 32), folder / "model.onnx", metadata=about).path


def finder(folder: Path) -> Path:
    about = describe(task="object-detection", classes=CLASSES, preprocess=BOXED)
    images = torch.rand(2, 3, 64, 64)
    return detector.export(small(), folder / "model.onnx", images, form=detector.Form("decoded"), metadata=about).path


def answerer(folder: Path) -> Path:
    model = pretrained.with_tokens(tiny_text.model(transformers), open_tokens(tiny_text.tokenizer(transformers)))
    return text.export(model, folder / "model.onnx", texts=[(tiny_text.WHO, tiny_text.SHORT)]).path


MADE: dict[str, tuple[Callable[[Path], Path], list[Any], dict[str, Any]]] = {
    "image-classification": (classifier, PICTURES, {}),
    "object-detection": (finder, PICTURES, {"threshold": 0.02}),
    "question-answering": (answerer, [LONG, SHORT, {"question": "why?", "context": "king"}, SHORT] * 8, {}),
}


def alike(one: Any, other: Any) -> None:
    """Equal answers, but for the last digits of a score."""
    if isinstance(one, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            alike(mine, theirs)
        return
    assert {**one, "score": 0} == {**other, "score": 0} and one["score"] == pytest.approx(other["score"], abs=1e-5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a task, made when it is first asked for."""
    return functools.cache(lambda task: MADE[task][0](tmp_path_factory.mktemp(task)))


@pytest.mark.parametrize(
    "task", [task if task == "object-detection" else pytest.param(task, marks=pytest.mark.slow) for task in MADE]
)
def test_a_batch_of_one_answers_as_a_batch_of_32(made: Callable[[str], Path], task: str) -> None:
    _, inputs, options = MADE[task]
    pipe = pipeline(task, made(task), **options)
    alone = [pipe(one) for one in inputs]
    alike(pipe(inputs, batch_size=32), alone)
    alike(list(pipe(iter(inputs), batch_size=7)), alone)


@pytest.mark.slow
@pytest.mark.parametrize("task", MADE)
def test_ten_thousand_inputs_keep_memory_flat(made: Callable[[str], Path], task: str) -> None:
    _, inputs, options = MADE[task]
    pipe = pipeline(task, made(task), **options)
    some = inputs[1:4]
    stream = pipe((some[i % 3].copy() for i in range(10_000)), batch_size=8)
    for _ in range(500):
        next(stream)
    before = memory()
    assert sum(1 for _ in stream) == 9_500
    assert memory() - before < 30 << 20, f"{memory() - before} bytes more"


def memory() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
