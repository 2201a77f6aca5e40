# SPDX-License-Identifier: Apache-2.0
"""Blocks that training makes of several parts and deployment of one convolution: Conv+BN, RepConv.

`fused` is the registry of re-parameterization: block -> the equal block with fewer parts. A block's line stands beside
the block; users register their own the same way. `methods.fuse` applies it to a whole model and checks the answer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import singledispatch
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import OptionError, closest
from .layers import Factors

EPS, MOMENTUM = 1e-3, 0.03  # YOLOv7's batch norm (fact sheet 1); torch's own are 1e-5 and 0.1
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "relu": nn.ReLU,
    "none": nn.Identity,
}
M = TypeVar("M", bound=nn.Module)


@singledispatch
def fused(module: nn.Module) -> nn.Module | None:
    """A block that answers the same in evaluation and has fewer parts; None where nothing can be merged.

    `@fused.register` adds a class of your own: a function from a block to its merged form. The block given stays as it
    is; the new one may share the parts that stay.
    """
    return None


def shell(module: M) -> M:
    """A module with the same parts, which can be exchanged for others without changing the module given."""
    new = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        new.__dict__[name] = dict(getattr(module, name))
    return new


def activation(name: str) -> nn.Module:
    """A new activation by its name; OptionError for an unknown one."""
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise OptionError("activation", f"no {name!r}; {closest(name, ACTIVATIONS)}Known: {known}")
    return ACTIVATIONS[name]()


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, activation: (B, C, H, W) -> (B, C', H / stride, W / stride)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, act: str = "silu"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=EPS, momentum=MOMENTUM)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class ConvAct(nn.Module):
    """What `ConvNorm` and `RepConv` become: one convolution with bias, activation."""

    def __init__(self, conv: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class RepConv(nn.Module):
    """3x3 and 1x1 convolution and the input itself, each with its batch norm, added, then activation (Ding 2021,
    2101.03697): (B, C, H, W) -> (B, C', H / stride, W / stride).

    The input's branch exists where it fits: as many channels out as in and stride 1. `identity=False` leaves it out
    also there, as the planned RepConv after a residual or a concatenation wants it (Wang 2022, 2207.02696).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        *,
        groups: int = 1,
        identity: bool = True,
        act: str = "silu",
        eps: float = EPS,
        momentum: float = MOMENTUM,
    ) -> None:
        super().__init__()

        def norm() -> nn.BatchNorm2d:
            return nn.BatchNorm2d(outputs, eps=eps, momentum=momentum)

        same = identity and inputs == outputs and stride == 1
        self.rbr_identity = norm() if same else None
        dense = nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)
        self.rbr_dense = nn.Sequential(dense, norm())
        point = nn.Conv2d(inputs, outputs, 1, stride, groups=groups, bias=False)
        self.rbr_1x1 = nn.Sequential(point, norm())
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        summed = self.rbr_dense(x) + self.rbr_1x1(x)
        if self.rbr_identity is not None:
            summed = summed + self.rbr_identity(x)
        return self.act(summed)


def can_fold(conv: nn.Module | None, norm: nn.Module) -> bool:
    """Whether a batch norm, which in evaluation multiplies and adds known numbers, can become part of what is before.

    That is a convolution, or several that stand for one, of which the last takes it.
    """
    last = conv[-1] if isinstance(conv, Factors) else conv
    known = type(norm) is nn.BatchNorm2d and norm.running_mean is not None and norm.running_var is not None
    return known and isinstance(last, nn.Conv2d)


@torch.no_grad()
def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution with bias for a convolution and the batch norm after it, worked out in float64."""
    scale, shift = _affine(norm)
    weight = conv.weight.double() * scale[:, None, None, None]
    bias = shift if conv.bias is None else shift + conv.bias.double() * scale
    return with_values(conv, weight, bias)


def _with_norm(conv: nn.Module, norm: nn.BatchNorm2d) -> nn.Module:
    """What `can_fold` said yes to, folded."""
    if not isinstance(conv, Factors):
        return folded(conv, norm)  # type: ignore[arg-type]
    new = shell(conv)
    setattr(new, str(len(conv) - 1), folded(conv[-1], norm))  # type: ignore[arg-type]
    return new


def folded_pairs(block: M) -> M | None:
    """The block with each `convN` that a `bnN` follows folded, the norm's place an identity; None without such a pair.

    For blocks whose forward runs bnN(convN(x)), as torchvision's do too: `fused.register(Block)(folded_pairs)`.
    """
    new, found = shell(block), False
    for name, norm in block.named_children():
        conv = getattr(block, f"conv{name[2:]}", None) if name.startswith("bn") else None
        if conv is not None and can_fold(conv, norm):
            setattr(new, f"conv{name[2:]}", _with_norm(conv, norm))  # type: ignore[arg-type]
            setattr(new, name, nn.Identity())
            found = True
    return new if found else None


@torch.no_grad()
def with_values(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution like this one, with this kernel (C', C / groups, h, w) and bias (C',), in its type of number."""
    new = shell(conv)
    new.weight = nn.Parameter(weight.to(conv.weight.dtype), conv.weight.requires_grad)
    new.bias = nn.Parameter(bias.to(conv.weight.dtype), conv.weight.requires_grad)
    return new


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What the norm multiplies by and adds in evaluation, (C,) each, float64."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise OptionError("fuse", "a batch norm without running statistics has nothing fixed to fold")
    scale = (var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


@fused.register
def _(block: ConvNorm) -> nn.Module | None:
    return ConvAct(_with_norm(block.conv, block.bn), block.act) if can_fold(block.conv, block.bn) else None


@fused.register
@torch.no_grad()
def _(block: RepConv) -> nn.Module | None:
    """The 1x1 kernel stands in the middle of the 3x3 one; the input's branch is a 1x1 kernel of ones and zeros."""
    if not all(isinstance(branch[0], nn.Conv2d) for branch in (block.rbr_dense, block.rbr_1x1)):
        return None  # something else stands for them, such as factors
    dense, point = (folded(*branch) for branch in (block.rbr_dense, block.rbr_1x1))
    weight = dense.weight.double() + F.pad(point.weight.double(), [1] * 4)
    bias = _bias(dense) + _bias(point)
    if block.rbr_identity is not None:
        scale, shift = _affine(block.rbr_identity)
        width = dense.weight.shape[1]  # input channels of a group
        places = torch.arange(len(scale), device=scale.device)
        eye = torch.zeros_like(weight)
        eye[places, places % width, 1, 1] = scale
        weight, bias = weight + eye, bias + shift
    return ConvAct(with_values(dense, weight, bias), block.act)


def _bias(conv: nn.Conv2d) -> Tensor:
    """The bias in float64."""
    zeros = torch.zeros(conv.out_channels, dtype=torch.float64, device=conv.weight.device)
    return zeros if conv.bias is None else conv.bias.double()


@fused.register
def _(block: nn.Sequential) -> nn.Module | None:
    """Every convolution that a batch norm follows; the norm's place keeps an identity, so that paths stay."""
    new, found, last = shell(block), False, ""
    for name, module in block.named_children():
        before = getattr(block, last) if last else None
        if before is not None and can_fold(before, module):
            setattr(new, last, _with_norm(before, module))  # type: ignore[arg-type]
            setattr(new, name, nn.Identity())
            found = True
        last = name
    return new if found else None
