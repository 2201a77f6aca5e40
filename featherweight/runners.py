# SPDX-License-Identifier: Apache-2.0
"""A model that is ready to answer: batch in, logits out, alike for torch, ONNX Runtime and OpenVINO.

A runner knows the class names and the preprocessing from the model's own record or the file's metadata. Torch is
imported for torch models only. Not here: reading pictures and wording answers (pipelines).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from featherweight import sources
from featherweight.errors import OptionError
from featherweight.runtime.nms import Nms
from featherweight.runtime.preprocess import Preprocess

if TYPE_CHECKING:
    from torch import nn

KEPT = "kept_tokens"  # the output of an exported file that tells which patches were left, (B, n) places


class Answer(NamedTuple):
    """Logits (B, K); which patches (B, N) each stage that dropped tokens has left, or None if untold."""

    logits: NDArray[np.float32]
    kept: tuple[NDArray[np.bool_], ...] | None = None


class Runner(Protocol):
    """What a pipeline asks of a model."""

    task: str
    backend: str
    dtype: str
    threads: int
    classes: tuple[str, ...]
    preprocess: Preprocess

    def run(self, images: NDArray[np.float32], *, tokens: bool = False) -> Answer:
        """Images (B, 3, H, W) -> the answers, with the kept tokens if they are asked for and told."""
        ...

    def detect(self, images: NDArray[np.float32], nms: Nms, *, augment: bool = False) -> list[NDArray[np.float64]]:
        """Images (B, 3, H, W) -> of a detector, detections (n, 6) of each, in pixels of the input."""
        ...


def open_runner(
    model: Any,
    *,
    backend: str = "auto",
    device: Any = None,
    threads: int | None = None,
    classes: Sequence[str] = (),
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    arch: str | None = None,
    running: Mapping[str, Any] | None = None,
) -> Runner:
    """A runner for a name, path or module; `classes` and `preprocess` stand in where the model does not say.

    running: how an exported file is run: options of `open_session`.
    """
    check_threads(threads)
    from featherweight.runners_file import FileRunner
    from featherweight.runners_torch import TorchRunner

    if isinstance(preprocess, Mapping):
        preprocess = Preprocess.from_dict(preprocess)
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise OptionError(
            "image_processor", f"{type(preprocess).__name__} is a detector's of transformers; this is none"
        )
    given: dict[str, Any] = {"classes": tuple(classes), "preprocess": preprocess}
    if not isinstance(model, (str, sources.Source)) and not hasattr(model, "__fspath__"):
        return TorchRunner(_module(model, backend), device=device, threads=threads, **given)
    source = model if isinstance(model, sources.Source) else sources.find(model, backend=backend, arch=arch)
    if source.backend != "torch":
        if str(device) not in ("None", "-1", "cpu", "auto"):
            raise OptionError("device", f"{source.backend} runs on the cpu here, not on {device!r}")
        return FileRunner(source, threads=threads, running=running, **given)
    built = sources.module(source)
    given["preprocess"] = preprocess or sources.preprocess_of(source, built)
    return TorchRunner(built, device=device, threads=threads, **given)


def check_threads(threads: object) -> None:
    """OptionError for what is no number of threads."""
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise OptionError("threads", f"must be 1 or more, not {threads!r}")


def _module(model: Any, backend: str) -> nn.Module:
    """A module of the user's, checked."""
    import sys

    torch_loaded = sys.modules.get("torch")
    if torch_loaded is None or not isinstance(model, torch_loaded.nn.Module):
        raise TypeError(f"model must be a path, a name or a torch module, not {type(model).__name__}")
    if backend not in ("auto", "torch"):
        text = f"{backend} runs exported files; this model is in memory: export it first, or use torch"
        raise OptionError("backend", text)
    return model  # type: ignore[no-any-return]


def mask(places: NDArray[np.integer[Any]], count: int) -> NDArray[np.bool_]:
    """Places (B, n) of what was kept -> (B, count), True where kept."""
    kept = np.zeros((len(places), count), dtype=bool)
    np.put_along_axis(kept, places.astype(np.int64), True, axis=1)
    return kept
