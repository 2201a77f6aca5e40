# SPDX-License-Identifier: Apache-2.0
"""PyTorch operators in ONNX, the last part: those that make few numbers of many, and normalizations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from featherweight.export.aten import OPERATORS, Value, operator
from featherweight.export.graph import Graph, Unsupported, alike


# Many to few ---------------------------------------------------------------------------------------------------------
def _reduction(aten: str, kind: str) -> None:
    def write(g: Graph, out: Tensor, *, self: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> str:
        axes = [dim] if isinstance(dim, int) else list(dim or range(len(self.shape)))
        places = g.integers(*(axis % len(self.shape) for axis in axes))
        return g.op(kind, g.read(self, out.dtype), places, keepdims=int(keepdim))

    OPERATORS[aten] = write


_reduction("mean", "ReduceMean")
_reduction("sum", "ReduceSum")
_reduction("amax", "ReduceMax")
_reduction("amin", "ReduceMin")


@operator
def argmax(g: Graph, out: Tensor, *, self: Value, dim: int, keepdim: bool = False) -> str:
    return g.op("ArgMax", g.read(self), axis=dim % len(self.shape), keepdims=int(keepdim))


def _extreme(aten: str, kind: str, best: str, places: str) -> None:
    """max and min: of two tensors, of everything, or along an axis with the places."""

    def write(
        g: Graph, out: Any, *, self: Value, dim: int | None = None, keepdim: bool = False, other: Value = None
    ) -> str | list[str]:
        if other is not None:
            return g.op(kind, g.read(self, out.dtype), g.read(other, out.dtype))
        if dim is None:
            return g.op(best, g.read(self), keepdims=0)
        axis = dim % len(self.shape)
        found = g.op(best, g.read(self), g.integers(axis), keepdims=int(keepdim))
        return [found, g.op(places, g.read(self), axis=axis, keepdims=int(keepdim))]

    OPERATORS[aten] = write


_extreme("max", "Max", "ReduceMax", "ArgMax")
_extreme("min", "Min", "ReduceMin", "ArgMin")


@operator
def argmin(g: Graph, out: Tensor, *, self: Value, dim: int, keepdim: bool = False) -> str:
    return g.op("ArgMin", g.read(self), axis=dim % len(self.shape), keepdims=int(keepdim))


@operator
def linalg_vector_norm(
    g: Graph, out: Tensor, *, self: Value, ord: float = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None  # noqa: A002
) -> str:  # fmt: skip
    if ord not in (1, 2):
        raise Unsupported(f"a norm of order {ord}")
    axes = [dim] if isinstance(dim, int) else list(dim or range(len(self.shape)))
    places = g.integers(*(axis % len(self.shape) for axis in axes))
    return g.op(f"ReduceL{int(ord)}", g.read(self, out.dtype), places, keepdims=int(keepdim))


@operator
def softmax(g: Graph, out: Tensor, *, self: Value, dim: int, dtype: Any = None) -> str:
    return g.op("Softmax", g.read(self, out.dtype), axis=dim % out.ndim)


@operator
def log_softmax(g: Graph, out: Tensor, *, self: Value, dim: int, dtype: Any = None) -> str:
    return g.op("LogSoftmax", g.read(self, out.dtype), axis=dim % out.ndim)


def _two(value: Any, default: Any = (1, 1)) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return [int(v) for v in (values or default)] * (2 if len(values) == 1 else 1)


@operator
def max_pool2d(
    g: Graph, out: Tensor, *, self: Value, kernel_size: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False
) -> str:
    how = {"kernel_shape": _two(kernel_size), "strides": _two(stride, kernel_size), "pads": _two(padding) * 2}
    return g.op("MaxPool", g.read(self), ceil_mode=int(ceil_mode), **how)


@operator
def avg_pool2d(
    g: Graph, out: Tensor, *, self: Value, kernel_size: Any, stride: Any = (), padding: Any = 0,
    count_include_pad: bool = True,
) -> str:  # fmt: skip
    how = {"kernel_shape": _two(kernel_size), "strides": _two(stride, kernel_size), "pads": _two(padding) * 2}
    return g.op("AveragePool", g.read(self), count_include_pad=int(count_include_pad), **how)


@operator
def adaptive_avg_pool2d(g: Graph, out: Tensor, *, self: Value, output_size: Any) -> str:
    if alike(out.shape[-2:], (1, 1)):
        return g.op("GlobalAveragePool", g.read(self))
    kernel = [a // b if a % b == 0 else 0 for a, b in zip(self.shape[-2:], out.shape[-2:], strict=True)]
    if not all(kernel):
        raise Unsupported("adaptive pooling into unequal windows")
    return g.op("AveragePool", g.read(self), kernel_shape=kernel, strides=kernel)


@operator
def upsample_nearest2d(g: Graph, out: Tensor, *, self: Value = None, input: Value = None, **sizes: Any) -> str:  # noqa: A002
    x = input if self is None else self
    given = sizes.get("scale_factors")
    scales = given or [float(b) / float(a) for a, b in zip(x.shape[-2:], out.shape[-2:], strict=True)]
    factors = g.constant(torch.tensor([1.0, 1.0, *scales]))
    how = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    return g.op("Resize", g.read(x), "", factors, **how)


# Normalization -------------------------------------------------------------------------------------------------------
@operator
def layer_norm(
    g: Graph, out: Tensor, *, input: Value, normalized_shape: Sequence[int], weight: Value = None,  # noqa: A002
    bias: Value = None, eps: float = 1e-5, cudnn_enable: bool = True,
) -> str:  # fmt: skip
    scale = torch.ones(tuple(normalized_shape), dtype=out.dtype) if weight is None else weight
    more = [] if bias is None else [g.read(bias)]
    return g.op("LayerNormalization", g.read(input), g.read(scale), *more, axis=-len(normalized_shape), epsilon=eps)


@operator
def batch_norm(
    g: Graph, out: Tensor, *, input: Value, weight: Value = None, bias: Value = None, running_mean: Value,  # noqa: A002
    running_var: Value, training: bool, momentum: float, eps: float, cudnn_enabled: bool = True,
) -> str:  # fmt: skip
    if training or running_mean is None:
        raise Unsupported("batch normalization that computes its statistics: call model.eval() first")
    weight = torch.ones_like(running_mean) if weight is None else weight
    bias = torch.zeros_like(running_mean) if bias is None else bias
    names = [g.read(value) for value in (input, weight, bias, running_mean, running_var)]
    return g.op("BatchNormalization", *names, epsilon=eps)


@operator
def group_norm(
    g: Graph, out: Tensor, *, input: Value, num_groups: int, weight: Value = None, bias: Value = None,  # noqa: A002
    eps: float = 1e-5, cudnn_enabled: bool = True,
) -> str:  # fmt: skip
    """Each group is normalized as one instance, then scaled by channel."""
    batch, channels, *places = input.shape
    if not all(isinstance(n, int) for n in (channels, *places)):
        raise Unsupported("group normalization of a varying size")
    shape = (batch, num_groups, channels // num_groups * math.prod(places))
    grouped = g.op("Reshape", g.read(input), g.shape(shape, inferred=True))
    ones = torch.ones(num_groups, dtype=out.dtype)
    name = g.op("InstanceNormalization", grouped, g.read(ones), g.read(torch.zeros_like(ones)), epsilon=eps)
    name = g.op("Reshape", name, g.shape(out.shape, inferred=True))
    column = (-1, *(1 for _ in places))
    name = name if weight is None else g.op("Mul", name, g.read(weight.reshape(column)))
    return name if bias is None else g.op("Add", name, g.read(bias.reshape(column)))
