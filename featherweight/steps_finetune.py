# SPDX-License-Identifier: Apache-2.0
"""The steps around training: pictures of another size, and the loss around the model; like those of `steps`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch

from . import official, outlines
from .beginning import check_teacher
from .binding import Within
from .composition import LOOKS, composes
from .errors import OptionError
from .landscape import landscape as around
from .landscape import save
from .methods.distill import Distill
from .recipe import Count, Seed
from .work import Work, current, finished_stage

Side = Annotated[int, Within(1, 16384)]


@composes(LOOKS, outline=outlines.resized)
def resolution(
    work: Work,
    *,
    size: Side | Sequence[Side] = 384,
    kernel: Literal["bicubic", "bicubic-antialias", "bilinear"] = "bicubic",
) -> Work:
    """The same model for pictures of another size, positions resized; what follows trains and measures at that size.

    A step `train` after it fine-tunes with the teachers of the steps before.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise OptionError("size", f"{list(sides)} is not one side or height and width")
    before = current(work)
    after = dataclasses.replace(work, preprocess=dataclasses.replace(work.preprocess, size=sides), origin=None)
    taught = [method.teacher for method in work.methods if isinstance(method, Distill)]
    for teacher in [*taught, *([work.teacher] if work.teacher is not None else [])]:
        check_teacher(after, teacher)
    model = after.once("model", lambda: official.resized(before, sides, kernel=kernel).eval())
    return finished_stage(after, f"at {sides[1]}x{sides[0]}", model)


@composes(LOOKS)
def landscape(
    work: Work,
    *,
    points: Annotated[int, Within(3, 201)] = 15,
    span: Annotated[float, Within(0.0, 100.0, open_low=True)] = 1.0,
    images: Count = 256,
    seed: Seed = 0,
) -> Work:
    """The training loss around the model, over two random directions of its weights, as landscape.svg and .json."""
    model = current(work)
    seen = work.batches("train", limit=images)
    seen.shuffle = False  # evenly spaced pictures, the same for every model
    name = f"landscape-{work.step.partition('-')[0]}"

    def make() -> dict[str, Any]:
        with torch.random.fork_rng():
            found = around(model, seen.epoch(0), work.task, points=points, span=span, seed=seed)
        save(found, work.folder / f"{name}.svg", title=f"{work.stages[-1].title}: loss on {found.images} pictures")
        return found.to_dict()

    rows = work.once_data("landscape", make)
    work.tell({"event": "note", "text": f"{name}.svg: loss {rows['center']} in the middle"})
    return dataclasses.replace(work, results={**work.results, name: rows})
