# SPDX-License-Identifier: Apache-2.0
"""A layer as a chain of smaller plain layers: the edits of `lowrank`, and the values that go into them.

Every chain is made of `nn.Linear` and `nn.Conv2d`, which every runtime knows; the bias is the last one's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..layers import Factors
from ..surgery import edit_kind, has_values
from . import decompose
from .int8 import same_padding
from .plain import Layer, is_plain


@edit_kind
def low_rank(layer: nn.Module, rank: int) -> nn.Module:
    """Factors (r, i) and (o, r); of a convolution r filters like its own, then 1 x 1 (Zhang 2015, 1505.06798)."""
    plain = fit_for("low_rank", layer)
    check_rank("low_rank", rank, min(plain.weight.flatten(1).shape))
    outputs = plain.weight.shape[0]
    if isinstance(plain, nn.Linear):
        parts: tuple[nn.Module, ...] = (linear(plain, plain.in_features, rank), linear(plain, rank, outputs, last=True))
    else:
        own: dict[str, Any] = {"kernel": plain.kernel_size, "stride": plain.stride, "dilation": plain.dilation}
        first = conv(plain, plain.in_channels, rank, padding=plain.padding, **own)
        parts = (first, conv(plain, rank, outputs, last=True))
    return chained(plain, parts, lambda weight: decompose.svd(weight.flatten(1), rank))


@edit_kind
def spatial(layer: nn.Module, rank: int) -> nn.Module:
    """h x 1 to r channels, then 1 x w (Jaderberg 2014, 1405.3866)."""
    plain = ungrouped("spatial", layer)
    check_rank("spatial", rank, min(decompose.rows_and_columns(plain.weight).shape))
    (height, width), (down, right) = plain.kernel_size, plain.stride
    first = conv(plain, plain.in_channels, rank, kernel=(height, 1), stride=(down, 1), axis=0)
    second = conv(plain, rank, plain.out_channels, kernel=(1, width), stride=(1, right), axis=1, last=True)
    return chained(plain, (first, second), lambda weight: decompose.spatial(weight, rank))


@edit_kind
def tucker(layer: nn.Module, ranks: Sequence[int]) -> nn.Module:
    """1 x 1 to ri channels, a small kernel of the same size to ro, 1 x 1 (Tucker-2; Kim 2016, 1511.06530)."""
    plain = ungrouped("tucker", layer)
    if not isinstance(ranks, (list, tuple)) or len(ranks) != 2:
        raise OptionError("tucker", f"ranks {ranks!r} are not two: of the inputs and of the outputs")
    ins, outs = ranks
    check_rank("tucker: inputs", ins, plain.in_channels)
    check_rank("tucker: outputs", outs, plain.out_channels)
    own: dict[str, Any] = {"kernel": plain.kernel_size, "stride": plain.stride, "dilation": plain.dilation}
    parts = (
        conv(plain, plain.in_channels, ins),
        conv(plain, ins, outs, padding=plain.padding, **own),
        conv(plain, outs, plain.out_channels, last=True),
    )
    return chained(plain, parts, lambda weight: decompose.tucker2(weight, (ins, outs)))


@edit_kind
def cp(layer: nn.Module, rank: int) -> nn.Module:
    """1 x 1 to R channels, h x 1 and 1 x w for each of them alone, 1 x 1 (Lebedev 2015, 1412.6553)."""
    plain = ungrouped("cp", layer)
    check_rank("cp", rank, plain.weight.numel() // plain.out_channels)
    (height, width), (down, right) = plain.kernel_size, plain.stride
    parts = (
        conv(plain, plain.in_channels, rank),
        conv(plain, rank, rank, kernel=(height, 1), stride=(down, 1), axis=0, groups=rank),
        conv(plain, rank, rank, kernel=(1, width), stride=(1, right), axis=1, groups=rank),
        conv(plain, rank, plain.out_channels, last=True),
    )

    def values(weight: Tensor) -> tuple[Tensor, ...]:
        outs, ins, rows, columns = decompose.cp(weight, rank)
        return ins.T, rows.T[:, None, :, None], columns.T[:, None, None, :], outs

    return chained(plain, parts, values)


def chained(layer: Layer, parts: Sequence[nn.Module], values: Any) -> Factors:
    """The parts in a row, filled with what `values` makes of the layer's weight, in double precision on the CPU."""
    new = Factors(layer, *parts)
    if has_values(layer.weight):
        put_values(new, values(layer.weight.detach().double().cpu()), layer.bias)
    new.requires_grad_(layer.weight.requires_grad)
    return new


