# SPDX-License-Identifier: Apache-2.0
"""A run's detectors as files, each compared with its model on validation pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import OptionError
from .export import detector, openvino
from .export.check import Exported, describe
from .surgery import edits_of
from .work import Stage, Work


def prepared(work: Work, part: str, *, limit: int) -> Tensor:
    """Evenly spaced pictures of a part as the deployed model gets them, (n, 3, H, W)."""
    scenes = getattr(work.data, part)
    count = min(limit, 0 if scenes is None else len(scenes))
    if not count:
        raise OptionError("data", f"has no {part} pictures, which this step needs")
    pictures = (scenes.picture(i * len(scenes) // count) for i in range(count))
    return torch.from_numpy(np.stack([work.preprocess(picture) for picture in pictures]))


def write(work: Work, stage: Stage, path: Path, images: int, *, form: str = "decoded") -> Exported:
    """Export a stage's detector as .onnx; it must answer so many validation pictures as the model does."""
    work = work.at(stage)
    kinds = [{"kind": kind} for kind in dict.fromkeys(edit.kind for edit in edits_of(stage.model))]
    known = {"classes": work.data.classes, "preprocess": work.preprocess, "compression": kinds}
    about = describe(task=work.recipe.task, license="Apache-2.0", **known)  # type: ignore[arg-type]
    seen = prepared(work, "val", limit=images)
    return detector.export(stage.model, path, seen, form=form, metadata=about)


def write_openvino(work: Work, stage: Stage, onnx_file: Path, path: Path, images: int, *, form: str) -> Exported:
    """The same file for OpenVINO."""
    seen = prepared(work.at(stage), "val", limit=images)
    return openvino.export_detector(onnx_file, path, model=stage.model, images=seen, form=detector.Form(form))
