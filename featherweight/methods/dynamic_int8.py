# SPDX-License-Identifier: Apache-2.0
"""8 bits without calibration: linear layers round what they are given by the range it has at that moment.

Weights are int8 with one scale per output, as in `quantize`. The range of the activations is taken over the whole
batch, as ONNX's DynamicQuantizeLinear does, so an image's answer may depend, in the last bits, on the images beside it.
It costs a pass over each input and needs no images beforehand; where some are at hand, `quantize` is faster and covers
convolutions too, which stay float here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OptionError
from ..surgery import Edit, apply, edit_kind
from .calibration import selected
from .int8 import dequantize_values, quantize_weight

_LIBRARY = torch.library.Library("featherweight", "FRAGMENT")
_LIBRARY.define("quantize_dynamic(Tensor x) -> (Tensor, Tensor, Tensor)")


def quantize_now(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 values, scale and zero point () of a tensor, as DynamicQuantizeLinear defines them."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = torch.round(-low / scale).clamp(0, 255)
    return (torch.round(x / scale) + zero).clamp(0, 255).to(torch.uint8), scale, zero.to(torch.uint8)


_LIBRARY.impl("quantize_dynamic", quantize_now, "CompositeExplicitAutograd")


class DynamicLinear(nn.Module):
    """A linear layer whose weight is int8 and whose input is rounded to uint8 by its own range."""

    weight_int8: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight, scale = quantize_weight(layer.weight)
        self.register_buffer("weight_int8", weight)
        self.register_buffer("weight_scale", scale)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """As floats: hosts look at its type to know what to feed in."""
        return dequantize_values(self.weight_int8, self.weight_scale)

    def forward(self, x: Tensor) -> Tensor:
        q, scale, zero = torch.ops.featherweight.quantize_dynamic(x)
        x = torch.ops.featherweight.dequantize(q, scale, zero)
        weight = torch.ops.featherweight.dequantize(self.weight_int8, self.weight_scale)
        return F.linear(x, weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, int8"


@edit_kind
def dynamic_int8(module: nn.Module) -> nn.Module:
    """The 8-bit form of a linear layer that needs no ranges."""
    if not isinstance(module, nn.Linear):
        raise OptionError("dynamic_int8", f"a {type(module).__name__} has no such form; linear layers have")
    return DynamicLinear(module)


def plan(model: nn.Module, *, bits: int = 8, skip: Sequence[str] = ()) -> list[Edit]:
    """One edit for each linear layer that is not skipped; bits=32 leaves all as they are.

    LookupError where there is no linear layer.
    """
    if bits == 32:
        return []
    if bits != 8:
        raise OptionError("bits", f"{bits!r} is not one of 8, 32 (no change)")
    paths = [path for path, layer in selected(model, skip).items() if isinstance(layer, nn.Linear)]
    if not paths:
        raise LookupError(f"{type(model).__name__} has no linear layer left; `quantize` covers convolutions")
    return [Edit(path, "dynamic_int8") for path in paths]


def quantize_dynamic(model: nn.Module, *, bits: int = 8, skip: Sequence[str] = ()) -> nn.Module:
    """A copy whose linear layers compute in 8 bits; the options are those of `plan`."""
    return apply(model, plan(model, bits=bits, skip=skip))