@torch.no_grad()
def put_values(chain: Factors, values: Sequence[Tensor], bias: Tensor | None) -> None:
    """Write the factors' weights, each in whatever shape it comes, and the last one's bias."""
    for part, value in zip(chain, values, strict=True):
        part.weight.copy_(value.reshape(part.weight.shape))  # type: ignore[operator, union-attr, arg-type]
    if bias is not None and chain.bias is not None:
        chain.bias.copy_(bias)


def by_outputs(layer: Layer, rank: int, covariance: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The rank-r factors (r, i ...), (o, r) and the bias that change the layer's outputs least, and not its weight.

    Outputs are projected on their `rank` strongest directions U, so the factors are UᵀW and U; this is the optimum that
    weighting the weight with the square root of the inputs' covariance gives, without inverting that. covariance (o, o)
    and mean (o,) are of the outputs on real data; around the mean where the layer has a bias to hold it, else around 0.
    """
    weight = layer.weight.detach().double().cpu().flatten(1)
    spread = covariance + torch.outer(mean, mean) if layer.bias is None else covariance
    directions = torch.linalg.eigh(spread).eigenvectors.flip(1)[:, :rank]  # (o, r), strongest first
    first = directions.T @ weight
    size = first.norm(dim=1).clamp(min=1e-30).sqrt()  # as large on either side, which rounding likes
    bias = None
    if layer.bias is not None:
        bias = layer.bias.detach().double().cpu()
        shifted = mean - bias  # the outputs' mean without the bias
        bias = bias + shifted - directions @ (directions.T @ shifted)
    return first / size[:, None], directions * size, bias


# Parts --------------------------------------------------------------------------------------------------------------
def linear(like: nn.Linear, inputs: int, outputs: int, *, last: bool = False) -> nn.Linear:
    weight = like.weight
    return nn.Linear(inputs, outputs, last and like.bias is not None, device=weight.device, dtype=weight.dtype)


def conv(
    like: nn.Conv2d,
    inputs: int,
    outputs: int,
    *,
    kernel: Any = 1,
    stride: Any = 1,
    dilation: Any = None,
    padding: Any = 0,
    axis: int | None = None,
    groups: int = 1,
    last: bool = False,
) -> nn.Conv2d:
    """A convolution of the same class; with `axis` it pads and dilates along that one as `like` does."""
    if axis is not None:
        there = (1 - axis, axis)  # which of the two numbers to take: (1, 0) is rows, (0, 1) columns
        dilation = tuple(d if use else 1 for d, use in zip(like.dilation, there, strict=True))
        padding = like.padding
        if not isinstance(padding, str):
            padding = tuple(p if use else 0 for p, use in zip(padding, there, strict=True))
    made = type(like) if same_padding(like) else nn.Conv2d
    place: dict[str, Any] = {"device": like.weight.device, "dtype": like.weight.dtype}
    new = made(
        inputs, outputs, kernel, stride=stride, padding=padding, dilation=1 if dilation is None else dilation,
        groups=groups, bias=last and like.bias is not None,
    )  # fmt: skip
    return new.to(**place)


def fit_for(kind: str, layer: nn.Module) -> Layer:
    """The layer, if it is one that has factors; OptionError else."""
    if isinstance(layer, (nn.Linear, nn.Conv2d)) and is_plain(layer) and getattr(layer, "groups", 1) == 1:
        return layer
    name = type(layer).__name__ + (" with groups" if getattr(layer, "groups", 1) > 1 else "")
    raise OptionError(kind, f"a {name} has no such factors; plain linear and 2d convolution layers without groups have")


def ungrouped(kind: str, layer: nn.Module) -> nn.Conv2d:
    plain = fit_for(kind, layer)
    if isinstance(plain, nn.Linear):
        raise OptionError(kind, "a linear layer has no kernel to take apart; `low_rank` is its kind")
    return plain


def check_rank(where: str, rank: int, full: int) -> None:
    if type(rank) is not int or not 1 <= rank <= full:
        raise OptionError(where, f"rank {rank!r} is not a whole number from 1 to {full}, the full rank of the layer")
