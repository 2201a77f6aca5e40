# SPDX-License-Identifier: Apache-2.0
"""How good a text model is on texts of one's own, in torch, ONNX Runtime or OpenVINO alike."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from featherweight.errors import OptionError, shown
from featherweight.runners_text import TextRunner
from featherweight.runtime.record import TEXT_TASKS

if TYPE_CHECKING:
    from featherweight.data.corpus import Corpus

LENGTHS = dict(zip(TEXT_TASKS, (512, 384), strict=True))  # tokens; what is longer is cut, contexts are read in windows


def val(
    runner: TextRunner,
    data: str | os.PathLike[str] | Corpus,
    *,
    part: str = "val",
    batch_size: int = 32,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Top1, n, correct and the interval of sentences, or F1 and exact match of questions; how it was run.

    Labels are the names of the model's classes, or their numbers. limit: that many texts, evenly spaced. InputError for
    a label that the model does not know.
    """
    from featherweight import deploy_text
    from featherweight.data import corpus

    known: dict[str, Any] = {"task": runner.task, "seed": seed, "classes": runner.classes or None}
    found = corpus.load(os.fspath(data), **known) if isinstance(data, (str, os.PathLike)) else data
    if (texts := getattr(found, part)) is None:
        raise OptionError("part", f"{shown(found.name)} has no {part} part")
    count = min(len(texts), limit or len(texts))
    texts = [texts[i * len(texts) // count] for i in range(count)]
    began = time.perf_counter()
    figures, _, _ = deploy_text.judged(runner, texts, max_length=LENGTHS[runner.task], batch_size=batch_size)
    seconds = time.perf_counter() - began
    how = {"backend": runner.backend, "dtype": runner.dtype, "threads": runner.threads}
    if "f1" in figures:
        low, high = figures["interval"]
        words = f"F1 {100 * figures['f1']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        figures["text"] = f"{words}, exact match {100 * figures['exact']:.1f} %"
    return {"data": found.name, "part": part, **figures, **how, "images_per_s": count / max(seconds, 1e-9)}
