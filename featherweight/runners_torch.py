# SPDX-License-Identifier: Apache-2.0
"""A torch module that is ready to answer, as it is: its mode and weights are left alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featherweight import runners_detection, sources
from featherweight.errors import OptionError
from featherweight.runners import Answer, mask
from featherweight.runtime.nms import Nms
from featherweight.runtime.preprocess import Preprocess
from featherweight.runtime.record import TASKS

if TYPE_CHECKING:
    import torch
    from torch import nn


class TorchRunner:
    """A torch module as it is; its mode and weights are left alone."""

    backend = "torch"

    def __init__(
        self,
        model: nn.Module,
        *,
        device: Any = None,
        threads: int | None = None,
        classes: tuple[str, ...] = (),
        preprocess: Preprocess | None = None,
    ) -> None:
        import torch

        from featherweight import artifact
        from featherweight.tasks.detection.detectors import detector_in

        record = artifact.record_of(model)
        self.task = record.task if record else TASKS[int(detector_in(model) is not None)]
        self.classes = classes or (record.classes if record else ()) or _named_labels(model)
        told = record.preprocess if record else sources.from_timm(getattr(model, "pretrained_cfg", None))
        found = preprocess or told
        if found is None:
            text = "this model does not say how its pictures are prepared; give Preprocess(size=(224, 224), ...)"
            raise OptionError("preprocess", text)
        self.function = "sigmoid" if _several_labels(model) else None
        self.preprocess, self.threads = found, threads or torch.get_num_threads()
        self.model = placed(model, device)
        self.dtype = str(first_weight(self.model).dtype).removeprefix("torch.")

    def run(self, images: NDArray[np.float32], *, tokens: bool = False) -> Answer:
        """Images (B, 3, H, W) -> the answers."""
        import torch

        from featherweight.modes import evaluating

        quiet = torch.inference_mode()
        with threads_of_torch(self.threads), evaluating(self.model), quiet, _watched(self.model, tokens) as seen:
            output = self.model(self._batch(images))
            logits = getattr(output, "logits", output)
            answer = np.asarray(logits.float().cpu(), np.float32)
            return Answer(answer, _masks(seen) if seen else None)

    def detect(self, images: NDArray[np.float32], nms: Nms, *, augment: bool = False) -> list[NDArray[np.float64]]:
        """Images (B, 3, H, W) -> detections of each; augment: each at three sizes."""
        from featherweight.modes import evaluating

        with threads_of_torch(self.threads), evaluating(self.model):
            return runners_detection.of_torch(self.model, self._batch(images), nms, augment=augment)

    def _batch(self, images: NDArray[np.float32]) -> torch.Tensor:
        import torch

        weight = first_weight(self.model)
        return torch.from_numpy(images).to(weight.device, weight.dtype if weight.is_floating_point() else torch.float32)


def first_weight(model: nn.Module) -> torch.Tensor:
    import torch

    return next(iter(model.parameters()), torch.empty(0))


def _named_labels(model: nn.Module) -> tuple[str, ...]:
    """The class names of a transformers model."""
    named = getattr(getattr(model, "config", None), "id2label", None)
    return tuple(str(named[i]) for i in range(len(named))) if isinstance(named, Mapping) and named else ()


def _several_labels(model: nn.Module) -> bool:
    """Whether a transformers model says that a picture may have several labels."""
    return getattr(getattr(model, "config", None), "problem_type", None) == "multi_label_classification"


def placed(model: nn.Module, device: Any) -> nn.Module:
    """The model on the device; a copy if it has to move."""
    import copy

    import torch

    if device is None:
        return model
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(device, int) and not isinstance(device, bool):
        device = "cpu" if device < 0 else f"cuda:{device}"
    try:
        wanted = torch.device(f"cuda:{device}" if isinstance(device, str) and device.isdigit() else device)
    except (RuntimeError, TypeError):
        raise OptionError("device", f"no {device!r}; give cpu, cuda, cuda:0, 0 or auto") from None
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise OptionError("device", f"no {str(wanted)!r} on this machine; give cpu")
    here = first_weight(model).device
    stays = here == wanted or (wanted.index is None and here.type == wanted.type)
    return model if stays else copy.deepcopy(model).to(wanted)


@contextlib.contextmanager
def threads_of_torch(number: int | None) -> Iterator[None]:
    """That many threads for torch; the number belongs to the process, so it is put back."""
    import torch

    before = torch.get_num_threads()
    if number is None or number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _watched(model: nn.Module, tokens: bool) -> Iterator[dict[str, Any]]:
    """While inside, a token-dropping model tells what it kept; the dict stays empty for any other."""
    from featherweight.methods import dynamicvit

    seen: dict[str, Any] = {}
    found = dynamicvit.all_sparse(model) if tokens else []
    if len(found) != 1:
        yield seen
        return
    sparse = found[0]

    def told(*_: Any) -> None:
        seen.update(places=list(sparse.aside.places), count=int(sparse.aside.count))

    handle = sparse.register_forward_hook(told)
    try:
        with dynamicvit.recording(model):
            yield seen
    finally:
        handle.remove()


def _masks(seen: Mapping[str, Any]) -> tuple[NDArray[np.bool_], ...]:
    places: list[torch.Tensor] = seen["places"]
    return tuple(mask(place.cpu().numpy(), int(seen["count"])) for place in places)
