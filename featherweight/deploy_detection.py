# SPDX-License-Identifier: Apache-2.0
"""A run's detectors as files, each compared with its model on validation pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .data.scenes import Scenes
from .detecting import TASK
from .export import detector, openvino
from .export.check import Exported, describe
from .runtime.preprocess import Preprocess
from .surgery import edits_of
from .work import Stage, Work


def spaced(scenes: Scenes, limit: int) -> Iterator[NDArray[np.uint8]]:
    """At most so many pictures of a part, evenly spaced."""
    count = min(limit, len(scenes))
    return (scenes.picture(i * len(scenes) // count) for i in range(count))


def prepared(pictures: Iterable[NDArray[np.uint8]], preprocess: Preprocess) -> Tensor:
    """Pictures as the deployed model gets them, (n, 3, H, W)."""
    return torch.from_numpy(np.stack([preprocess(picture) for picture in pictures]))


def described(model: nn.Module, classes: Sequence[str], preprocess: Preprocess) -> dict[str, str]:
    """What a detector's file says of itself."""
    kinds = [{"kind": kind} for kind in dict.fromkeys(edit.kind for edit in edits_of(model))]
    return describe(task=TASK, classes=classes, preprocess=preprocess, compression=kinds)


def write(work: Work, stage: Stage, path: Path, images: int, *, form: str = "decoded") -> Exported:
    """Export a stage's detector as .onnx; it must answer so many validation pictures as the model does."""
    work = work.at(stage)
    about = {**described(stage.model, work.data.classes, work.preprocess), "license": "Apache-2.0"}
    seen = prepared(spaced(work.data.val, images), work.preprocess)
    return detector.export(stage.model, path, seen, form=form, metadata=about)


def write_openvino(work: Work, stage: Stage, onnx_file: Path, path: Path, images: int, *, form: str) -> Exported:
    """The same file for OpenVINO."""
    seen = prepared(spaced(work.data.val, images), work.at(stage).preprocess)
    return openvino.export_detector(onnx_file, path, model=stage.model, images=seen, form=detector.Form(form))
