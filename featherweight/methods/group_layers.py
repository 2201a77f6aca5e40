# SPDX-License-Identifier: Apache-2.0
"""Layers that turn with their input: convolutions, norms and pooling of the groups p4 and p4m (Cohen 2016, 1602.07576).

p4 is the four rotations by 90 degrees, p4m these and their mirror images. Channels come in fields of as many as the
group has elements, one for each: turning a layer's input turns every channel of its output and moves them around within
their field. A layer stores base filters only; the plain layer it is equal to has each of them turned and moved, so that
any pointwise function, addition or concatenation of whole fields between such layers keeps the property: a residual
block of them is one.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import OptionError
from ..layers import Compact

Group = Literal["p4", "p4m"]
ORDER: dict[str, int] = {"p4": 4, "p4m": 8}  # elements; number 4 m + r mirrors m times, then turns r times


# The group ------------------------------------------------------------------------------------------------------------
def order_of(group: str) -> int:
    """How many elements it has; OptionError for an unknown one."""
    if group not in ORDER:
        raise OptionError("group", f"{group!r} is not one of {', '.join(get_args(Group))}")
    return ORDER[group]


def product(one: int, other: int) -> int:
    """The element that does `other` first, then `one`."""
    turns = one % 4 + (other % 4 if one < 4 else -(other % 4))
    return 4 * ((one >= 4) ^ (other >= 4)) + turns % 4


def inverse(element: int) -> int:
    """The element that undoes it; what mirrors undoes itself."""
    return element if element >= 4 else -element % 4


def turned(x: Tensor, element: int) -> Tensor:
    """(..., H, W), mirrored and turned by an element."""
    return torch.rot90(x.flip(-1) if element >= 4 else x, element % 4, (-2, -1))


def acted(fields: Tensor, element: int, group: Group) -> Tensor:
    """Fields (B, C, H, W) as they are when the picture they come from is turned by the element."""
    return turned(moved(fields.unflatten(1, (-1, ORDER[group])), inverse(element)).flatten(1, 2), element)


def moved(x: Tensor, element: int) -> Tensor:
    """(A, B, |G|, ...): what stands at the product of the element and k comes to k; (A, B, 1, ...) stays."""
    count = x.shape[2]
    return x[:, :, [product(element, k) for k in range(count)]] if count > 1 else x


def check_fields(inputs: int, outputs: int, groups: int, order: int, *, lift: bool) -> None:
    """OptionError unless a convolution's channels are whole fields, in each of its groups unless it is depthwise."""
    parts = 1 if groups == inputs == outputs else groups
    for what, channels in (("outputs", outputs), ("inputs", 0 if lift else inputs)):
        if channels % (order * parts):
            where = f" in each of {parts} groups" if parts > 1 else ""
            raise OptionError("equivariant", f"{channels} {what} are not whole fields of {order}{where}")


# Layers ---------------------------------------------------------------------------------------------------------------
class GroupConv2d(Compact):
    """(B, C, H, W) -> (B, C', H', W') of fields; with `lift` from a picture, whose channels are no fields.

    inputs and outputs count channels, not fields. Stores one |G|-th of the plain layer's weights. A depthwise one keeps
    each element of a field by itself. Strides fit odd sizes; on even ones they begin at a corner: see `SymmetricMean`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        group: Group = "p4",
        lift: bool = False,
        stride: tuple[int, ...] | int = 1,
        padding: str | tuple[int, ...] | int = 0,
        dilation: tuple[int, ...] | int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.group, self.order, self.lift = group, order_of(group), lift
        self.in_channels, self.out_channels, self.groups = inputs, outputs, groups
        self.kernel_size = (kernel, kernel)
        self.stride: Any = stride
        self.padding: Any = padding
        self.dilation: Any = dilation
        check_fields(inputs, outputs, groups, self.order, lift=lift)
        elements = 1 if lift or groups == inputs == outputs > 1 else self.order
        own = inputs // groups // elements
        self.base = nn.Parameter(torch.empty(outputs // self.order, own, elements, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs // self.order)) if bias else None
        nn.init.normal_(self.base, std=(2.0 / self.base[0].numel()) ** 0.5)

    @property
    def weight(self) -> Tensor:
        """The plain kernel (C', C / groups, k, k): for each h the base filters turned by it, element k from h⁻¹ k."""
        rows = [turned(moved(self.base, inverse(h)), h) for h in range(self.order)]
        return torch.stack(rows, dim=1).flatten(2, 3).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.repeat_interleave(self.order)
        return F.conv2d(x, self.weight, bias, self.stride, self.padding, self.dilation, self.groups)

    @torch.no_grad()
    def project(self, weight: Tensor, bias: Tensor | None, *, fresh: bool = False) -> None:
        """Take the mean over the group of a plain kernel: the nearest one of this kind, and itself if it is one.

        fresh: its first filter of each field instead; a mean of random ones would be smaller than each.
        """
        grid = weight.unflatten(1, self.base.shape[1:3]).unflatten(0, (-1, self.order))  # (C' / |G|, h, C, k, ...)
        terms = [turned(moved(grid[:, h], h), inverse(h)) for h in range(1 if fresh else self.order)]
        self.base.copy_(torch.stack(terms).mean(0))
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias.unflatten(0, (-1, self.order)).mean(1))

    def expanded(self) -> nn.Module:
        weight = self.weight.detach().contiguous()
        conv = nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
            self.groups, bias=self.bias is not None,
        )  # fmt: skip
        conv.weight = nn.Parameter(weight)
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias.detach().repeat_interleave(self.order))
        return conv

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, {self.group}, lift={self.lift}"


