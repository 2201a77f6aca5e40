# SPDX-License-Identifier: Apache-2.0
"""PyTorch operators in ONNX: matrix products, attention, convolutions, and the rounding to 8 bits before them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import onnx
import torch
from torch import Tensor

from featherweight.export.aten import OPERATORS, Value, operator, permuted
from featherweight.export.graph import Dequantized, Graph, Ref


# Products ------------------------------------------------------------------------------------------------------------
@operator
def linear(g: Graph, out: Tensor, *, input: Value, weight: Value, bias: Value = None) -> str:  # noqa: A002
    product = integer_product(g, input, weight)
    if product is not None:
        return product if bias is None else g.op("Add", product, g.read(bias))
    if isinstance(weight, Tensor) and bias is not None and out.ndim == 2:
        return g.op("Gemm", g.read(input), g.read(weight), g.read(bias), transB=1)
    product = g.op("MatMul", g.read(input), transposed(g, weight))
    return product if bias is None else g.op("Add", product, g.read(bias))


def transposed(g: Graph, weight: Value) -> str:
    """A matrix with its last two axes exchanged; that of a constant is a constant."""
    if isinstance(weight, Dequantized):
        return dequantized(g, weight.values.t(), weight.scale, 1 - weight.axis)
    if isinstance(weight, Tensor):
        return g.constant(weight.transpose(-1, -2))
    perm = list(range(weight.ndim))
    return permuted(g, weight.name, [*perm[:-2], perm[-1], perm[-2]])


@operator
def matmul(g: Graph, out: Tensor, *, self: Value, other: Value) -> str:
    return g.op("MatMul", g.read(self), g.read(other))


@operator
def bmm(g: Graph, out: Tensor, *, self: Value, mat2: Value) -> str:
    return g.op("MatMul", g.read(self), g.read(mat2))


OPERATORS["mm"] = bmm


@operator
def addmm(g: Graph, out: Tensor, *, self: Value, mat1: Value, mat2: Value) -> str:
    return g.op("Gemm", g.read(mat1), g.read(mat2), g.read(self))


@operator
def scaled_dot_product_attention(
    g: Graph, out: Tensor, *, query: Value, key: Value, value: Value, attn_mask: Value = None,
    scale: float | None = None,
) -> str:  # fmt: skip
    """softmax(scale · q kᵀ + mask) v, one operator each: both runtimes recognize and fuse the sequence."""
    scores = g.op("MatMul", g.read(query), transposed(g, key))
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = g.op("Mul", scores, g.read(factor, out.dtype))
    if attn_mask is not None:
        scores = masked(g, scores, attn_mask, out.dtype)
    return g.op("MatMul", g.op("Softmax", scores, axis=-1), g.read(value))


def masked(g: Graph, scores: str, mask: Value, dtype: torch.dtype) -> str:
    """Scores with a mask, which is broadcast and so need not be expanded; one that hides nothing is left out."""
    name = g.read(mask)
    maker = g.made_by.get(name)
    if maker is not None and maker.op_type == "Expand":
        name = maker.input[0]
    if mask.dtype != torch.bool:
        return g.op("Add", scores, name)
    known = g.value_of(name)
    if known is not None and bool(known.all()):
        return scores
    return g.op("Where", name, scores, g.read(float("-inf"), dtype))


@operator
def conv2d(
    g: Graph, out: Tensor, *, input: Value, weight: Value, bias: Value = None,  # noqa: A002
    stride: Sequence[int] = (1, 1), padding: Any = (0, 0), dilation: Sequence[int] = (1, 1), groups: int = 1,
) -> str:  # fmt: skip
    attributes: dict[str, Any] = {"strides": _pair(stride), "dilations": _pair(dilation), "group": groups}
    if padding == "same":
        wide = [d * (size - 1) for d, size in zip(attributes["dilations"], weight.shape[2:], strict=True)]
        attributes["pads"] = [w // 2 for w in wide] + [w - w // 2 for w in wide]
    else:
        attributes["pads"] = [0, 0, 0, 0] if padding == "valid" else _pair(padding) * 2
    more, source = () if bias is None else (g.read(bias),), g.read(input)
    before = g.made_by.get(source)
    if before is not None and before.op_type == "Pad" and padding != "same":
        source = _padded(g, before, source, attributes)
    return g.op("Conv", source, g.read(weight), *more, kernel_shape=list(weight.shape[2:]), **attributes)


def _padded(g: Graph, pad: onnx.NodeProto, source: str, attributes: dict[str, Any]) -> str:
    """The source without a padding by zeros of the picture's edges, which the convolution does as well."""
    sizes, value = g.value_of(pad.input[1]), g.value_of(pad.input[2]) if len(pad.input) > 2 else None
    if sizes is None or value is None or bool(value.any()) or bool(sizes[[0, 1, 4, 5]].any()) or int(sizes.min()) < 0:
        return source
    extra = [int(sizes[i]) for i in (2, 3, 6, 7)]
    attributes["pads"] = [a + b for a, b in zip(attributes["pads"], extra, strict=True)]
    return pad.input[0]


