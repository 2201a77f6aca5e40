# SPDX-License-Identifier: Apache-2.0
"""`pipeline("object-detection")`: a picture in, its objects out, shaped as the transformers library shapes them.

One picture gives a list of {"score", "label", "box"}, best first, the box as whole pixels of the picture as it was
given. Pictures much larger than the input can be looked at in tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.doors import image
from featherweight.errors import OptionError, closest
from featherweight.pictures import check_batch_size, each, load
from featherweight.pipelines_usual import of_call
from featherweight.runners import Runner
from featherweight.runtime.letterbox import Placement
from featherweight.runtime.nms import Nms
from featherweight.runtime.tiles import tiles

Objects = list[dict[str, Any]]
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Call:
    """The options of a call, checked."""

    threshold: float = 0.5  # of the score
    iou: float = 0.45  # what overlaps a better box of its class by more is dropped
    max_detections: int = 300
    multi_label: bool = False  # several classes for one box
    agnostic: bool = False  # a box drops those of other classes too
    augment: bool = False  # each picture at three sizes, one of them mirrored; torch models only
    tile: int | None = None  # pixels of the picture in a tile; None looks at the whole alone
    overlap: float = 0.2  # of neighboring tiles

    def __post_init__(self) -> None:
        for name in ("threshold", "iou"):
            if not isinstance(value := getattr(self, name), (int, float)) or not 0 <= value <= 1:
                raise OptionError(name, f"must be 0..1, not {value!r}")
        if not isinstance(self.overlap, (int, float)) or not 0 <= self.overlap <= 0.9:
            raise OptionError("overlap", f"must be 0..0.9 of a tile, not {self.overlap!r}")
        for name, least in (("max_detections", 1), ("tile", 32)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise OptionError(name, f"must be {least} or more, not {value!r}")

    @property
    def nms(self) -> Nms:
        """The suppression these options ask for."""
        return Nms(
            self.threshold, self.iou, multi_label=self.multi_label, agnostic=self.agnostic, max_kept=self.max_detections
        )


class ObjectDetection:
    """Pictures to objects. `runner` and `classes` can be looked at; call it with pictures."""

    OPTIONS = tuple(field.name for field in fields(Call))
    task = "object-detection"

    def __init__(
        self, runner: Runner, *, batch_size: int = 1, max_pixels: int = image.MAX_PIXELS, **options: Any
    ) -> None:
        self.runner, self.batch_size, self.max_pixels, self.options = runner, batch_size, max_pixels, options
        self.classes = runner.classes
        _call(options)

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """The answer for one picture, a list of answers for a list, a generator of answers for whatever else yields.

        A picture is a path, bytes, a PIL image, a uint8 array (H, W, 3) or (H, W), or a tensor (3, H, W). The options
        are those of `Call`.
        """
        size, call = self.batch_size if batch_size is None else batch_size, _call({**self.options, **of_call(options)})
        check_batch_size(size)
        return each(inputs, lambda pictures: self._stream(pictures, size, call))

    def preprocess(self, picture: Any) -> tuple[NDArray[np.float32], Placement]:
        """One picture -> the model's input (3, h, w) and where in it the picture lies."""
        return self._placed(load(picture, max_pixels=self.max_pixels))

    def forward(self, images: NDArray[np.float32], *, nms: Nms | None = None) -> list[NDArray[np.float64]]:
        """Inputs (B, 3, h, w) -> detections (n, 6) of each, [x1, y1, x2, y2, score, class] in pixels of the input."""
        return self.runner.detect(images, nms or Call().nms)

    def postprocess(self, detections: NDArray[np.float64]) -> Objects:
        """Detections (n, 6) in pixels of the picture -> [{"score", "label", "box"}, ...]; corners are cut to ints."""
        return worded(detections, self.label)

    def detections(self, pictures: Iterable[Any], *, batch_size: int | None = None, **options: Any) -> Iterator[Any]:
        """For each picture its detections (n, 6) [x1, y1, x2, y2, score, class], floats in pixels of the picture."""
        call = _call({**self.options, **options})
        waiting = (load(picture, max_pixels=self.max_pixels) for picture in pictures)
        size = self.batch_size if batch_size is None else batch_size
        check_batch_size(size)
        while batch := list(islice(waiting, size)):
            yield from (self._tiled(one, size, call) for one in batch) if call.tile else self._whole(batch, call)

    def label(self, number: int) -> str:
        """The name of a class; its number where the model has no names."""
        return self.classes[number] if number < len(self.classes) else str(number)

    def _stream(self, pictures: Iterable[Any], size: int, call: Call) -> Iterator[Objects]:
        chosen = {field.name: getattr(call, field.name) for field in fields(call)}
        return (self.postprocess(found) for found in self.detections(pictures, batch_size=size, **chosen))

    def _whole(self, pictures: list[Picture], call: Call) -> Iterator[NDArray[np.float64]]:
        placed = [self._placed(picture) for picture in pictures]
        found = self.runner.detect(np.stack([images for images, _ in placed]), call.nms, augment=call.augment)
        for (_, placement), rows in zip(placed, found, strict=True):
            yield placement.detections(rows)

    def _tiled(self, picture: Picture, size: int, call: Call) -> NDArray[np.float64]:
        """The picture as a whole and in tiles; what both see is seen once."""
        places = tiles(picture.shape[0], picture.shape[1], size=int(call.tile or 0), overlap=call.overlap)
        rows = [next(self._whole([picture], call))]
        for start in range(0, len(places), size):
            some = places[start : start + size]
            parts = [picture[top:bottom, left:right] for left, top, right, bottom in some]
            for (left, top, _, _), found in zip(some, self._whole(parts, call), strict=True):
                rows.append(found + np.array([left, top, left, top, 0, 0], np.float64))
        joined = np.concatenate(rows)
        return call.nms.suppress(joined[:, :4], joined[:, 4], joined[:, 5].astype(np.int64))

    def _placed(self, picture: Picture) -> tuple[NDArray[np.float32], Placement]:
        preprocess = self.runner.preprocess
        return preprocess(picture), preprocess.place(picture.shape[0], picture.shape[1])


def worded(detections: NDArray[np.float64], label: Callable[[int], str]) -> Objects:
    """Detections (n, 6) in pixels of the picture -> [{"score", "label", "box"}, ...]; corners are cut to ints."""
    return [
        {
            "score": float(score),
            "label": label(int(number)),
            "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), map(int, box), strict=True)),
        }
        for *box, score, number in detections.tolist()
    ]


def _call(options: Mapping[str, Any]) -> Call:
    for key in options:
        if key not in ObjectDetection.OPTIONS:
            known = (*ObjectDetection.OPTIONS, "batch_size")
            raise OptionError(key, f"no such option of a call; {closest(key, known)}Known: {', '.join(known)}")
    return Call(**options)
