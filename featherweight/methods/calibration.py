# SPDX-License-Identifier: Apache-2.0
"""What every quantization of a trained model starts with: which layers, on which images, what flows through them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol

from torch import Tensor, nn

from ..anatomy import anatomy_of
from ..errors import Diverged, OptionError
from ..surgery import submodule
from .int8 import same_padding

LEAST = 4  # images: from fewer no range or mean is known


class Calls(Protocol):
    """The part of a task that is needed here: how the model is called."""

    def forward(self, model: nn.Module, batch: Any) -> Any: ...


def selected(model: nn.Module, skip: Sequence[str] = ()) -> dict[str, nn.Linear | nn.Conv2d]:
    """The float linear and 2d convolution layers by their paths, in order, without those that are skipped.

    skip: dotted paths; `*` stands for anything, and a path covers what is inside it. LookupError for a pattern that
    matches nothing, or if no layer is left.
    """
    found: dict[str, Any] = {path: module for path, module in model.named_modules() if quantizable(module)}
    for host, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):  # reads the weights of its layer and never calls it
            found.pop(f"{host}.out_proj".lstrip("."), None)
    for pattern in skip:
        if not any(covers(pattern, path) for path in found):
            raise LookupError(f"skip: {pattern!r} matches no linear or convolution layer of {type(model).__name__}")
    kept = {path: layer for path, layer in found.items() if not any(covers(pattern, path) for pattern in skip)}
    if not kept:
        raise LookupError(f"{type(model).__name__} has no float linear or 2d convolution layer left to quantize")
    return kept


def left_float(model: nn.Module) -> dict[str, int]:
    """How many layers of each class have a float weight that no method here rounds: embeddings, other convolutions."""
    found: dict[str, int] = {}
    for module in model.modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if weight is not None and weight.ndim > 1 and not isinstance(module, (nn.Linear, nn.Conv2d)):
            found[type(module).__name__] = found.get(type(module).__name__, 0) + 1
    return found


def quantizable(module: nn.Module) -> bool:
    """A linear or convolution layer that computes what its name says, unlike a subclass with its own forward."""
    forward = type(module).forward
    zeros = getattr(module, "padding_mode", "zeros") == "zeros"
    return zeros and (forward in (nn.Linear.forward, nn.Conv2d.forward) or same_padding(module))


def covers(pattern: str, path: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path, pattern + ".*")


def makes_tokens(model: nn.Module) -> bool:
    """Whether this is one of the described transformers, whose convolutions turn the picture into tokens."""
    try:
        anatomy_of(model)
    except TypeError:
        return False
    return True


def chains_convolutions(model: nn.Module, batches: Sequence[Mapping[str, Any]]) -> bool:
    """Whether this may be a convolutional network, and there are pictures to look at it with."""
    has_some = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return has_some and not makes_tokens(model) and bool(batches) and "image" in batches[0]


def first(batches: Iterable[Mapping[str, Any]], images: int) -> Iterator[Mapping[str, Any]]:
    """The batches up to so many images, the last one cut."""
    if images < 1:
        raise OptionError("calibration_images", f"must be at least 1, not {images}")
    for batch in batches:
        count = len(next(iter(batch.values())))
        yield batch if count <= images else {key: value[:images] for key, value in batch.items()}
        images -= count
        if images <= 0:
            return


def enough(batches: Iterable[Mapping[str, Any]], images: int) -> tuple[Mapping[str, Any], ...]:
    """The first batches up to so many images, held.

    Raises OptionError where there are too few to calibrate on, Diverged for images that are not finite.
    """
    found = tuple(first(batches, images))
    if not found:
        raise LookupError("calibration: there are no images; were there any batches?")
    count = sum(len(next(iter(batch.values()))) for batch in found)
    if count < LEAST:
        raise OptionError("calibration", f"{count} images are too few; give {LEAST} or more, 128 are usual")
    for batch in found:
        for name, value in batch.items():
            if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
                raise Diverged(f"calibration: {name} has a value that is not finite")
    return found


def run_watched(
    model: nn.Module, watchers: Mapping[str, Callable[..., Any]], batches: Iterable[Mapping[str, Any]], task: Calls
) -> list[Tensor]:
    """The answers to the batches; a watcher sees what its layer gets and gives and may replace it."""
    handles = [submodule(model, path).register_forward_hook(watcher) for path, watcher in watchers.items()]
    try:
        return [task.forward(model, batch) for batch in batches]
    finally:
        for handle in handles:
            handle.remove()
