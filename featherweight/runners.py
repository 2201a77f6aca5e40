# SPDX-License-Identifier: Apache-2.0
"""A model that is ready to answer: batch in, logits out, alike for torch, ONNX Runtime and OpenVINO.

A runner knows the class names and the preprocessing from the model's own record or the file's metadata. Torch is
imported for torch models only. Not here: reading pictures and wording answers (pipelines).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from featherweight import sources
from featherweight.errors import InputError, OptionError
from featherweight.runtime.metadata import names_in, preprocess_in
from featherweight.runtime.preprocess import Preprocess
from featherweight.runtime.record import TASKS

if TYPE_CHECKING:
    import torch
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


def open_runner(
    model: Any,
    *,
    backend: str = "auto",
    device: Any = None,
    threads: int | None = None,
    classes: Sequence[str] = (),
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    arch: str | None = None,
) -> Runner:
    """A runner for a name, path or module; `classes` and `preprocess` stand in where the model does not say."""
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise OptionError("threads", f"must be 1 or more, not {threads!r}")
    if isinstance(preprocess, Mapping):
        preprocess = Preprocess.from_dict(preprocess)
    given: dict[str, Any] = {"classes": tuple(classes), "preprocess": preprocess}
    if not isinstance(model, (str, sources.Source)) and not hasattr(model, "__fspath__"):
        return TorchRunner(_module(model, backend), device=device, threads=threads, **given)
    source = model if isinstance(model, sources.Source) else sources.find(model, backend=backend, arch=arch)
    if source.backend != "torch":
        if str(device) not in ("None", "-1", "cpu", "auto"):
            raise OptionError("device", f"{source.backend} runs on the cpu here, not on {device!r}")
        return FileRunner(source, threads=threads, **given)
    built = sources.module(source)
    given["preprocess"] = preprocess or sources.preprocess_of(source, built)
    return TorchRunner(built, device=device, threads=threads, **given)


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

        record = artifact.record_of(model)
        self.task = record.task if record else TASKS[0]
        self.classes = classes or (record.classes if record else ()) or _named_labels(model)
        told = record.preprocess if record else sources.from_timm(getattr(model, "pretrained_cfg", None))
        found = preprocess or told
        if found is None:
            text = "this model does not say how its pictures are prepared; give Preprocess(size=(224, 224), ...)"
            raise OptionError("preprocess", text)
        self.preprocess, self.threads = found, threads or torch.get_num_threads()
        self.model = _placed(model, device)
        self.dtype = str(_weight(self.model).dtype).removeprefix("torch.")

    def run(self, images: NDArray[np.float32], *, tokens: bool = False) -> Answer:
        """Images (B, 3, H, W) -> the answers."""
        import torch

        from featherweight.modes import evaluating

        weight = _weight(self.model)
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        batch = torch.from_numpy(images).to(weight.device, dtype)
        quiet = torch.inference_mode()
        with _threads(self.threads), evaluating(self.model), quiet, _watched(self.model, tokens) as seen:
            output = self.model(batch)
            logits = getattr(output, "logits", output)
            answer = np.asarray(logits.float().cpu(), np.float32)
            return Answer(answer, _masks(seen) if seen else None)


def _weight(model: nn.Module) -> torch.Tensor:
    import torch

    return next(iter(model.parameters()), torch.empty(0))


def _named_labels(model: nn.Module) -> tuple[str, ...]:
    """The class names of a transformers model."""
    named = getattr(getattr(model, "config", None), "id2label", None)
    return tuple(str(named[i]) for i in range(len(named))) if isinstance(named, Mapping) and named else ()


def _placed(model: nn.Module, device: Any) -> nn.Module:
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
    here = _weight(model).device
    stays = here == wanted or (wanted.index is None and here.type == wanted.type)
    return model if stays else copy.deepcopy(model).to(wanted)


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
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


def mask(places: NDArray[np.integer[Any]], count: int) -> NDArray[np.bool_]:
    """Places (B, n) of what was kept -> (B, count), True where kept."""
    kept = np.zeros((len(places), count), dtype=bool)
    np.put_along_axis(kept, places.astype(np.int64), True, axis=1)
    return kept


class FileRunner:
    """An exported file; its metadata say the names of the classes and how pictures are prepared."""

    def __init__(
        self,
        source: sources.Source,
        *,
        threads: int | None = None,
        classes: tuple[str, ...] = (),
        preprocess: Preprocess | None = None,
    ) -> None:
        from featherweight.runtime.session import open_session

        path = source.path
        self.session = open_session(path or "", backend=source.backend, threads=threads)
        told = self.session.metadata
        self.backend, self.dtype = self.session.backend, self.session.dtype
        self.threads = self.session.threads
        self.task = told.get("task", TASKS[0])
        self.classes = classes or names_in(told, path)
        self.preprocess = preprocess or preprocess_in(told, path)
        self.patches = int(told["patches"]) if told.get("patches", "").isdigit() else None
        port, *others = self.session.inputs
        if others or len(port.shape) != 4 or not self.session.outputs:
            raise InputError(path, "bad_shape", "does not take one batch of pictures (B, 3, H, W)")
        size = self.preprocess.size
        if any(known not in (None, wanted) for known, wanted in zip(port.shape[2:], size, strict=True)):
            text = f"takes pictures of {port.shape[2:]}, but its metadata say {size}"
            raise InputError(path, "shape_mismatch", text)
        names = [output.name for output in self.session.outputs]
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

    def _run(self, name: str, images: NDArray[Any], size: int) -> dict[str, NDArray[Any]]:
        fill = np.repeat(images[-1:], size - len(images), axis=0)
        found = self.session.run({name: np.concatenate([images, fill]) if len(fill) else images})
        return {key: value[: len(images)] for key, value in found.items()}
