# SPDX-License-Identifier: Apache-2.0
"""An exported file that is ready to answer, with ONNX Runtime or OpenVINO and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight import runners_detection, sources
from featherweight.errors import InputError, OptionError
from featherweight.runners import KEPT, Answer, mask
from featherweight.runtime.maps import maps_in
from featherweight.runtime.metadata import names_in, preprocess_in
from featherweight.runtime.nms import THRESHOLDS, Nms, thresholds
from featherweight.runtime.preprocess import Preprocess
from featherweight.runtime.record import TASKS


class FileRunner:
    """An exported file; its metadata say the names of the classes and how pictures are prepared."""

    def __init__(
        self,
        source: sources.Source,
        *,
        threads: int | None = None,
        classes: tuple[str, ...] = (),
        preprocess: Preprocess | None = None,
        running: Mapping[str, Any] | None = None,
    ) -> None:
        from featherweight.runtime.session import open_session

        self.path = path = source.path
        self.session = open_session(path or "", backend=source.backend, threads=threads, **(running or {}))
        told = self.session.metadata
        self.backend, self.dtype = self.session.backend, self.session.dtype
        self.threads = self.session.threads
        self.task = told.get("task", TASKS[0])
        self.classes = classes or names_in(told, path)
        self.preprocess = preprocess or preprocess_in(told, path)
        self.patches = int(told["patches"]) if told.get("patches", "").isdigit() else None
        port, *others = self.session.inputs
        self.inputs = tuple(other.name for other in others)
        if set(self.inputs) - set(THRESHOLDS) or len(port.shape) != 4 or not self.session.outputs:
            raise InputError(path, "bad_shape", "does not take one batch of pictures (B, 3, H, W)")
        size = self.preprocess.size
        if any(known not in (None, wanted) for known, wanted in zip(port.shape[2:], size, strict=True)):
            text = f"takes pictures of {port.shape[2:]}, but its metadata say {size}"
            raise InputError(path, "shape_mismatch", text)
        names = [output.name for output in self.session.outputs]
        self.maps = maps_in(told, names, path)
        self.output = "logits" if "logits" in names else names[0]
        self.fixed = port.shape[0]

    def run(self, images: NDArray[np.float32], *, tokens: bool = False) -> Answer:
        """Images (B, 3, H, W) -> the answers. A file made for a fixed batch gets it filled up."""
        port = self.session.inputs[0]
        size = self.fixed or len(images)
        images = images.astype(port.dtype)
        parts = [self._run(port.name, images[i : i + size], size) for i in range(0, len(images), size)]
        logits = np.concatenate([part[self.output] for part in parts]).astype(np.float32)
        if not tokens or self.patches is None:
            return Answer(logits)
        told = sorted(output.name for output in self.session.outputs if output.name.startswith(KEPT))
        kept = tuple(mask(np.concatenate([part[name] for part in parts]), self.patches) for name in told)
        return Answer(logits, kept or None)

    def detect(self, images: NDArray[np.float32], nms: Nms, *, augment: bool = False) -> list[NDArray[np.float64]]:
        """Images (B, 3, H, W) -> detections of each."""
        if augment:
            raise OptionError("augment", f"needs the torch model; {self.backend} runs an exported file")
        port, told = self.session.inputs[0], thresholds(nms, self.inputs)
        size = self.fixed or len(images)
        parts = [images[i : i + size].astype(port.dtype) for i in range(0, len(images), size)]
        answers = [self._run(port.name, part, size, told) for part in parts]
        return runners_detection.of_file(answers, [len(part) for part in parts], nms, self.path, maps=self.maps)

    def _run(
        self, name: str, images: NDArray[Any], size: int, told: Mapping[str, NDArray[Any]] | None = None
    ) -> dict[str, NDArray[Any]]:
        fill = np.repeat(images[-1:], size - len(images), axis=0)
        found = self.session.run({name: np.concatenate([images, fill]) if len(fill) else images, **(told or {})})
        return {key: value if told else value[: len(images)] for key, value in found.items()}
