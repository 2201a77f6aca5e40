# SPDX-License-Identifier: Apache-2.0
"""Over-parameterization while training: convolutions get parallel branches, which `finish` merges exactly into one.

Three sets of branches beside the convolution itself: 1 x 1 and the input (RepVGG; Ding 2021, 2101.03697), k x 1 and
1 x k (ACNet; Ding 2019, 1908.03930), or 1 x 1, 1 x 1 before k x k, and 1 x 1 before a mean (the diverse branch block;
Ding 2021, 2103.13425). Each branch ends in a batch norm of its own. The convolution keeps its trained weights, and its
place before the net's own norm, which after the sum makes the merged net kinder to 8 bits (Chu 2022, 2212.01593). Left
as they are: 1 x 1 and even kernels, dilated ones, and those padded in another way than to keep the size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..convs import folded, fused, with_values
from ..errors import OptionError
from ..method import Method
from ..surgery import Edit, all_of, apply, edit_kind, edits_of, put, record, submodule
from .plain import plain_layers

Block = Literal["repvgg", "acb", "dbb"]
Merged = tuple[Tensor, Tensor]  # a kernel (C', C / groups, h, w) and a bias (C',), float64


class Branch(nn.Module):
    """One convolution, smaller than k x k or as large, and its batch norm."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.bn = conv, nn.BatchNorm2d(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def merged(self) -> Merged:
        return _values(folded(self.conv, self.bn))


