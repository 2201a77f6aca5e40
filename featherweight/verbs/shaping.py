# SPDX-License-Identifier: Apache-2.0
"""The loss landscape of anything that is a torch model, on a part of a data set."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from featherweight import sources
from featherweight.errors import OptionError, closest, shown
from featherweight.runtime.record import TASKS
from featherweight.verbs.accuracy import PARTS, class_places

if TYPE_CHECKING:
    from featherweight.data import Data
    from featherweight.landscape import Landscape


def landscape(
    model: Any,
    data: str | os.PathLike[str] | Data,
    *,
    part: str = "train",
    limit: int = 256,
    batch_size: int = 64,
    points: int = 21,
    span: float = 1.0,
    seed: int = 0,
    data_seed: int = 0,
    arch: str | None = None,
    told: Callable[[int, int], object] | None = None,
) -> Landscape:
    """The loss around a model on `limit` evenly spaced pictures without augmentation (Li 2018, 1712.09913)."""
    import torch

    from featherweight.data import Batches, load
    from featherweight.landscape import landscape as around
    from featherweight.runners_torch import TorchRunner
    from featherweight.tasks.classification import Classification

    if part not in PARTS:
        raise OptionError("part", f"no {part!r}; {closest(part, PARTS)}Known: {', '.join(PARTS)}")
    if isinstance(model, (str, os.PathLike)):
        source = sources.find(model, backend="torch", arch=arch)
        module = sources.module(source)
        preprocess = sources.preprocess_of(source, module)
    else:
        module, preprocess = model, None
    runner = TorchRunner(module, preprocess=preprocess)
    if runner.task != TASKS[0]:
        raise OptionError("model", f"is for {runner.task}; the landscape is that of a classifier's loss")
    found = load(os.fspath(data), seed=data_seed) if isinstance(data, (str, os.PathLike)) else data
    if (images := getattr(found, part)) is None:
        raise OptionError("part", f"{shown(found.name)} has no {part} part")
    places = torch.from_numpy(class_places(runner.classes, found.classes))
    seen = Batches(images, runner.preprocess, batch_size=batch_size, limit=limit).epoch(0)
    batches = [{**batch, "label": places[batch["label"]]} for batch in seen]
    return around(module, batches, Classification(), points=points, span=span, seed=seed, told=told)
