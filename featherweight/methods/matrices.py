# SPDX-License-Identifier: Apache-2.0
"""What the structured matrices have in common, and the two layers that hold one: linear and convolution.

A matrix (o, i) has fewer weights than o * i. It can be multiplied with, be written out, be fitted to a trained weight
in closed form where one exists, and be drawn afresh at a given size.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import OptionError
from ..layers import Compact


class Matrix(nn.Module):
    """A matrix (o, i). A subclass gives `forward` or `dense`; each default is written with the other."""

    closed_form: ClassVar[bool] = True  # `project` finds its weights from a trained matrix
    linear = True  # it is a matrix, and nothing besides
    quick = True  # its own product is cheaper than the dense one, also in other runtimes
    degree = 1  # how many of its parameters are multiplied with each other

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.outputs, self.inputs = outputs, inputs

    def many(self, x: Tensor) -> bool:
        """Whether x (..., i) has more rows than the matrix has columns: writing it out pays."""
        return x.numel() > self.inputs**2

    @classmethod
    def spec_for(cls, outputs: int, inputs: int, keep: float) -> dict[str, Any]:
        """The options with which it has about the share `keep` of a dense matrix's weights, no more where that goes."""
        raise TypeError(f"{cls.__name__} has no size to choose")

    def forward(self, x: Tensor) -> Tensor:
        """(..., i) -> (..., o)."""
        return F.linear(x, self.dense())

    def dense(self) -> Tensor:
        """Itself, written out (o, i)."""
        like = next(self.parameters())
        return self(torch.eye(self.inputs, device=like.device, dtype=like.dtype)).T

    def project(self, weight: Tensor) -> None:
        """Take the values that come near this matrix (o, i), given in double precision."""
        raise OptionError(type(self).__name__.lower(), "has no closed form to fit it to trained weights; draw it anew")

    @torch.no_grad()
    def draw(self, size: float) -> None:
        """Random values with which the matrix has this Frobenius norm, as large as the layer's had been."""
        for parameter in self.parameters():
            parameter.normal_()
        factor = (size / float(self.dense().norm().clamp(min=1e-12))) ** (1 / self.degree)
        for parameter in self.parameters():
            parameter.mul_(factor)


class StructuredLinear(Compact):
    """A linear layer whose weight is a structured matrix: (..., i) -> (..., o)."""

    def __init__(self, layer: nn.Linear, matrix: Matrix) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.matrix = matrix
        self.bias = layer.bias

    @property
    def weight(self) -> Tensor:
        """Written out: hosts look at its type and place."""
        return self.matrix.dense()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.matrix(x)
        return y if self.bias is None else y + self.bias

    def expanded(self) -> nn.Module:
        if self.matrix.quick:
            return self
        weight = self.matrix.dense().detach()
        new = nn.Linear(self.in_features, self.out_features, self.bias is not None, dtype=weight.dtype)
        return _given(new, weight, self.bias)


class StructuredConv2d(Compact):
    """A convolution whose kernel, as a matrix (C', C h w), is structured. Fewer weights, as many multiply-adds."""

    def __init__(self, layer: nn.Conv2d, matrix: Matrix) -> None:
        super().__init__()
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.kernel_size: Any = layer.kernel_size
        self.stride: Any = layer.stride
        self.padding: Any = layer.padding
        self.dilation: Any = layer.dilation
        self.matrix = matrix
        self.bias = layer.bias

    @property
    def weight(self) -> Tensor:
        return self.matrix.dense().reshape(self.out_channels, self.in_channels, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)

    def expanded(self) -> nn.Module:
        weight = self.weight.detach()
        new = nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
            bias=self.bias is not None, dtype=weight.dtype,
        )  # fmt: skip
        return _given(new, weight, self.bias)


def _given(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def padded(weight: Tensor, rows: int, columns: int) -> Tensor:
    """The matrix with rows and columns of zeros after its own, up to these numbers."""
    return F.pad(weight, (0, columns - weight.shape[1], 0, rows - weight.shape[0]))


def whole(where: str, value: Any, low: int, high: int) -> int:
    """A whole number from a file or a user; OptionError unless it is in low..high."""
    if type(value) is not int or not low <= value <= high:
        raise OptionError(where, f"{value!r} is not a whole number from {low} to {high}")
    return value


def divisor_near(number: int, wanted: float) -> int:
    """The divisor of a number that is nearest, in ratio, to what is wanted."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return min(divisors, key=lambda d: max(d / wanted, wanted / d))
