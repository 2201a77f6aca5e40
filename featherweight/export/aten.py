# SPDX-License-Identifier: Apache-2.0
"""What each PyTorch operator is in ONNX: one function per operator, named after it.

A function takes the graph, the operator's result as PyTorch predicts it (`out`: its shape and type) and the arguments
it understands by PyTorch's own names. An argument that a function does not take must have its default value, else the
translation stops (`translate.py`): nothing is ever ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from featherweight.export.graph import Graph, Ref

Value = Any  # Ref, Tensor (a constant), number, torch.SymInt, or a list of them
OPERATORS: dict[str, Callable[..., str | list[str] | Ref]] = {}
SAME: set[str] = {"alias", "contiguous", "clone", "detach", "detach_", "lift_fresh_copy", "dropout", "dropout_"}


def operator(function: Callable[..., str | list[str] | Ref]) -> Callable[..., str | list[str] | Ref]:
    """Register under the function's name, a trailing underscore left out."""
    OPERATORS[function.__name__.rstrip("_")] = function
    return function


# Element by element --------------------------------------------------------------------------------------------------
def _unary(aten: str, kind: str, **attributes: Any) -> None:
    def write(g: Graph, out: Tensor, *, self: Value) -> str:
        return g.op(kind, g.read(self, out.dtype), **attributes)

    OPERATORS[aten] = write


for _aten, _kind in {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "neg": "Neg",
    "abs": "Abs", "hardswish": "HardSwish", "logical_not": "Not", "bitwise_not": "Not", "floor": "Floor",
    "ceil": "Ceil", "round": "Round", "erf": "Erf", "reciprocal": "Reciprocal", "sin": "Sin", "cos": "Cos",
}.items():  # fmt: skip
    _unary(_aten, _kind)
_unary("hardsigmoid", "HardSigmoid", alpha=1 / 6, beta=0.5)


def _binary(aten: str, kind: str) -> None:
    def write(g: Graph, out: Tensor, *, self: Value, other: Value) -> str:
        dtype = _common(self, other)
        return g.op(kind, g.read(self, dtype), g.read(other, dtype))

    OPERATORS[aten] = write


for _aten, _kind in {
    "mul": "Mul", "div": "Div", "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "maximum": "Max",
    "ge": "GreaterOrEqual", "minimum": "Min", "logical_and": "And", "__and__": "And", "logical_or": "Or",
    "__or__": "Or", "bitwise_and": "And", "bitwise_or": "Or",
}.items():  # fmt: skip
    _binary(_aten, _kind)


def _common(a: Value, b: Value) -> torch.dtype:
    """The type both operands are converted to."""

    def like(value: Value) -> Any:
        if isinstance(value, (Ref, Tensor)):
            return torch.empty((1,) * value.ndim, dtype=value.dtype)
        return 1 if isinstance(value, torch.SymInt) else value

    return torch.result_type(like(a), like(b))


def _sum(g: Graph, kind: str, a: Value, b: Value, alpha: float) -> str:
    dtype = _common(a, b)
    right = g.read(b, dtype)
    if alpha != 1:
        right = g.op("Mul", right, g.read(alpha, dtype))
    return g.op(kind, g.read(a, dtype), right)


@operator
def add(g: Graph, out: Tensor, *, self: Value, other: Value, alpha: float = 1) -> str:
    return _sum(g, "Add", self, other, alpha)


@operator
def sub(g: Graph, out: Tensor, *, self: Value, other: Value, alpha: float = 1) -> str:
    return _sum(g, "Sub", self, other, alpha)


@operator
def rsub(g: Graph, out: Tensor, *, self: Value, other: Value, alpha: float = 1) -> str:
    return _sum(g, "Sub", other, self, alpha)


@operator
def ne(g: Graph, out: Tensor, *, self: Value, other: Value) -> str:
    dtype = _common(self, other)
    return g.op("Not", g.op("Equal", g.read(self, dtype), g.read(other, dtype)))


@operator
def pow_(g: Graph, out: Tensor, *, self: Value, exponent: Value) -> str:
    return g.op("Pow", g.read(self, out.dtype), g.read(exponent, out.dtype))


