# SPDX-License-Identifier: Apache-2.0
"""The edit that leaves some channels of a layer: rows and columns are cut out, the layer is really smaller.

It says which indices of which dimension of which of the layer's own tensors stay, so that a pruned model is built anew
from its base, the list of edits and its weights, without tracing and without pickle. Which those are is decided in
`channels`; the layer's attributes (in_channels, groups, num_features, ...) follow from the shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..surgery import Edit, edit_kind, edits_of, submodule

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)
Kept = Mapping[str, Mapping[str, Sequence[int]]]  # tensor of the layer -> dimension -> indices that stay


@edit_kind
def narrow(layer: nn.Module, *, keep: Kept) -> nn.Module:
    """The layer with only these indices of its tensors left, counted as they are now."""
    if not isinstance(keep, Mapping) or not keep:
        raise OptionError("narrow", "keep must say for at least one tensor of the layer what stays")
    before = {name: tuple(tensor.shape) for name, tensor in _tensors(layer).items()}
    for name, dims in keep.items():
        tensor = _tensors(layer).get(name)
        if tensor is None or not isinstance(dims, Mapping):
            raise OptionError("narrow", f"a {type(layer).__name__} has no tensor {name!r} to narrow")
        for dim, indices in dims.items():
            tensor = _part(tensor, dim, indices, name)
        if isinstance(_tensors(layer)[name], nn.Parameter):
            layer._parameters[name] = nn.Parameter(tensor, requires_grad=_tensors(layer)[name].requires_grad)
        else:
            layer._buffers[name] = tensor
    _follow(layer, before)
    return layer


def edits_for(keep: Mapping[str, Mapping[int, Iterable[int]]]) -> list[Edit]:
    """Tensor of the model -> dimension -> indices that stay, as one edit for each layer."""
    by_layer: dict[str, dict[str, dict[str, list[int]]]] = {}
    for name, dims in keep.items():
        path, _, own = name.rpartition(".")
        by_layer.setdefault(path, {})[own] = {str(dim): [int(i) for i in kept] for dim, kept in sorted(dims.items())}
    return [Edit(path, "narrow", {"keep": kept}) for path, kept in by_layer.items()]


def kept_outputs(model: nn.Module, before: nn.Module) -> dict[str, list[int]]:
    """Path of a layer -> which of its outputs in `before` are left in `model`, that was narrowed from it.

    Layers that have all of them are not named. What a `repair` of the statistics needs to compare the two.
    """
    found: dict[str, list[int]] = {}
    for edit in edits_of(model)[len(edits_of(before)) :]:
        if edit.kind != "narrow":
            continue
        layer, keep = submodule(model, edit.path), edit.spec["keep"]
        turned = isinstance(layer, TRANSPOSED) and layer.groups == 1
        places = ((name, "1" if turned and name == "weight" else "0") for name in ("running_mean", "bias", "weight"))
        kept = next((keep[name][dim] for name, dim in places if dim in keep.get(name, {})), None)
        if kept is not None:
            old = found.get(edit.path)
            found[edit.path] = list(kept) if old is None else [old[i] for i in kept]
    return found


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    every = {**layer._parameters, **layer._buffers}
    return {name: tensor for name, tensor in every.items() if tensor is not None}


def _part(tensor: Tensor, dim: Any, indices: Any, name: str) -> Tensor:
    if not (isinstance(dim, str) and dim.isascii() and dim.isdigit() and int(dim) < tensor.ndim):
        raise OptionError("narrow", f"{name} has dimensions '0' to '{tensor.ndim - 1}', not {dim!r}")
    index = torch.tensor(checked(indices, tensor.shape[int(dim)], f"{name}, dimension {dim}"), device=tensor.device)
    return tensor.detach().index_select(int(dim), index).contiguous()


def checked(keep: Any, size: int, where: str) -> list[int]:
    """The indices, which may come from a file: OptionError unless they rise within 0 .. size - 1."""
    whole = isinstance(keep, (list, tuple)) and all(type(i) is int for i in keep)
    if not whole or not keep or keep[0] < 0 or keep[-1] >= size or any(b <= a for a, b in pairwise(keep)):
        raise OptionError(where, f"keep must be rising whole numbers from 0 to {size - 1}, at least one")
    return list(keep)


def _follow(layer: nn.Module, before: Mapping[str, tuple[int, ...]]) -> None:
    """Let the attributes say what the tensors are now."""
    tensors = _tensors(layer)
    if isinstance(layer, CONVOLUTIONS):
        _follow_convolution(layer, before["weight"], tuple(tensors["weight"].shape))
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = tensors["weight"].shape
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = tensors["weight"].shape
    elif isinstance(layer, NORMS):
        layer.num_features = len(next(tensor for tensor in tensors.values() if tensor.ndim))
    elif isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        layer.normalized_shape = tuple(tensors["weight"].shape)
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = len(tensors["weight"])
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(tensors["weight"])


def _follow_convolution(layer: Any, before: tuple[int, ...], now: tuple[int, ...]) -> None:
    """Groups stay as many as they were; of a depthwise convolution, one input a group, they go with the channels."""
    first, second = ("in_channels", "out_channels") if layer.transposed else ("out_channels", "in_channels")
    if layer.groups > 1 and before[1] == 1:
        layer.groups = now[0] * layer.groups // before[0]
    setattr(layer, first, now[0])
    setattr(layer, second, now[1] * layer.groups)
