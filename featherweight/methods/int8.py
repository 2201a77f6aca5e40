# SPDX-License-Identifier: Apache-2.0
"""Layers in 8 bits: the arithmetic, the linear and convolution layers that use it, and the edit that puts them in.

A layer computes in float exactly what QuantizeLinear and DequantizeLinear of ONNX do, round half to even and saturate,
so the file that is exported is the model that was evaluated. Which ranges are good is decided in `quantize.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OptionError
from ..surgery import edit_kind
from .observers import Range

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


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 weight and its scale per output channel. A channel that is all zero gets the scale 1."""
    largest = weight.detach().flatten(1).abs().amax(1)
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    column = scale.reshape([-1] + [1] * (weight.ndim - 1))
    return torch.round(weight.detach() / column).clamp(-127, 127).to(torch.int8), scale


def scale_of(limits: Range) -> tuple[float, int]:
    """Scale and zero point (0..255) for a range, which is widened to hold 0."""
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    scale = (high - low) / 255
    return (scale, round(-low / scale)) if scale > 1e-30 else (1.0, 0)


# Layers ---------------------------------------------------------------------------------------------------------------
class Quantizer(nn.Module):
    """Rounds a tensor to 256 values; what they are is two buffers."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.uint8))

    def set_range(self, limits: Range) -> None:
        scale, zero_point = scale_of(limits)
        self.scale.fill_(scale)
        self.zero_point.fill_(zero_point)

    def forward(self, x: Tensor) -> Tensor:
        q = torch.ops.featherweight.quantize(x, self.scale, self.zero_point)
        result: Tensor = torch.ops.featherweight.dequantize(q, self.scale, self.zero_point)
        return result


class QuantLinear(nn.Module):
    """A linear layer whose weight is int8 and whose input is rounded to uint8."""

    weight_int8: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        _take_weight(self, layer)
        self.input = Quantizer()

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

    def __init__(self, layer: nn.Conv2d, *, inputs: bool = True, output: bool = False) -> None:
        super().__init__()
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding, self.groups = layer.padding, layer.groups
        self.same = same_padding(layer)
        _take_weight(self, layer)
        self.input = Quantizer() if inputs else nn.Identity()
        self.output = Quantizer() if output else nn.Identity()

    @property
    def weight(self) -> Tensor:
        """As floats, see `QuantLinear.weight`."""
        weight: Tensor = torch.ops.featherweight.dequantize(self.weight_int8, self.weight_scale)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        if self.same:
            x = F.pad(x, self._pads(x))
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)  # type: ignore[arg-type]
        result: Tensor = self.output(x)
        return result

    def _pads(self, x: Tensor) -> list[int]:
        """So much that the output has ceil(size / stride) places, the odd one last; for the last axis first."""
        pads: list[int] = []
        for axis in (1, 0):
            size, stride = x.shape[2 + axis], self.stride[axis]
            wide = (-(-size // stride) - 1) * stride + (self.kernel_size[axis] - 1) * self.dilation[axis] + 1 - size
            pads += [max(0, wide) // 2, max(0, wide) - max(0, wide) // 2]
        return pads

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, int8"


def same_padding(layer: nn.Module) -> bool:
    """timm's Conv2dSame, which pads by the size of its input as TensorFlow does."""
    return type(layer).__name__ == "Conv2dSame" and type(layer).__module__.startswith("timm.")


def _take_weight(new: QuantLinear | QuantConv2d, layer: nn.Linear | nn.Conv2d) -> None:
    weight, scale = quantize_weight(layer.weight)
    new.register_buffer("weight_int8", weight)
    new.register_buffer("weight_scale", scale)
    new.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone(), requires_grad=False)


@edit_kind
def int8(module: nn.Module, inputs: bool = True, output: bool = False) -> nn.Module:
    """The 8-bit form of a layer. Ranges and the weights themselves come with the state dict, or from `quantize`."""
    if isinstance(module, nn.Linear):
        return QuantLinear(module)
    if isinstance(module, nn.Conv2d):
        return QuantConv2d(module, inputs=inputs, output=output)
    raise OptionError("int8", f"a {type(module).__name__} has no 8-bit form; linear and 2d convolution layers have")