def _pair(value: Any) -> list[int]:
    values = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return values * 2 if len(values) == 1 else values


# int8: see methods/int8.py --------------------------------------------------------------------------------------------
@operator
def quantize(g: Graph, out: Tensor, *, x: Value, scale: Value, zero_point: Value) -> str:
    return g.op("QuantizeLinear", g.read(x), g.read(scale), g.read(zero_point))


@operator
def dequantize(g: Graph, out: Tensor, *, q: Value, scale: Value, zero_point: Value = None, axis: int = 0) -> str | Ref:
    if isinstance(q, Ref):
        return g.op("DequantizeLinear", g.read(q), g.read(scale), g.read(zero_point))
    return Dequantized(dequantized(g, q, scale, axis), tuple(out.shape), out.dtype, q, scale, axis)


def dequantized(g: Graph, q: Tensor, scale: Tensor, axis: int) -> str:
    """Weights stay in 8 bits in the file; their zero point is 0 and need not be said."""
    return g.op("DequantizeLinear", g.constant(q), g.read(scale), axis=axis)


@operator
def quantize_dynamic(g: Graph, out: Any, *, x: Value) -> list[str]:
    """See methods/dynamic_int8.py."""
    return g.ops("DynamicQuantizeLinear", g.read(x), results=3)


def integer_product(g: Graph, x: Value, weight: Value) -> str | None:
    """x times the transposed weight in integers, where x was rounded by its own range; else None."""
    rounded = g.made_by.get(x.name) if isinstance(x, Ref) else None
    if not isinstance(weight, Dequantized) or rounded is None or rounded.op_type != "DequantizeLinear":
        return None
    source = g.made_by.get(rounded.input[0])
    if source is None or source.op_type != "DynamicQuantizeLinear":
        return None
    codes, scale, zero = rounded.input
    total = g.op("MatMulInteger", codes, g.constant(weight.values.t()), zero)
    both = g.op("Mul", scale, g.read(weight.scale))
    return g.op("Mul", g.op("Cast", total, to=onnx.TensorProto.FLOAT), both)


# Weights in few bits: see methods/stored.py ---------------------------------------------------------------------------
@operator
def widen(g: Graph, out: Tensor, *, half: Value) -> str:
    return g.op("Cast", g.constant(half), to=onnx.TensorProto.FLOAT)


@operator
def unpack(g: Graph, out: Tensor, *, packed: Value, bits: int) -> str:
    """Bytes (rows, bytes) -> codes (rows, bytes * 8 / bits): each byte divided by powers of 2, and the remainder."""
    powers = torch.tensor([1 << shift for shift in range(0, 8, bits)], dtype=torch.int32)
    whole = g.op("Cast", g.constant(packed[..., None]), to=onnx.TensorProto.INT32)  # (rows, bytes, 1)
    codes = g.op("Mod", g.op("Div", whole, g.constant(powers)), g.constant(torch.tensor(1 << bits, dtype=torch.int32)))
    flat = g.op("Reshape", codes, g.shape(tuple(out.shape)))
    return g.op("Cast", flat, to=onnx.TensorProto.FLOAT)
