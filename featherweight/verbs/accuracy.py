# SPDX-License-Identifier: Apache-2.0
"""Accuracy of anything that is a model, in torch, ONNX Runtime or OpenVINO alike."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featherweight import sources
from featherweight.errors import OptionError, closest, shown
from featherweight.runners import Runner, open_runner
from featherweight.runners_text import open_text
from featherweight.verbs import accuracy_detection, accuracy_text

if TYPE_CHECKING:
    from featherweight.data import Data, Images

PARTS = ("train", "val", "test")


def val(
    model: Any,
    data: str | os.PathLike[str] | Data,
    *,
    part: str = "val",
    backend: str = "auto",
    batch_size: int = 32,
    threads: int | None = None,
    device: Any = None,
    limit: int | None = None,
    arch: str | None = None,
    max_bad: float = 0.01,
    seed: int = 0,
    **detection: float,
) -> dict[str, Any]:
    """Accuracy of a model on a part of a data set: top1, top5, n, correct, the 95 % interval of top1, how it was run.

    Of a text model see `accuracy_text.val`; of a detector COCO's twelve numbers, see `accuracy_detection.val`, which
    `detection` goes to. limit: that many pictures, evenly spaced. seed: of a built-in data set, or of a split.
    OptionError where classes do not match.
    """
    from featherweight.data import load
    from featherweight.tasks.classification import scores

    if part not in PARTS:
        raise OptionError("part", f"no {part!r}; {closest(part, PARTS)}Known: {', '.join(PARTS)}")
    for name, value in {"batch_size": batch_size, "limit": limit}.items():
        if value is not None and value < 1:
            raise OptionError(name, f"must be 1 or more, not {value!r}")
    reader = None if arch else open_text(model, backend=backend, threads=threads, device=device)
    if reader is not None:
        texts: dict[str, Any] = {"part": part, "batch_size": batch_size, "limit": limit, "seed": seed}
        return accuracy_text.val(reader, data, **texts)  # type: ignore[arg-type]
    source = sources.find(model, backend=backend, arch=arch) if isinstance(model, (str, os.PathLike)) else model
    runner = open_runner(source, backend=backend, threads=threads, device=device)
    if runner.task == accuracy_detection.TASK:
        known: dict[str, Any] = {"limit": limit, "max_bad": max_bad, "seed": seed, **detection}
        return accuracy_detection.val(runner, data, part=part, batch_size=batch_size, **known)  # type: ignore[arg-type]
    for name in detection:
        raise OptionError(name, "is for detectors; this model is none")
    found = load(os.fspath(data), max_bad=max_bad, seed=seed) if isinstance(data, (str, os.PathLike)) else data
    if (images := getattr(found, part)) is None:
        raise OptionError("part", f"{shown(found.name)} has no {part} part")
    places = class_places(runner.classes, found.classes)
    began = time.perf_counter()
    logits, labels = predictions(runner, images, batch_size=batch_size, limit=limit)
    seconds = time.perf_counter() - began
    if not runner.classes and logits.shape[1] != len(found.classes):
        raise OptionError("data", f"has {len(found.classes)} classes, the model {logits.shape[1]}")
    how: dict[str, Any] = {"backend": runner.backend, "dtype": runner.dtype, "threads": runner.threads}
    how["images_per_s"] = len(labels) / max(seconds, 1e-9)
    return {"data": found.name, "part": part, **scores(logits, places[labels]), **how}


def class_places(names: Sequence[str], wanted: Sequence[str]) -> NDArray[np.int64]:
    """For each class of the data its number in the model; OptionError if the model does not know it."""
    if not names:
        return np.arange(len(wanted))
    known = {name: i for i, name in enumerate(names)}
    lacking = [name for name in wanted if name not in known]
    if lacking:
        some = ", ".join(shown(name, limit=30) for name in lacking[:4]) + (" ..." if len(lacking) > 4 else "")
        mine = ", ".join(shown(name, limit=30) for name in names[:4]) + (" ..." if len(names) > 4 else "")
        text = f"has {len(wanted)} classes, of which the model does not know {some}; it knows {len(names)}: {mine}"
        raise OptionError("data", text)
    return np.array([known[name] for name in wanted])


def predictions(
    runner: Runner, images: Images, *, batch_size: int, limit: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits (N, K) and labels (N,) of `limit` evenly spaced pictures."""
    count = min(len(images), limit or len(images))
    if not count:
        raise OptionError("data", "this part has no images")
    chosen = (np.arange(count) * len(images) // count).tolist()
    logits, labels = [], []
    for start in range(0, count, batch_size):
        pairs = [images[i] for i in chosen[start : start + batch_size]]
        logits.append(runner.run(np.stack([runner.preprocess(picture) for picture, _ in pairs])).logits)
        labels += [label for _, label in pairs]
    return np.concatenate(logits), np.array(labels, np.int64)