@operator
def square(g: Graph, out: Tensor, *, self: Value) -> str:
    return g.op("Mul", g.read(self, out.dtype), g.read(self, out.dtype))


@operator
def rsqrt(g: Graph, out: Tensor, *, self: Value) -> str:
    return g.op("Reciprocal", g.op("Sqrt", g.read(self, out.dtype)))


@operator
def gelu(g: Graph, out: Tensor, *, self: Value, approximate: str = "none") -> str:
    return g.op("Gelu", g.read(self), approximate=approximate)


@operator
def silu(g: Graph, out: Tensor, *, self: Value) -> str:
    return g.op("Mul", g.read(self), g.op("Sigmoid", g.read(self)))


@operator
def leaky_relu(g: Graph, out: Tensor, *, self: Value, negative_slope: float = 0.01) -> str:
    return g.op("LeakyRelu", g.read(self), alpha=float(negative_slope))


@operator
def clamp(g: Graph, out: Tensor, *, self: Value, min: Value = None, max: Value = None) -> str:  # noqa: A002
    bounds = ["" if bound is None else g.read(bound, out.dtype) for bound in (min, max)]
    return g.op("Clip", g.read(self, out.dtype), *bounds)


@operator
def clamp_min(g: Graph, out: Tensor, *, self: Value, min: Value) -> str:  # noqa: A002
    return g.op("Max", g.read(self, out.dtype), g.read(min, out.dtype))


@operator
def clamp_max(g: Graph, out: Tensor, *, self: Value, max: Value) -> str:  # noqa: A002
    return g.op("Min", g.read(self, out.dtype), g.read(max, out.dtype))


@operator
def hardtanh(g: Graph, out: Tensor, *, self: Value, min_val: float = -1, max_val: float = 1) -> str:
    return g.op("Clip", g.read(self), g.read(min_val, out.dtype), g.read(max_val, out.dtype))


@operator
def relu6(g: Graph, out: Tensor, *, self: Value) -> str:
    return g.op("Clip", g.read(self), g.read(0.0, out.dtype), g.read(6.0, out.dtype))


@operator
def where(g: Graph, out: Tensor, *, condition: Value, self: Value, other: Value) -> str:
    return g.op("Where", g.read(condition), g.read(self, out.dtype), g.read(other, out.dtype))


@operator
def masked_fill(g: Graph, out: Tensor, *, self: Value, mask: Value, value: Value) -> str:
    return g.op("Where", g.read(mask), g.read(value, out.dtype), g.read(self, out.dtype))


# Types and constants -------------------------------------------------------------------------------------------------
@operator
def to(g: Graph, out: Tensor, *, self: Value, dtype: Any = None, other: Value = None, **where: Any) -> str:
    return g.read(self, out.dtype)


OPERATORS["_to_copy"] = OPERATORS["type_as"] = to


@operator
def full(g: Graph, out: Tensor, *, size: Any, fill_value: Value = 0, self: Value = None, **like: Any) -> str:
    return g.op("Expand", g.read(fill_value, out.dtype), g.shape(out.shape))


@operator
def ones(g: Graph, out: Tensor, *, size: Any, self: Value = None, **like: Any) -> str:
    return g.op("Expand", g.read(1, out.dtype), g.shape(out.shape))


@operator
def zeros(g: Graph, out: Tensor, *, size: Any, self: Value = None, **like: Any) -> str:
    return g.op("Expand", g.read(0, out.dtype), g.shape(out.shape))


@operator
def arange(g: Graph, out: Tensor, *, end: Value, start: Value = 0, step: Value = 1, **like: Any) -> str:
    return g.op("Range", *(g.read(bound, out.dtype) for bound in (start, end, step)))


OPERATORS.update(new_full=full, new_ones=ones, new_zeros=zeros)


def permuted(g: Graph, name: str, perm: Sequence[int]) -> str:
    """Transpose; two in a row become one, none at all stays none."""
    maker = g.made_by.get(name)
    if maker is not None and maker.op_type == "Transpose":
        first = list(maker.attribute[0].ints)
        name, perm = maker.input[0], [first[axis] for axis in perm]
    if list(perm) == sorted(perm):
        return name
    return g.op("Transpose", name, perm=list(perm))
