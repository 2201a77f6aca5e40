# SPDX-License-Identifier: Apache-2.0
"""A convolutional net that turns with its picture: every layer becomes its p4 or p4m form (Cohen 2016, 1602.07576).

Maps keep their sizes; their channels become fields of 4 or 8, so a layer has a quarter or an eighth of its weights and
as many multiply-adds. (The paper compares at equal weights: make the net 2 or 2.83 times wider.) The layers are in
`group_layers`. Trained weights are averaged over the group, which is only near if they were nearly symmetric: train
from the start. Not here: transformers, norms over channels, dense layers that read places, finer angles.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..modes import evaluating
from ..surgery import Edit, apply, edit_kind, has_values
from .chains import fit_for
from .flow import foldable
from .group_layers import (
    Group,
    GroupConv2d,
    GroupNorm2d,
    InvariantLayer,
    SymmetricMean,
    check_fields,
    order_of,
    turned,
)
from .int8 import same_padding
from .plain import Layer

Pool = Literal["mean", "max", "none"]


@edit_kind
def group_conv(
    layer: nn.Module, group: Group, lift: bool = False, symmetric: bool = False, fresh: bool = False
) -> nn.Module:
    """The convolution over fields; with `symmetric`, a stride becomes a mean before it."""
    conv = _convolution(layer)
    down = conv.stride[0] if symmetric else 1
    new = GroupConv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size[0], group=group, lift=lift,
        stride=1 if down > 1 else conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups,
        bias=conv.bias is not None,
    )  # fmt: skip
    new = _like(new, conv.weight)
    if has_values(conv.weight):
        new.project(conv.weight.detach(), conv.bias, fresh=fresh)
    return nn.Sequential(SymmetricMean(down), new) if down > 1 else new


@edit_kind
def group_norm(norm: nn.Module, group: Group) -> nn.Module:
    """The batch norm of fields; what timm's norms do besides follows it."""
    plain = _norm(norm, order_of(group))
    new = GroupNorm2d(plain, group)
    like = plain.weight if plain.weight is not None else plain.running_mean
    if like is not None:
        new = _like(new, like)
        if has_values(like):
            new.project(plain)
    rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
    return nn.Sequential(new, *rest) if rest else new


@edit_kind
def invariant_layer(layer: nn.Module, group: Group, pool: Pool = "mean") -> nn.Module:
    """The linear or 1 x 1 layer that reads one number of each field."""
    plain = _reader(layer, order_of(group))
    if pool not in ("mean", "max"):
        raise OptionError("pool", f"{pool!r} is not one of mean, max")
    new = _like(InvariantLayer(plain, group, pool), plain.weight)
    if has_values(plain.weight):
        new.project(plain.weight.detach(), plain.bias)
    return new


@edit_kind
def symmetric_pool(pool: nn.Module) -> nn.Module:
    """The pooling whose windows are as large as its steps, without a border."""
    kinds = {nn.MaxPool2d: nn.MaxPool2d, nn.AvgPool2d: nn.AvgPool2d}
    if type(pool) not in kinds:
        raise OptionError("equivariant", f"a {type(pool).__name__} is no pooling that can be made symmetric")
    return kinds[type(pool)](pool.stride)  # type: ignore[arg-type, return-value]


def plan(
    model: nn.Module,
    *,
    group: Group | Literal["none"] = "p4",
    pool: Pool = "mean",
    symmetric: bool = False,
    fresh: bool = False,
) -> list[Edit]:
    """The edits that make every layer equivariant and, by `pool`, the answer invariant; nothing is touched.

    The first convolution reads the picture; the first linear layer (or, in a net without, the last 1 x 1 convolution)
    gets one number of each field, by `pool`; with the pool "none" it stays as it is and reads every channel, so that it
    can tell which way up a picture is and has as many numbers to go by as before. symmetric: strides and overlapping
    pooling, which on maps of even size are off by a place when they are turned, become means and pooling that are not;
    else the answer is nearly invariant. fresh: of a net that is not trained yet; base filters are some of its own, not
    means of them, which would be smaller. The group "none" changes nothing. Raises OptionError for a layer that has no
    such form, and names it.
    """
    if group == "none":
        return []
    order_of(group)
    if pool not in get_args(Pool):
        raise OptionError("pool", f"{pool!r} is not one of {', '.join(get_args(Pool))}")
    convs = {path: m for path, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    if not convs:
        raise LookupError(f"{type(model).__name__} has no convolution to turn")
    last = _last(model, convs)
    edits = []
    for path, module in model.named_modules():
        spec: dict[str, Any] = {"group": group}
        if path == last:
            if pool != "none":
                edits.append(Edit(path, "invariant_layer", {**spec, "pool": pool}))
        elif path in convs:
            options = {"lift": path == next(iter(convs)), "symmetric": symmetric, "fresh": fresh}
            edits.append(Edit(path, "group_conv", {**spec, **options}))
        elif isinstance(module, nn.BatchNorm2d):
            edits.append(Edit(path, "group_norm", spec))
        elif symmetric and isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)) and module.kernel_size != module.stride:
            edits.append(Edit(path, "symmetric_pool"))
        elif not isinstance(module, nn.Linear) and any(True for _ in module.parameters(recurse=False)):
            name = type(module).__name__
            raise OptionError("equivariant", f"{path or name}: a {name} has no form for fields of channels")
    for edit in edits:
        try:
            _check(model.get_submodule(edit.path), edit)
        except OptionError as error:
            raise OptionError("equivariant", f"{edit.path}: {error.text}") from None
    return edits