class Through(nn.Module):
    """The input itself with a batch norm: a kernel of ones and zeros."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.bn, self.groups = nn.BatchNorm2d(channels), groups

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x)

    def merged(self) -> Merged:
        channels = self.bn.num_features
        same = nn.Conv2d(channels, channels, 1, groups=self.groups, bias=False).to(self.bn.weight)
        nn.init.dirac_(same.weight, self.groups)
        return _values(folded(same, self.bn))


class Twice(nn.Module):
    """1 x 1 with a batch norm, then k x k or a mean over k x k, with another.

    What pads the second is what the first makes of zeros, so that at the border too the two are one convolution.
    """

    def __init__(self, like: nn.Conv2d, *, mean: bool) -> None:
        super().__init__()
        outputs, groups = like.out_channels, like.groups
        between = outputs if mean else like.in_channels
        self.first = Branch(nn.Conv2d(like.in_channels, between, 1, groups=groups, bias=False))
        self.kernel, self.stride = like.kernel_size, like.stride
        self.second: nn.Conv2d | None = None
        if not mean:
            kernel: Any = like.kernel_size
            stride: Any = like.stride
            self.second = nn.Conv2d(between, outputs, kernel, stride, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.first.bn
        spread: Tensor = norm.running_var + norm.eps  # type: ignore[assignment, operator]
        border = (norm.bias - norm.running_mean * norm.weight * spread.rsqrt()).reshape(-1, 1, 1)  # type: ignore[operator]
        height, width = (k // 2 for k in self.kernel)
        y = F.pad(self.first(x) - border, [width, width, height, height]) + border
        y = F.avg_pool2d(y, self.kernel, self.stride) if self.second is None else self.second(y)
        return self.bn(y)

    def merged(self) -> Merged:
        weight, bias = self.first.merged()  # (M, C / groups, 1, 1)
        if self.second is None:
            share = 1 / (self.kernel[0] * self.kernel[1])
            whole = weight.expand(-1, -1, *self.kernel) * share
            return _after(whole, bias, self.bn)
        outer = self.second.weight.double()  # (C', M / groups, h, w)
        groups = self.second.groups
        split = outer.unflatten(0, (groups, -1)), weight.unflatten(0, (groups, -1)), bias.unflatten(0, (groups, -1))
        whole = torch.einsum("gomhw,gmi->goihw", split[0], split[1][..., 0, 0]).flatten(0, 1)
        return _after(whole, torch.einsum("gomhw,gm->go", split[0], split[2]).flatten(), self.bn)


class Branches(nn.Module):
    """A convolution and the branches that are added to it: (B, C, H, W) -> (B, C', H / stride, W / stride)."""

    def __init__(self, conv: nn.Conv2d, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.conv, self.branches = conv, nn.ModuleList(branches)

    @property
    def weight(self) -> Tensor:
        """The convolution's own: hosts look at its type and place."""
        return self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        for branch in self.branches:
            y = y + branch(x)
        return y


@fused.register
@torch.no_grad()
def _(block: Branches) -> nn.Module:
    """One convolution: smaller kernels stand in the middle of the large one."""
    weight, bias = _values(block.conv)
    for branch in block.branches:
        more, shift = branch.merged()  # type: ignore[operator, union-attr]
        height, width = ((whole - part) // 2 for whole, part in zip(weight.shape[2:], more.shape[2:], strict=True))
        weight, bias = weight + F.pad(more, [width, width, height, height]), bias + shift
    return with_values(block.conv, weight, bias)


@edit_kind
def with_bias(conv: nn.Module) -> nn.Module:
    """The convolution with a bias, of zeros where it had none: what its branches' norms become part of."""
    if not isinstance(conv, nn.Conv2d):
        raise OptionError("overparameterize", f"a {type(conv).__name__} cannot take branches; 2d convolutions can")
    if conv.bias is None:
        zeros = torch.zeros(conv.out_channels, device=conv.weight.device, dtype=conv.weight.dtype)
        conv.bias = nn.Parameter(zeros, conv.weight.requires_grad)
    return conv


@dataclass(frozen=True)
class Overparameterize(Method):
    """Trains each convolution (kernel 3 x 3 and larger) with branches; the deployed net has as many layers as before.

    gamma: what the branches' norms start with. 0 leaves the net as it is until it learns, for trained nets; 1 is the
    papers', for training from the start. skip: see `plain_layers`.
    """

    block: Block = "repvgg"
    gamma: float = 0.0
    skip: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.block not in get_args(Block):
            raise OptionError("block", f"{self.block!r} is not one of {', '.join(get_args(Block))}")

    def prepare(self, model: nn.Module) -> nn.Module:
        edits = plan(model, skip=self.skip)
        new = apply(model, edits)
        for edit in edits:
            conv = submodule(new, edit.path)
            put(new, edit.path, with_branches(conv, self.block, self.gamma))  # type: ignore[arg-type]
        return new

    def finish(self, model: nn.Module) -> nn.Module:
        new = copy.deepcopy(model)
        record(new, edits_of(model))
        for path, block in all_of(new, Branches).items():
            put(new, path, fused(block))  # type: ignore[arg-type]
        return new


def plan(model: nn.Module, *, skip: Sequence[str] = ()) -> list[Edit]:
    """The edits that stay: the convolutions that get branches get a bias. LookupError for a model without such."""
    chosen = [path for path, layer in plain_layers(model, skip=skip).items() if fits(layer)]
    if not chosen:
        raise LookupError(f"{type(model).__name__} has no convolution of 3 x 3 or more that keeps the size")
    return [Edit(path, "with_bias") for path in chosen]


def fits(layer: nn.Module) -> bool:
    """Whether branches of other kernels see the same places: an odd kernel, its middle on the output's place."""
    if type(layer) is not nn.Conv2d or layer.dilation != (1, 1) or max(layer.kernel_size) == 1:
        return False
    return all(k % 2 == 1 for k in layer.kernel_size) and layer.padding == tuple(k // 2 for k in layer.kernel_size)


def with_branches(conv: nn.Conv2d, block: Block, gamma: float) -> Branches:
    """The very convolution with new branches beside it, in its mode, place and type of number."""
    inputs, outputs, groups, stride = conv.in_channels, conv.out_channels, conv.groups, conv.stride
    height, width = conv.kernel_size

    def small(kernel: tuple[int, int]) -> Branch:
        padding = (kernel[0] // 2, kernel[1] // 2)
        return Branch(nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False))  # type: ignore[arg-type]

    branches: list[nn.Module] = []
    if block == "acb":
        branches = [small((height, 1)), small((1, width))]
    elif block == "dbb":
        branches = [small((1, 1)), Twice(conv, mean=False), Twice(conv, mean=True)]
    else:
        branches = [small((1, 1))]
        if inputs == outputs and stride == (1, 1):
            branches.append(Through(inputs, groups))
    for branch in branches:
        nn.init.constant_(branch.bn.weight, gamma)  # type: ignore[arg-type, union-attr]
    return Branches(conv, branches).to(conv.weight).train(conv.training)


def _values(conv: nn.Conv2d) -> Merged:
    bias = torch.zeros(conv.out_channels, device=conv.weight.device) if conv.bias is None else conv.bias
    return conv.weight.double(), bias.double()


def _after(weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Merged:
    """The kernel and bias with the batch norm that follows them."""
    scale = (norm.running_var.double() + norm.eps).rsqrt() * norm.weight.double()  # type: ignore[union-attr]
    shift = norm.bias.double() - norm.running_mean.double() * scale  # type: ignore[union-attr]
    return weight * scale.reshape(-1, 1, 1, 1), bias * scale + shift
