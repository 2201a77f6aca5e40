# SPDX-License-Identifier: Apache-2.0
"""The step that teaches every token: a function Work -> Work like those of `steps`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from . import artifact
from .binding import Ratio, Within
from .composition import TAUGHT, TRAINS, Effect, composes, restarting
from .errors import OptionError
from .fitting import trained
from .methods import label_maps
from .methods.token_labelling import TokenLabelling
from .models import zoo
from .recipe import Count, Epochs, Rate
from .runtime.preprocess import Preprocess
from .work import Work, current, finished_stage

FILE = "labels.safetensors"
Weight = Annotated[float, Within(0.0, 1e6)]


def _learning(options: Mapping[str, Any]) -> Effect:
    return restarting(TAUGHT if options["labels"] == "teacher" else TRAINS)(options)


@composes(_learning)
def token_labelling(
    work: Work,
    *,
    labels: Literal["teacher", "image"] = "teacher",
    top_k: Count = 5,
    maps: str | None = None,
    cls_weight: Weight = 1.0,
    dense_weight: Weight = 1.0,
    mix_token: bool = True,
    truth_if_agree: Ratio = 0.0,
    truth_if_not: Ratio = 0.0,
    official: bool = False,
    restart: bool = True,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Every token learns what the teacher says of its place, or the picture's label; `restart`: as the baseline began.

    maps: the file with the label maps, for several runs; without, they are the step's own. Labels are smoothed as much
    as the recipe says. Later trainings go on with it, but for mix-token, of which the teachers of other methods do not
    know.
    """
    options: dict[str, Any] = {"cls_weight": cls_weight, "dense_weight": dense_weight, "mix_token": mix_token}
    options |= {"truth_if_agree": truth_if_agree, "truth_if_not": truth_if_not, "official": official}
    known = _maps(work, top_k, maps) if labels == "teacher" else None
    method = TokenLabelling(known, smoothing=work.recipe.train.label_smoothing, **options)
    begin = work.origin if restart and work.origin is not None else current(work)
    model = work.once("model", lambda: trained(work, begin, (method,), epochs, images, lr))
    title = f"token labels ({labels}{', mixed' if mix_token else ''})"
    later = dataclasses.replace(method, mix_token=False)
    return finished_stage(dataclasses.replace(work, methods=(*work.methods, later)), title, model)


def _maps(work: Work, top_k: int, path: str | None) -> label_maps.LabelMaps:
    """The teacher's label maps of the training part, in this file or in the step's folder."""
    if work.teacher is None:
        raise OptionError("labels", "there is no teacher yet: put a step `teacher` before it, or say `labels: image`")
    known: dict[str, Any] = {
        "preprocess": _preprocess(work),
        "top_k": top_k,
        "batch_size": work.recipe.train.batch_size,
    }
    return label_maps.make(work.teacher, work.data, path or work.place / FILE, log=_told(work), **known)


def _preprocess(work: Work) -> Preprocess:
    """How the teacher's pictures are prepared: its own way where it came with weights, else the model's."""
    spec = work.recipe.teacher
    record = artifact.record_of(work.teacher) if work.teacher is not None else None
    if record is not None and record.preprocess is not None:
        return record.preprocess
    if spec is None or spec.name in work.given or spec.weights is None:
        return work.preprocess
    return zoo.preprocess_of(spec.name, work.teacher, spec.config)


def _told(work: Work) -> Callable[[int, int], None]:
    """Says at every tenth of the way how many pictures have their maps."""

    def log(done: int, count: int) -> None:
        if done == count or done * 10 // count > (done - work.recipe.train.batch_size) * 10 // count:
            work.tell({"event": "note", "text": f"{work.step}: label maps of {done} of {count} pictures"})

    return log