def equivariant(model: nn.Module, **options: Any) -> nn.Module:
    """A copy that turns with its picture; the options are those of `plan`. It has to be trained before use."""
    return apply(model, plan(model, **options))


@torch.no_grad()
def invariance_error(model: nn.Module, images: Tensor, group: Group = "p4") -> float:
    """The largest change of any answer when square images (B, C, H, H) are turned, over the answers' deviation."""
    with evaluating(model):
        answer = model(images)
        changes = [(model(turned(images, element)) - answer).abs().max() for element in range(1, order_of(group))]
    return float(torch.stack(changes).max() / answer.std().clamp(min=1e-12))


def _last(model: nn.Module, convs: dict[str, nn.Conv2d]) -> str:
    """Path of the layer that reads the fields last."""
    path, conv = list(convs.items())[-1]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if module.in_features != conv.out_channels:
                text = f"reads {module.in_features} numbers, not the {conv.out_channels} channels of {path}"
                raise OptionError("equivariant", f"{name}: {text}; it must come after a mean over all places")
            return name
    if conv.kernel_size != (1, 1) or len(convs) == 1:
        raise OptionError("equivariant", f"{path} ends the net with places; a linear or 1 x 1 layer has to")
    return path


def _check(layer: nn.Module, edit: Edit) -> None:
    """OptionError for a layer that has no such form, before anything is done."""
    order = order_of(edit.spec.get("group", "p4"))
    if edit.kind == "group_conv":
        conv = _convolution(layer)
        check_fields(conv.in_channels, conv.out_channels, conv.groups, order, lift=edit.spec["lift"])
    elif edit.kind == "group_norm":
        _norm(layer, order)
    elif edit.kind == "invariant_layer":
        _reader(layer, order)


def _norm(layer: nn.Module, order: int) -> nn.BatchNorm2d:
    if not (isinstance(layer, nn.BatchNorm2d) and foldable(layer)):
        raise OptionError("equivariant", f"a {type(layer).__name__} has no form for fields; BatchNorm2d has")
    if layer.num_features % order:
        raise OptionError("equivariant", f"{layer.num_features} channels are not whole fields of {order}")
    return layer


def _reader(layer: nn.Module, order: int) -> Layer:
    plain = fit_for("equivariant", layer)
    if plain.weight.shape[1] % order or plain.weight[0, 0].numel() != 1:
        raise OptionError("equivariant", f"{tuple(plain.weight.shape)} does not read whole fields of {order}")
    return plain


def _convolution(layer: nn.Module) -> nn.Conv2d:
    if not isinstance(layer, nn.Conv2d) or type(layer).forward is not nn.Conv2d.forward or same_padding(layer):
        raise OptionError("equivariant", f"a {type(layer).__name__} has no form for fields; Conv2d has")
    height, width = layer.kernel_size
    if height != width or layer.padding_mode != "zeros" or layer.stride[0] != layer.stride[1]:
        raise OptionError("equivariant", f"a kernel of {height} x {width} or its padding or stride does not turn")
    return layer


def _like(module: Any, tensor: Tensor) -> Any:
    """The new module where the tensor is, in its type of number, trained if it is."""
    return module.to(device=tensor.device, dtype=tensor.dtype).requires_grad_(tensor.requires_grad)
