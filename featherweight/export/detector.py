# SPDX-License-Identifier: Apache-2.0
"""A detector as one .onnx file for any batch and any size that fits its strides, compared with the model first.

Three forms. raw: a map (B, A, H_l, W_l, 5 + K) per level, before the sigmoid. decoded: `predictions` (B, N, 5 + K),
cxcywh in pixels, objectness, classes; their product is the score, which for one class is the objectness alone.
end2end: suppression in the graph, `detections` (n, 7) with the rows [image, x1, y1, x2, y2, class, score], and two more
inputs of one number each, `confidence` and `iou`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import featherweight
from featherweight.errors import CheckFailed, OptionError, closest
from featherweight.export import suppression
from featherweight.export.check import HALF_DB, ROUNDING, Exported, rounding_noise
from featherweight.export.graph import OPSET
from featherweight.export.translate import translate
from featherweight.files import publish
from featherweight.methods.fuse import fuse
from featherweight.modes import evaluating
from featherweight.runtime.nms import DETECTIONS, PREDICTIONS, THRESHOLDS, Nms, by_image, thresholds
from featherweight.runtime.parity import Parity, check, snr_db
from featherweight.runtime.session import Session, open_session
from featherweight.tasks.detection.decode import decode
from featherweight.tasks.detection.detectors import detector_of

FORMS = ("raw", "decoded", "end2end")
INPUT = "images"
CHECKED = Nms.validation()  # the thresholds at which end2end is compared
CURVE_DB = 15.0  # of the falling scores of end2end, see `_of_detections`; 23 were seen of an untrained network
NEAR = 0.1  # pixels, and thousandths of a score
LARGEST = 16384  # pixels of a side


@dataclass(frozen=True)
class Form:
    """What a file answers with. `multi_label` and `max_detections` are for end2end."""

    name: str = "decoded"
    multi_label: bool = True
    max_detections: int = 300

    def __post_init__(self) -> None:
        if self.name not in FORMS:
            raise OptionError("form", f"no {self.name!r}; {closest(str(self.name), FORMS)}Known: {', '.join(FORMS)}")
        if not 1 <= self.max_detections <= 100_000:
            raise OptionError("max_detections", f"must be 1..100000, not {self.max_detections!r}")


class Decoded(nn.Module):
    """Images (B, 3, H, W) -> a tuple: the raw maps, or the decoded predictions alone, always in float32."""

    def __init__(self, model: nn.Module, *, raw: bool = False) -> None:
        super().__init__()
        self.model, self.raw = model, raw

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps, head = self.model(images), self.model.head
        if self.raw:
            return tuple(maps)
        return (decode(maps, head.anchors, head.strides),)  # type: ignore[union-attr, arg-type]


def export(
    model: nn.Module,
    path: str | Path,
    images: Tensor,
    *,
    form: Form | str = "decoded",
    dynamic: bool = True,
    metadata: Mapping[str, str] | None = None,
    min_agreement: float | None = None,
    min_snr_db: float | None = None,
) -> Exported:
    """Write a detector (one with a `head` that has anchors and strides) to `path`; input `images` (B, 3, H, W), 0..1.

    Blocks are merged first (`methods.fuse`), auxiliary branches go. images: real ones, prepared for the model; ONNX
    Runtime must answer to them as the model does, else CheckFailed and no file. dynamic: sizes may vary as the batch
    does; without, only the images' size is taken. TypeError for what is no detector.
    """
    detector_of(model)
    path, form = Path(path), Form(form) if isinstance(form, str) else form
    data = to_bytes(fuse(model, images[:1]), images, form=form, dynamic=dynamic, metadata=metadata)
    with tempfile.TemporaryDirectory() as folder:
        unchecked = Path(folder, "model.onnx")
        unchecked.write_bytes(data)
        found = parity(model, open_session(unchecked, backend="onnxruntime"), images, form)
    checked(found, model, images, form, min_agreement=min_agreement, min_snr_db=min_snr_db)
    publish(path, data)
    return Exported(path, found.max_abs_difference, OPSET, len(data), found)


def checked(
    found: Parity,
    model: nn.Module,
    images: Tensor,
    form: Form,
    *,
    half: bool = False,
    min_agreement: float | None = None,
    min_snr_db: float | None = None,
) -> Parity:
    """The parity if it is good enough for this form and arithmetic, else CheckFailed. half: weights kept in 16 bits."""
    if min_snr_db is None and form.name == "end2end":
        min_snr_db = CURVE_DB
    elif min_snr_db is None and half and found.dtype == "float32":
        min_snr_db = HALF_DB
    floor = None
    if any(isinstance(layer, ROUNDING) for layer in model.modules()):
        expected = answers(model, images, raw=form.name == "raw")
        with rounding_noise(model):
            moved = answers(model, images, raw=form.name == "raw")
        floor = _of_predictions(expected, moved, "torch eager", "int8")
        min_agreement = 0.9 if form.name == "end2end" and min_agreement is None else min_agreement
    return check(found, floor=floor, min_agreement=min_agreement, min_snr_db=min_snr_db)


def to_bytes(
    model: nn.Module,
    example: Tensor,
    *,
    form: Form,
    dynamic: bool = True,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """The file's bytes, not yet compared with the model."""
    head = detector_of(model).head
    called = Decoded(model, raw=form.name == "raw").eval()
    names = [f"level{i}" for i in range(len(head.strides))] if form.name == "raw" else [PREDICTIONS]
    with evaluating(model), torch.no_grad():
        proto = translate(_program(called, example, max(head.strides), dynamic), [INPUT], names)
    if form.name == "end2end":
        known = {"num_classes": int(head.num_classes), "multi_label": form.multi_label}
        proto = suppression.added(proto, max_detections=form.max_detections, **known)
    proto.producer_name, proto.producer_version = "featherweight", featherweight.__version__
    told = {"task": "object-detection", "form": form.name, "stride": str(max(head.strides))}
    if form.name == "raw":
        told |= {"anchors": str(head.anchors.tolist()), "strides": str(list(head.strides))}
    onnx.helper.set_model_props(proto, {**told, **(metadata or {})})
    onnx.checker.check_model(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _program(model: nn.Module, example: Tensor, stride: int, dynamic: bool) -> torch.export.ExportedProgram:
    """torch.export with a free batch, and sizes that are any multiples of the stride."""
    images = example[:1].expand(2, *example.shape[1:]).contiguous()  # of size 1, torch would take it for fixed
    shapes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if dynamic:
        side = 3 if images.shape[2] // stride == images.shape[3] // stride else 0
        grown = [
            max(size, 2 * stride) + extra * stride for size, extra in zip(images.shape[2:], (0, side), strict=True)
        ]
        images = torch.zeros(2, images.shape[1], *grown)  # two unequal sides, neither of one cell, stay two symbols
        for axis, name in ((2, "rows"), (3, "columns")):
            shapes[axis] = stride * torch.export.Dim(name, min=1, max=LARGEST // stride)
    return torch.export.export(model, (images,), dynamic_shapes=(shapes,))


def parity(model: nn.Module, session: Session, images: Tensor, form: Form) -> Parity:
    """How a file in a session answers to the images, compared with the model.

    Agreement is the share of predictions with the same best class; for end2end see `_of_detections`.
    """
    expected = answers(model, images, raw=form.name == "raw")
    given: dict[str, NDArray[Any]] = {INPUT: images.cpu().numpy()}
    if form.name != "end2end":
        return _of_predictions(expected, list(session.run(given).values()), session.backend, session.dtype)
    nms = _thresholds(expected[0], form)
    given |= thresholds(nms, THRESHOLDS)
    rows = session.run(given)[DETECTIONS]
    return _of_detections(expected[0], by_image(rows, len(images)), nms, session)


def answers(model: nn.Module, images: Tensor, *, raw: bool = False) -> list[NDArray[np.float32]]:
    """What the model itself answers: decoded predictions, or raw maps."""
    called = Decoded(model, raw=raw)
    with evaluating(called), torch.inference_mode():
        return [found.float().cpu().numpy() for found in called(images)]


def _of_predictions(
    expected: Sequence[NDArray[np.float32]], got: Sequence[NDArray[Any]], backend: str, dtype: str
) -> Parity:
    """Boxes and probabilities are compared apart: pixels would hide what is wrong with a probability."""
    shapes = [tuple(x.shape) for x in expected], [tuple(x.shape) for x in got]
    if shapes[0] != shapes[1]:
        raise CheckFailed(f"{backend} answers with the shapes {shapes[1]}, the model with {shapes[0]}")
    ours, theirs = (np.concatenate([x.reshape(-1, x.shape[-1]) for x in xs]) for xs in (expected, got))
    if not np.isfinite(theirs).all():
        raise CheckFailed(f"{backend} answers with numbers that are not finite")
    ratio = min(snr_db(ours[:, :4], theirs[:, :4]), snr_db(ours[:, 4:], theirs[:, 4:]))
    same = float((ours[:, 5:].argmax(1) == theirs[:, 5:].argmax(1)).mean())
    largest = float(np.abs(np.float64(ours) - theirs).max())
    return Parity(same, ratio, largest, len(ours), backend, dtype)


def _of_detections(
    predictions: NDArray[np.float32], got: Sequence[NDArray[np.float64]], nms: Nms, session: Session
) -> Parity:
    """Whether every detection is one of the model's candidates, and the scores fall as those of our suppression do.

    Not whether they are the same ones: of boxes with equal scores, and a network that has learned little makes many,
    rounding says which stays.
    """
    wanted = [one[:, 4] for one in nms.batch(predictions)]
    most = max([1, *map(len, wanted), *map(len, got)])
    curves = [np.stack([np.pad(s, (0, most - len(s))) for s in side]) for side in (wanted, [g[:, 4] for g in got])]
    off = [_off(*pair) for pair in zip(predictions, got, strict=True)]
    rows = np.concatenate(off)
    near = float((rows < NEAR).mean()) if len(rows) else 1.0
    largest = float(rows.max(initial=0.0))
    return Parity(near, snr_db(*curves), largest, max(1, len(rows)), session.backend, session.dtype)


def _off(predictions: NDArray[np.float32], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each detection is from the nearest candidate of its class: pixels, or thousandths of the score."""
    center, half = predictions[:, :2], predictions[:, 2:4] / 2
    corners, classes = np.concatenate([center - half, center + half], axis=1), _scores(predictions)
    far = np.full(len(rows), np.inf)
    for i, row in enumerate(rows):
        score = 1000 * np.abs(classes[:, int(row[5])] - row[4])
        far[i] = np.maximum(np.abs(corners - row[:4]).max(1), score).min()
    return far


def _scores(predictions: NDArray[np.float32]) -> NDArray[np.float32]:
    """The score of each class, (..., N, 5 + K) -> (..., N, K)."""
    objectness, classes = predictions[..., 4:5], predictions[..., 5:]
    return objectness if classes.shape[-1] == 1 else objectness * classes


def _thresholds(predictions: NDArray[np.float32], form: Form) -> Nms:
    """Those of validation; less confidence where the model has too little of it for any detection."""
    least = float(_scores(predictions).max(axis=(1, 2)).min()) / 2
    known = {"multi_label": form.multi_label, "max_kept": form.max_detections}
    return replace(CHECKED, confidence=min(CHECKED.confidence, least), **known)  # type: ignore[arg-type]
