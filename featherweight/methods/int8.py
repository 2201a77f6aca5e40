# SPDX-License-Identifier: Apache-2.0
"""Layers in 8 bits: the arithmetic, the linear and convolution layers that use it, and the edit that puts them in.

A layer computes in float exactly what QuantizeLinear and DequantizeLinear of ONNX do, round half to even and saturate,
so the file that is exported is the model that was evaluated. Which ranges are good is decided in `quantize.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OptionError
from ..surgery import edit_kind
from .observers import Range

LIMIT = 127  # the largest weight in 8 bits
REDUCED = 63  # in 7 bits: without VNNI, x86 adds two products of 8 bits in 16, and that may overflow

# Arithmetic: two operators of their own, so that export sees them as what they are -----------------------------------
_LIBRARY = torch.library.Library("featherweight", "DEF")
_LIBRARY.define("quantize(Tensor x, Tensor scale, Tensor zero_point) -> Tensor")
_LIBRARY.define("dequantize(Tensor q, Tensor scale, Tensor? zero_point=None, int axis=0) -> Tensor")


def quantize_values(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """clamp(round(x / scale) + zero_point) in the integer type of the zero point."""
    info = torch.iinfo(zero_point.dtype)
    return (x / scale).round_().add_(zero_point).clamp_(info.min, info.max).to(zero_point.dtype)


def dequantize_values(q: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int = 0) -> Tensor:
    """(q - zero_point) * scale; a scale that is a vector belongs to that axis."""
    values = q.to(scale.dtype, copy=True)
    if zero_point is not None:
        values.sub_(zero_point)
    return values.mul_(scale.reshape([-1] + [1] * (q.ndim - 1 - axis)) if scale.ndim else scale)


_LIBRARY.impl("quantize", quantize_values, "CompositeExplicitAutograd")
_LIBRARY.impl("dequantize", dequantize_values, "CompositeExplicitAutograd")


def quantize_weight(weight: Tensor, limit: int = LIMIT) -> tuple[Tensor, Tensor]:
    """int8 weight within [-limit, limit] and its scale per output channel. A channel of zeros gets the scale 1."""
    largest = weight.detach().flatten(1).abs().amax(1)
    scale = torch.where(largest > 0, largest / limit, torch.ones_like(largest))
    column = scale.reshape([-1] + [1] * (weight.ndim - 1))
    return torch.round(weight.detach() / column).clamp(-limit, limit).to(torch.int8), scale


def scale_of(limits: Range, levels: int = 256) -> tuple[float, int]:
    """Scale and zero point (0..levels - 1) for a range, which is widened to hold 0."""
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    scale = (high - low) / (levels - 1)
    return (scale, round(-low / scale)) if scale > 1e-30 else (1.0, 0)


# Layers ---------------------------------------------------------------------------------------------------------------
class Quantizer(nn.Module):
    """Rounds a tensor to 256 values, stored as uint8 or, `signed`, as int8; what they are is two buffers.

    The values are the same. On x86, ONNX Runtime's kernels for unsigned activations are the fast ones. With fewer
    `levels` the values beyond them are cut off: nothing runs faster by that.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, *, signed: bool = False, levels: int = 256) -> None:
        super().__init__()
        self.levels = levels
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int8 if signed else torch.uint8))

    def set_range(self, limits: Range) -> None:
        self.set(*scale_of(limits))

    def set(self, scale: float, zero_point: int) -> None:
        """Scale and the zero point as of unsigned numbers, 0..255."""
        self.scale.fill_(scale)
        self.zero_point.fill_(zero_point - (128 if self.zero_point.dtype == torch.int8 else 0))

    def forward(self, x: Tensor) -> Tensor:
        if self.levels < 256:
            low = -self.zero_point.to(x.dtype) * self.scale
            x = torch.minimum(torch.maximum(x, low), low + (self.levels - 1) * self.scale)
        q = torch.ops.featherweight.quantize(x, self.scale, self.zero_point)
        result: Tensor = torch.ops.featherweight.dequantize(q, self.scale, self.zero_point)
        return result


