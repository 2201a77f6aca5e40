# SPDX-License-Identifier: Apache-2.0
"""Detections of a model that is ready to answer: decoded, scored and suppressed, alike for torch and exported files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import InputError, OptionError
from featherweight.runtime.maps import Maps
from featherweight.runtime.nms import DETECTIONS, PREDICTIONS, Nms, by_image

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.objects import Objects
    from featherweight.data.scenes import Scenes
    from featherweight.runners import Runner

Found = list[NDArray[np.float64]]
NOT_FINITE = "answers with numbers that are not finite; export it in float32"


def of_torch(model: nn.Module, batch: Tensor, nms: Nms, *, augment: bool) -> Found:
    """Images (B, 3, H, W) of the model's type -> detections of each. What half precision cannot say is said again."""
    import copy

    import torch

    with torch.inference_mode():
        found = _decoded(model, batch, augment)
        if not torch.isfinite(found).all() and batch.dtype in (torch.float16, torch.bfloat16):
            found = _decoded(copy.deepcopy(model).float(), batch.float(), augment)
    predictions = np.asarray(found.cpu(), np.float32)
    if not np.isfinite(predictions).all():
        raise OptionError("model", "answers with numbers that are not finite; its weights are broken")
    return nms.batch(predictions)


def _decoded(model: nn.Module, batch: Tensor, augment: bool) -> Tensor:
    from featherweight.tasks.detection.decode import decode
    from featherweight.tasks.detection.detectors import detector_of
    from featherweight.tasks.detection.tta import augmented

    inner = detector_of(model)
    if augment:
        return augmented(inner, batch)
    return decode(model(batch), inner.head.anchors, inner.head.strides)


def of_file(
    answers: Sequence[Mapping[str, NDArray[Any]]],
    counts: Sequence[int],
    nms: Nms,
    path: object,
    *,
    maps: Maps | None = None,
) -> Found:
    """The outputs of an exported file for each part of a batch -> detections of each picture. maps: of raw ones."""
    found: Found = []
    for part, count in zip(answers, counts, strict=True):
        if maps is not None:
            levels = [part[name] for name in maps.names]
            if not all(np.isfinite(level[..., 4]).all() for level in levels):  # suppression drops the other rows
                raise InputError(path, "non_finite", NOT_FINITE)
            found += [nms(maps.predictions([level[i] for level in levels], nms.confidence)) for i in range(count)]
        elif DETECTIONS in part:
            found += [_allowed(one, nms) for one in by_image(part[DETECTIONS], count)]
        elif PREDICTIONS in part:
            if not np.isfinite(part[PREDICTIONS]).all():
                raise InputError(path, "non_finite", NOT_FINITE)
            found += nms.batch(part[PREDICTIONS])
        else:
            text = f"answers with {', '.join(part)}; detections come from a file that featherweight exported"
            raise InputError(path, "bad_schema", text)
    return found


def _allowed(rows: NDArray[np.float64], nms: Nms) -> NDArray[np.float64]:
    """What the options still take away of rows that the file has suppressed, the best of a picture first."""
    rows = rows if nms.classes is None else rows[np.isin(rows[:, 5], nms.classes)]
    if not nms.multi_label and len(rows):
        first = np.unique(rows[:, :4], axis=0, return_index=True)[1]  # a box's further classes come after its best
        rows = rows[np.sort(first)]
    return nms.suppress(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64))


def predictions(
    runner: Runner,
    scenes: Scenes,
    nms: Nms,
    *,
    batch_size: int,
    places: NDArray[np.int64] | None = None,
    limit: int | None = None,
) -> tuple[list[NDArray[np.float64]], list[Objects]]:
    """Of `limit` evenly spaced pictures the detections (n, 6) in their own pixels, and what lies in them.

    places: the model's number of each class of the data, where it is another one.
    """
    count = min(len(scenes), limit or len(scenes))
    if not count:
        raise OptionError("data", "this part has no pictures")
    chosen = (np.arange(count) * len(scenes) // count).tolist()
    rows: list[NDArray[np.float64]] = []
    truth: list[Objects] = []
    for start in range(0, count, batch_size):
        some = chosen[start : start + batch_size]
        pictures = [scenes.picture(i) for i in some]
        detected = runner.detect(np.stack([runner.preprocess(picture) for picture in pictures]), nms)
        for i, picture, found in zip(some, pictures, detected, strict=True):
            rows.append(runner.preprocess.place(*picture.shape[:2]).detections(found))
            known = scenes.objects(i)
            truth.append(known if places is None else replace(known, labels=places[known.labels]))
    return rows, truth
