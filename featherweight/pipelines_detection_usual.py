# SPDX-License-Identifier: Apache-2.0
"""`pipeline("object-detection")` of a detector of the transformers library: that library's answers, number for number.

The image processor decides what is found, so `threshold` is the one option of a call. Objects come in the order in
which the library gives them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.doors import image
from featherweight.errors import OptionError, closest
from featherweight.pictures import check_batch_size, each, load
from featherweight.pipelines_detection import Objects, worded
from featherweight.pipelines_usual import of_call
from featherweight.runners_transformers import DetectorRunner, Prepared

THRESHOLD = 0.5


class UsualDetection:
    """Pictures to objects. `runner` and `classes` can be looked at; call it with pictures."""

    OPTIONS = ("threshold",)
    task = "object-detection"

    def __init__(
        self, runner: DetectorRunner, *, batch_size: int = 1, max_pixels: int = image.MAX_PIXELS, **options: Any
    ) -> None:
        self.runner, self.batch_size, self.max_pixels, self.options = runner, batch_size, max_pixels, options
        self.classes = runner.classes
        _threshold(**options)

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """The answer for one picture, a list of answers for a list, a generator of answers for whatever else yields.

        A picture is a path, bytes, a PIL image, a uint8 array (H, W, 3) or (H, W), or a tensor (3, H, W). threshold: of
        the score, 0.5 unless given.
        """
        chosen = {"batch_size": batch_size, **of_call(options)}
        return each(inputs, lambda pictures: map(self.postprocess, self.detections(pictures, **chosen)))

    def preprocess(self, picture: Any) -> Prepared:
        """One picture -> what the model takes of it."""
        return self.runner.prepare(load(picture, max_pixels=self.max_pixels))

    def forward(self, batch: Sequence[Prepared], *, threshold: float = THRESHOLD) -> list[NDArray[np.float64]]:
        """Prepared pictures -> detections (n, 6) of each, [x1, y1, x2, y2, score, class] in pixels of the picture."""
        return self.runner.detect(batch, threshold)

    def postprocess(self, detections: NDArray[np.float64]) -> Objects:
        """Detections (n, 6) in pixels of the picture -> [{"score", "label", "box"}, ...]; corners are cut to ints."""
        return worded(detections, self.label)

    def detections(
        self, pictures: Iterable[Any], *, batch_size: int | None = None, **options: Any
    ) -> Iterator[NDArray[np.float64]]:
        """For each picture its detections (n, 6) [x1, y1, x2, y2, score, class], floats in pixels of the picture."""
        size, threshold = self.batch_size if batch_size is None else batch_size, _threshold(**self.options | options)
        check_batch_size(size)
        return self._stream(iter(pictures), size, threshold)

    def label(self, number: int) -> str:
        """The name of a class; its number where the model has no name for it."""
        return self.runner.labels.get(number, str(number))

    def _stream(self, waiting: Iterator[Any], size: int, threshold: float) -> Iterator[NDArray[np.float64]]:
        while batch := [self.preprocess(picture) for picture in islice(waiting, size)]:
            yield from self.forward(batch, threshold=threshold)


def _threshold(*, threshold: float = THRESHOLD, **unknown: Any) -> float:
    """The option of a call, checked."""
    for key in unknown:
        known = (*UsualDetection.OPTIONS, "batch_size")
        text = f"no such option of a detector of transformers; {closest(key, known)}Known: {', '.join(known)}"
        raise OptionError(key, text)
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise OptionError("threshold", f"must be 0..1, not {threshold!r}")
    return float(threshold)