class GroupNorm2d(Compact):
    """Batch norm (B, C, H, W) with one mean, variance, scale and shift for each field."""

    def __init__(self, norm: nn.BatchNorm2d, group: Group) -> None:
        super().__init__()
        self.group, self.order = group, order_of(group)
        self.norm = nn.BatchNorm2d(
            norm.num_features // self.order, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )

    def forward(self, x: Tensor) -> Tensor:
        fields = x.unflatten(1, (-1, self.order)).flatten(2, 3)  # (B, C / |G|, |G| H, W)
        return self.norm(fields).reshape(x.shape)

    @torch.no_grad()
    def project(self, norm: nn.BatchNorm2d) -> None:
        """Take the means over each field of a plain norm's numbers."""
        values = {name: t.unflatten(0, (-1, self.order)) for name, t in norm.state_dict().items() if t.ndim}
        state = {name: value.mean(1) for name, value in values.items()}
        if "running_var" in values:
            spread = (values["running_mean"] - state["running_mean"][:, None]).square().mean(1)
            state["running_var"] = state["running_var"] + spread
        self.norm.load_state_dict({**norm.state_dict(), **state})

    def expanded(self) -> nn.Module:
        inner = self.norm
        norm = nn.BatchNorm2d(
            inner.num_features * self.order, inner.eps, inner.momentum, inner.affine, inner.track_running_stats
        )
        state = {n: t.repeat_interleave(self.order) if t.ndim else t for n, t in inner.state_dict().items()}
        norm.load_state_dict(state)
        return norm.to(next(iter(state.values())))


class InvariantLayer(nn.Module):
    """The layer after which turning the picture changes nothing: one number for each field, then linear or 1 x 1."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, group: Group, pool: Literal["mean", "max"]) -> None:
        super().__init__()
        self.group, self.order, self.pool = group, order_of(group), pool
        inputs = layer.weight.shape[1] // self.order
        bias = layer.bias is not None
        if isinstance(layer, nn.Linear):
            self.layer: nn.Module = nn.Linear(inputs, layer.out_features, bias)
        else:
            self.layer = nn.Conv2d(inputs, layer.out_channels, 1, bias=bias)

    @property
    def weight(self) -> Tensor:
        """Of the layer inside: hosts look at its type and place."""
        weight: Tensor = self.layer.weight  # type: ignore[assignment]
        return weight

    def forward(self, x: Tensor) -> Tensor:
        fields = x.unflatten(1, (-1, self.order))
        return self.layer(fields.mean(2) if self.pool == "mean" else fields.amax(2))

    @torch.no_grad()
    def project(self, weight: Tensor, bias: Tensor | None) -> None:
        """Add up what a plain layer (K, C, ...) gives to each field: the same for inputs that are equal within one."""
        self.weight.copy_(weight.unflatten(1, (-1, self.order)).sum(2))
        if bias is not None:
            self.layer.bias.copy_(bias)  # type: ignore[operator, union-attr, arg-type]

    def extra_repr(self) -> str:
        return f"{self.group}, {self.pool}"


class SymmetricMean(nn.Module):
    """(B, C, H, W) -> (B, C, H / stride, W / stride) by means that lie alike towards all four sides."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        s = self.stride
        if x.shape[-1] % s == 0 and x.shape[-2] % s == 0:
            return F.avg_pool2d(x, s)
        return F.avg_pool2d(x, 2 * s - 1, s, s - 1, count_include_pad=False)

    def extra_repr(self) -> str:
        return f"stride={self.stride}"