class QuantLinear(nn.Module):
    """A linear layer whose weight is int8 and whose input is rounded to uint8."""

    weight_int8: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear, *, limit: int = LIMIT, signed: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        _take_weight(self, layer, limit)
        self.input = Quantizer(signed=signed)

    @property
    def weight(self) -> Tensor:
        """As floats: hosts look at its type to know what to feed in (transformers' ViT casts its images to it)."""
        weight: Tensor = torch.ops.featherweight.dequantize(self.weight_int8, self.weight_scale)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.input(x), self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, int8"


class QuantConv2d(nn.Module):
    """A convolution whose weight is int8 and whose input is rounded to uint8 (`inputs`), with `output` its output too.

    ONNX Runtime computes a convolution in int8 only between two rounded tensors. But where tokens are made of the
    output, OpenVINO carries the rounding over to the class token beside them (13 dB were left of a ViT's answers):
    there only the weight is in 8 bits.
    """

    weight_int8: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(
        self, layer: nn.Conv2d, *, inputs: bool = True, output: bool = False, limit: int = LIMIT, signed: bool = False
    ) -> None:
        super().__init__()
        take_shape(self, layer)
        _take_weight(self, layer, limit)
        self.input = Quantizer(signed=signed) if inputs else nn.Identity()
        self.output = Quantizer(signed=signed) if output else nn.Identity()

    @property
    def weight(self) -> Tensor:
        """As floats, see `QuantLinear.weight`."""
        weight: Tensor = torch.ops.featherweight.dequantize(self.weight_int8, self.weight_scale)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.output(convolve(self, self.input(x), self.weight))
        return result

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, int8"


def take_shape(new: Any, layer: nn.Conv2d) -> None:
    """Give the module everything that `convolve` asks of a convolution but its weight and bias."""
    new.in_channels, new.out_channels = layer.in_channels, layer.out_channels
    new.kernel_size, new.stride, new.dilation = layer.kernel_size, layer.stride, layer.dilation
    new.padding, new.groups = layer.padding, layer.groups
    new.same = same_padding(layer)


def convolve(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    """The convolution of that layer with this weight, padded as the layer it was made of."""
    x = padded(layer, x) if layer.same else x
    return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def padded(layer: Any, x: Tensor) -> Tensor:
    """Filled with so many zeros that the output has ceil(size / stride) places, the odd one last."""
    pads: list[int] = []
    for axis in (1, 0):  # for the last axis first
        size, stride = x.shape[2 + axis], layer.stride[axis]
        wide = (-(-size // stride) - 1) * stride + (layer.kernel_size[axis] - 1) * layer.dilation[axis] + 1 - size
        pads += [max(0, wide) // 2, max(0, wide) - max(0, wide) // 2]
    return F.pad(x, pads)


def same_padding(layer: nn.Module) -> bool:
    """timm's Conv2dSame, which pads by the size of its input as TensorFlow does."""
    return type(layer).__name__ == "Conv2dSame" and type(layer).__module__.startswith("timm.")


def _take_weight(new: QuantLinear | QuantConv2d, layer: nn.Linear | nn.Conv2d, limit: int) -> None:
    weight, scale = quantize_weight(layer.weight, limit)
    new.register_buffer("weight_int8", weight)
    new.register_buffer("weight_scale", scale)
    new.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone(), requires_grad=False)


@edit_kind
def int8(
    module: nn.Module, inputs: bool = True, output: bool = False, limit: int = LIMIT, signed: bool = False
) -> nn.Module:
    """The 8-bit form of a layer. Ranges and the weights themselves come with the state dict, or from `quantize`."""
    if not isinstance(limit, int) or not 1 <= limit <= LIMIT:
        raise OptionError("int8", f"limit: {limit!r} is not a number from 1 to {LIMIT}")
    if isinstance(module, nn.Linear):
        return QuantLinear(module, limit=limit, signed=signed)
    if isinstance(module, nn.Conv2d):
        return QuantConv2d(module, inputs=inputs, output=output, limit=limit, signed=signed)
    raise OptionError("int8", f"a {type(module).__name__} has no 8-bit form; linear and 2d convolution layers have")
