# SPDX-License-Identifier: Apache-2.0
"""A detector of the transformers library that is ready to answer, with its own image processor before and behind it.

Pictures of one size after preparing are run together and others by themselves, never padded to each other: many of
these models see the padding, so that an answer would depend on what else is in the batch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featherweight import sources
from featherweight.doors import door
from featherweight.errors import InputError, OptionError
from featherweight.runners import check_threads
from featherweight.runtime.preprocess import BUDGET
from featherweight.runtime.record import TASKS

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

TORCH = "torch"


class Prepared(NamedTuple):
    """What the model takes of one picture, and the picture's height and width."""

    inputs: Mapping[str, Tensor]  # each (1, ...)
    size: tuple[int, int]


class DetectorRunner:
    """A detector of transformers as it is; its mode and weights are left alone."""

    backend, task = TORCH, TASKS[1]

    def __init__(
        self, model: nn.Module, processor: Any, *, device: Any = None, threads: int | None = None, classes: Any = ()
    ) -> None:
        import torch

        from featherweight.models.pretrained import labels_of
        from featherweight.runners_torch import first_weight, placed

        told = dict(getattr(getattr(model, "config", None), "id2label", None) or {})
        if classes and told and len(classes) != len(told):
            raise OptionError("classes", f"there are {len(classes)} names, but the model has {len(told)} classes")
        self.labels: dict[int, str] = dict(enumerate(classes)) if classes else told
        self.classes = tuple(classes) or labels_of(model)
        self.processor, self.threads = processor, threads or torch.get_num_threads()
        self.model = placed(model, device)
        self.dtype = str(first_weight(self.model).dtype).removeprefix("torch.")

    def prepare(self, picture: NDArray[np.uint8]) -> Prepared:
        """One picture (H, W, 3) -> what the model takes."""
        from PIL import Image

        height, width = picture.shape[:2]
        self._check_strip(height, width)
        with door("picture", "bad_dimensions", f"{height} x {width} cannot be prepared for this model"):
            inputs = self.processor(images=[Image.fromarray(picture)], return_tensors="pt")
        return Prepared(dict(inputs), (height, width))

    def detect(self, batch: Sequence[Prepared], threshold: float) -> list[NDArray[np.float64]]:
        """Prepared pictures -> for each its detections (n, 6) [x1, y1, x2, y2, score, class], in its own pixels."""
        alike: dict[Any, list[int]] = {}
        for number, one in enumerate(batch):
            alike.setdefault(tuple((name, value.shape) for name, value in one.inputs.items()), []).append(number)
        found: dict[int, NDArray[np.float64]] = {}
        for numbers in alike.values():
            rows = self._together([batch[number] for number in numbers], threshold)
            found |= dict(zip(numbers, rows, strict=True))
        return [found[number] for number in range(len(batch))]

    def _together(self, batch: Sequence[Prepared], threshold: float) -> list[NDArray[np.float64]]:
        """The same of pictures whose inputs have one shape."""
        import torch

        from featherweight.modes import evaluating
        from featherweight.runners_torch import first_weight, threads_of_torch

        weight = first_weight(self.model)

        def joined(name: str) -> Tensor:
            values = torch.cat([one.inputs[name] for one in batch]).to(weight.device)
            return values.to(weight.dtype) if values.is_floating_point() else values

        given = {name: joined(name) for name in batch[0].inputs}
        with threads_of_torch(self.threads), evaluating(self.model), torch.inference_mode():
            output = self.model(**given)
            _check_finite(output.get(name) for name in ("logits", "pred_boxes"))
            sizes = torch.tensor([one.size for one in batch], dtype=torch.int32, device=weight.device)
            found = self.processor.post_process_object_detection(output, threshold, sizes)
        return [_rows(one) for one in found]

    def _check_strip(self, height: int, width: int) -> None:
        """InputError for a picture so long that no memory would hold it, where its shorter side alone is bounded."""
        size = dict(getattr(self.processor, "size", None) or {})
        edge, longest = size.get("shortest_edge"), size.get("longest_edge")
        if edge and not longest and edge * edge * max(height, width) > BUDGET * min(height, width):
            text = f"{height} x {width} would be more than {BUDGET:,} pixels with a side of {edge}; give parts of it"
            raise InputError("picture", "too_large", text)


def _rows(found: Mapping[str, torch.Tensor]) -> NDArray[np.float64]:
    import torch

    boxes, scores, labels = (found[name].detach().cpu().double() for name in ("boxes", "scores", "labels"))
    return np.asarray(torch.cat([boxes.reshape(-1, 4), scores[:, None], labels[:, None]], dim=1), np.float64)


def _check_finite(answers: Any) -> None:
    import torch

    for one in answers:
        if one is not None and not torch.isfinite(one).all():
            raise OptionError(
                "model", "answers with numbers that are not finite; give it in float32, or mend its weights"
            )


def open_detector(
    model: Any,
    *,
    backend: str = "auto",
    device: Any = None,
    threads: int | None = None,
    classes: Sequence[str] = (),
    preprocess: Any = None,
    arch: str | None = None,
    running: Mapping[str, Any] | None = None,
) -> DetectorRunner | None:
    """A runner for a detector of the transformers library, a folder or a module; None where the model is another one.

    preprocess: its image processor, instead of what the folder or the module has.
    """
    folder = Path(model) if isinstance(model, (str, os.PathLike)) else None
    if not (sources.is_detector_folder(folder) if folder is not None else _is_module(model)):
        return None
    from featherweight.models import pretrained_detectors as detectors

    if backend not in ("auto", TORCH):
        raise OptionError("backend", f"{backend} runs exported files; a detector of transformers runs in torch")
    if arch is not None:
        raise OptionError("arch", "goes with a weights file; this is a detector of transformers")
    check_threads(threads)
    given = None if preprocess is None else detectors.checked(preprocess)
    built = model if folder is None else detectors.load(folder, processor=given)
    processor = given or detectors.processor_of(built)
    if processor is None:
        text = "is missing: this detector does not say how its pictures are prepared; give its image processor"
        raise OptionError("image_processor", text)
    return DetectorRunner(built, processor, device=device, threads=threads, classes=tuple(classes))


def _is_module(model: Any) -> bool:
    """Whether this is a detector of transformers in memory; nothing is imported to find out."""
    import sys

    if "transformers" not in sys.modules or "torch" not in sys.modules:
        return False
    from featherweight.models.pretrained_detectors import is_detector

    return is_detector(model)
