# SPDX-License-Identifier: Apache-2.0
"""Low rank: a layer becomes a chain of smaller ones, by singular values, rows and columns, Tucker-2 or CP.

Linear layers, 1 x 1 and other convolutions in any model: ours, timm's, transformers', your own. How a kernel is taken
apart: `decompose`; what it becomes: `chains`; which rank: `ranks`. Left as they are: grouped and depthwise
convolutions (which have little to factor), transposed ones, and every layer that its factors would not make cheaper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import Diverged, OptionError
from ..modes import evaluating
from ..surgery import Edit, apply, submodule
from ..train import Task
from . import chains
from .calibration import enough, run_watched
from .plain import Layer, plain_layers
from .ranks import By, Case, Ranks, choose
from .refit import Moments

MANY = 1 << 20  # calibration images, of which all are taken
Conv = Literal["tucker", "spatial", "cp", "low_rank", "none"]
Judge = Callable[[nn.Module, nn.Module, Tensor | None], bool]  # the layer, its factors, an input: are these better?


class Seen:
    """What one layer did on calibration data: its first input, places (H, W) and moments of its outputs."""

    def __init__(self, layer: Layer) -> None:
        self.example: Tensor | None = None
        self.places = (0, 0)
        self.moments = Moments(layer.weight.shape[0])

    def note(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Hook of the layer."""
        convolution = isinstance(layer, nn.Conv2d)
        if self.example is None:
            self.example = args[0].detach()
            height, width = output.shape[2:] if convolution else (1, output[0].numel() // output.shape[-1])
            self.places = (int(height), int(width))
        self.moments.add(output.movedim(1, -1) if convolution else output)

    @property
    def strength(self) -> Tensor:
        """Standard deviations along the outputs' directions, largest first."""
        return torch.linalg.eigvalsh(self.moments.covariance).clamp(min=0).flip(0).sqrt()


@torch.no_grad()
def look(model: nn.Module, batches: Iterable[Mapping[str, Any]], task: Task) -> dict[str, Seen]:
    """Path -> what each plain layer did on the batches, labels aside. Raises Diverged for outputs not finite."""
    layers = plain_layers(model)
    seen = {path: Seen(layer) for path, layer in layers.items()}
    with evaluating(model):
        run_watched(model, {path: one.note for path, one in seen.items()}, batches, task)
    for path, one in seen.items():
        if not one.moments.sum.isfinite().all():
            raise Diverged(f"calibration: {path} has outputs that are not finite")
    return {path: one for path, one in seen.items() if one.moments.count}


def plan(
    model: nn.Module,
    *,
    ranks: Ranks = "energy",
    keep: float = 0.9,
    conv: Conv = "tucker",
    by: By = "params",
    skip: Sequence[str] = (),
    seen: Mapping[str, Seen] | None = None,
    only: Judge | None = None,
) -> list[Edit]:
    """The edits that put factors in place of layers; nothing is touched.

    keep: of each layer's energy (its squared singular values; with `seen` its outputs' variance), of its full rank
    ("share"), or of the `by`, weights or MACs, of all layers together ("budget"); 1 keeps the model as it is. "evbmf"
    takes what is more than noise and has no `keep`. conv: what kernels larger than 1 x 1 become. skip: see
    `plain_layers`. seen: what `look` found; MACs need it. only: which of the factors stay, all of which cost less
    (`layer_race.Faster` measures). Raises OptionError, and LookupError where the model has no layer for this.
    """
    _check(ranks, keep, conv, by, seen)
    layers = {path: layer for path, layer in plain_layers(model, skip=skip).items() if _kind(layer, conv)}
    if not layers:
        raise LookupError(f"{type(model).__name__} has no linear or ungrouped 2d convolution layer left to factor")
    if ranks != "evbmf" and keep == 1:
        return []
    cases = {path: _case(layer, _kind(layer, conv), seen, path) for path, layer in layers.items()}
    chosen = choose(cases, ranks, keep, by)
    edits = [Edit(path, one.kind, one.spec) for path, one in chosen.items() if one.kind]
    if only is None:
        return edits
    better = {}
    for edit in edits:
        factors = apply(layers[edit.path], [replace(edit, path="")])
        better[edit.path] = only(layers[edit.path], factors, seen[edit.path].example if seen else None)
    return [edit for edit in edits if better[edit.path]]


def factorize(
    model: nn.Module, *, batches: Iterable[Mapping[str, Any]] | None = None, task: Task | None = None, **options: Any
) -> nn.Module:
    """A copy of the model in factors; the options are those of `plan`.

    With `batches`, called as `task` says, linear layers and `low_rank` convolutions get the factors that change their
    outputs on these least, which is not the same as changing their weights least. Raises OptionError for fewer than
    four images, Diverged for values that are not finite.
    """
    if (batches is None) != (task is None):
        raise OptionError("batches", "go with `task`, which says how the model is called on them; give both or none")
    seen = None if batches is None or task is None else look(model, enough(batches, MANY), task)
    edits = plan(model, seen=seen, **options)
    new = apply(model, edits)
    for edit in edits:
        if seen and edit.kind == "low_rank" and edit.path in seen:
            layer: Any = submodule(model, edit.path)
            moments = seen[edit.path].moments
            first, second, bias = chains.by_outputs(layer, edit.spec["rank"], moments.covariance, moments.mean)
            chains.put_values(submodule(new, edit.path), (first, second), bias)  # type: ignore[arg-type]
    return new


def _case(layer: Layer, kind: str, seen: Mapping[str, Seen] | None, path: str) -> Case:
    if not seen or path not in seen:
        return Case(layer, kind)
    return Case(layer, kind, seen[path].places, seen[path].strength if kind == "low_rank" else None)


def _kind(layer: Layer, conv: Conv) -> str:
    """The kind of this layer's factors; "" if it stays."""
    if isinstance(layer, nn.Conv2d):
        if layer.groups > 1:
            return ""
        if layer.kernel_size != (1, 1):
            return "" if conv == "none" else conv
    return "low_rank"


def _check(ranks: str, keep: float, conv: str, by: str, seen: Mapping[str, Seen] | None) -> None:
    for name, value, known in (("ranks", ranks, Ranks), ("conv", conv, Conv), ("by", by, By)):
        if value not in get_args(known):
            raise OptionError(name, f"{value!r} is not one of {', '.join(get_args(known))}")
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
        raise OptionError("keep", f"{keep!r} is not in (0, 1]; it is the share that is kept")
    if by == "macs" and not seen:
        raise OptionError("by", "macs need `batches` to run the model on; `params` do not")
