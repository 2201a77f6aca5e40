# SPDX-License-Identifier: Apache-2.0
"""After a model was compressed: bring the statistics of its channels back to those of the model it was, without labels.

Both see the same pictures. Channel by channel and layer after layer, each correction seeing those before it, three
things are matched. A batch norm's running mean and variance move with the mean and variance of what comes in, so that
what comes out has those it had: re-calibration that leaves an intact network as it is, to the bit (replacing the
statistics by those of a few pictures does not: it costs EfficientNet-Lite0 nine points before anything is compressed).
A layer or group norm's own scale and shift move to the same end. The bias of a linear or
convolution layer moves by the difference of the means of its output, the bias correction of Nagel 2019 (arXiv
1906.04721). Not here: training, and weights, which stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import Diverged, InputError, OptionError
from ..modes import BATCH_NORMS, evaluating
from ..surgery import apply, submodule
from .narrow import kept_outputs

LAYER_NORMS = (nn.LayerNorm, nn.GroupNorm)
TINY = 1e-10  # a variance below which a channel says nothing


class Calls(Protocol):
    """The part of a task that is needed here: how the model is called."""

    def forward(self, model: nn.Module, batch: Any) -> Any: ...


@dataclass(frozen=True)
class Channels:
    """Mean and variance of each channel (C,), in double precision."""

    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, x: Tensor, axis: int) -> Channels:
        rows = x.detach().movedim(axis, 0).flatten(1)  # (C, samples)
        mean = rows.mean(1, dtype=torch.float64)
        square = torch.stack([row.double().square().mean() for row in rows])
        return cls(mean, (square - mean.square()).clamp_min(0))

    def only(self, kept: Sequence[int] | None) -> Channels:
        if kept is None:
            return self
        return Channels(self.mean[list(kept)], self.variance[list(kept)])


Fix = Callable[[Any, Tensor, Tensor, Channels], Tensor]  # layer, input, output, wanted -> the output now


@torch.no_grad()
def repair(
    model: nn.Module,
    reference: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    task: Calls,
    *,
    images: int = 128,
    bias: bool = True,
    kept: Mapping[str, Sequence[int]] | None = None,
) -> nn.Module:
    """A copy of `model` whose norms and biases were corrected until its channels behave as those of `reference`.

    reference: the model before it was compressed; layers are found by their paths, one that is only in one of the two
    is passed over. batches: pictures, labels are not looked at; `images` of them are run at once. bias: whether biases
    are corrected too. kept: for a layer whose channels were cut, which of the reference's are left, by path; by default
    what the edits since then say (`narrow`). Where the numbers of channels differ all the same, a layer is passed over.
    Raises OptionError for fewer than two pictures or nothing that could be corrected, InputError for pictures that are
    not finite.
    """
    batch = together(batches, images)
    new = apply(model, []).eval()
    fixes = {path: fix for path, fix in fixable(new, bias=bias).items() if path in dict(reference.named_modules())}
    with evaluating(reference):
        wanted = observed(reference, list(fixes), batch, task)
    if not fixes or not wanted:
        raise OptionError("repair", "the two models have no norm and no bias at the same path: nothing can be matched")

    def correct(path: str) -> Callable[..., Tensor | None]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            target = wanted[path].only(left.get(path))
            if path in done or len(target.mean) != _channels(layer):
                return None
            done.add(path)  # a block that runs several times is corrected the first time
            return fixes[path](layer, args[0], output, target)

        return hook

    done, left = set[str](), kept_outputs(model, reference) if kept is None else kept
    with _hooked(new, {path: correct(path) for path in fixes if path in wanted}):
        task.forward(new, batch)
    return new


def together(batches: Iterable[Mapping[str, Any]], images: int) -> dict[str, Any]:
    """The first so many pictures as one batch."""
    if images < 2:
        raise OptionError("images", f"must be at least 2, not {images}: a variance needs them")
    found: list[Mapping[str, Any]] = []
    count = 0
    for batch in batches:
        found.append(batch)
        count += len(next(iter(batch.values())))
        if count >= images:
            break
    if count < 2:
        raise OptionError("batches", f"hold {count} pictures; a repair needs at least 2, better 100")
    whole = {name: _joined([batch[name] for batch in found])[:images] for name in found[0]}
    for name, value in whole.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            raise InputError(name, "non_finite", "a picture of the calibration set holds NaN or infinity")
    return whole


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return [item for part in parts for item in part]


def fixable(model: nn.Module, *, bias: bool = True) -> dict[str, Fix]:
    """What can be corrected in each layer, by path."""
    found: dict[str, Fix] = {}
    for path, module in model.named_modules():
        if isinstance(module, BATCH_NORMS) and module.running_mean is not None:
            found[path] = _batch_norm
        elif isinstance(module, LAYER_NORMS) and module.weight is not None and module.bias is not None:
            found[path] = _layer_norm
        elif bias and isinstance(getattr(module, "bias", None), Tensor) and _axis(module) is not None:
            found[path] = _bias
    return found


def observed(model: nn.Module, paths: Sequence[str], batch: Mapping[str, Any], task: Calls) -> dict[str, Channels]:
    """Statistics of the layers that ran: of a batch norm's input, else of the output. Diverged if one is not finite."""
    seen: dict[str, Channels] = {}

    def watch(path: str) -> Callable[..., None]:
        def note(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            axis = _axis(layer)
            if path in seen or axis is None:
                return
            seen[path] = Channels.of(args[0] if isinstance(layer, BATCH_NORMS) else output, axis)
            if not bool(seen[path].variance.isfinite().all()):
                raise Diverged(f"repair: what {path} of the reference sees is not finite")

        return note

    with _hooked(model, {path: watch(path) for path in paths}):
        task.forward(model, batch)
    return seen


def _axis(layer: nn.Module) -> int | None:
    """Which axis of its output the channels are."""
    if isinstance(layer, (*BATCH_NORMS, nn.GroupNorm)) or hasattr(layer, "out_channels"):
        return 1
    if (isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1) or hasattr(layer, "out_features"):
        return -1
    return None


def _channels(layer: nn.Module) -> int:
    tensor = layer.running_mean if isinstance(layer, BATCH_NORMS) else layer.bias
    return len(tensor) if isinstance(tensor, Tensor) else 0


# Corrections: each changes the layer and returns what it gives now ----------------------------------------------------
def _batch_norm(norm: Any, given: Tensor, output: Tensor, wanted: Channels) -> Tensor:
    """So that what comes out has the mean and variance it had, written as what is added: nothing where all is equal."""
    found = Channels.of(given, 1)
    alive = (wanted.variance > TINY) & (found.variance > TINY)
    mean, variance, eps = norm.running_mean, norm.running_var, norm.eps
    ratio = torch.where(alive, found.variance / wanted.variance.clamp_min(TINY), torch.ones_like(found.variance))
    beside = (wanted.mean - mean.double()) * (1 - ratio.sqrt())
    mean.add_((found.mean - wanted.mean + beside).to(mean))
    variance.add_(((variance.double() + eps) * (ratio - 1)).to(variance)).clamp_min_(0)
    return _again(norm, given)


def _layer_norm(norm: Any, given: Tensor, output: Tensor, wanted: Channels) -> Tensor:
    """(y - mean here) * deviation there / deviation here + mean there, as a part of the norm's scale and shift."""
    found = Channels.of(output, _axis(norm) or -1)
    alive = (wanted.variance > TINY) & (found.variance > TINY)
    ratio = torch.where(alive, (wanted.variance / found.variance.clamp_min(TINY)).sqrt(), torch.ones_like(found.mean))
    weight, shift = norm.weight, norm.bias
    moved = (shift.double() - found.mean) * ratio + wanted.mean
    same = (ratio == 1) & (found.mean == wanted.mean)
    shift.copy_(torch.where(same, shift.double(), moved))
    weight.mul_(ratio.to(weight))
    return _again(norm, given)


def _bias(layer: Any, given: Tensor, output: Tensor, wanted: Channels) -> Tensor:
    axis = _axis(layer) or -1
    off = (wanted.mean - Channels.of(output, axis).mean).to(output)
    layer.bias.add_(off)
    return output + off.reshape([-1] + [1] * (output.ndim - 2) if axis == 1 else [-1])


def _again(layer: Any, given: Tensor) -> Tensor:
    """The layer's answer with what it holds now; hooks are not called."""
    answer: Tensor = layer.forward(given)
    return answer


@contextmanager
def _hooked(model: nn.Module, hooks: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    handles = [submodule(model, path).register_forward_hook(hook) for path, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
