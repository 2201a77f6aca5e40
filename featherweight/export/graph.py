# SPDX-License-Identifier: Apache-2.0
"""An ONNX graph while it is written: operators, constants and sizes, each of them once.

Equal constants are stored once and equal operators computed once. Names are short (c constants, v values) and come from
no counter that outlives the graph, so that the same model gives the same bytes, and few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx.numpy_helper
import torch
from onnx import helper
from torch import Tensor

OPSET = 20
IR_VERSION = 10
AXES = ("batch", "channels", "height", "width")  # what the sizes that vary are called
TEXT_AXES = ("batch", "length")  # of numbers of tokens
TYPES = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float64: onnx.TensorProto.DOUBLE,
    torch.int64: onnx.TensorProto.INT64,
    torch.int32: onnx.TensorProto.INT32,
    torch.int8: onnx.TensorProto.INT8,
    torch.uint8: onnx.TensorProto.UINT8,
    torch.bool: onnx.TensorProto.BOOL,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
}


class Unsupported(Exception):
    """The model does something this translation has no words for; the text says what."""


def alike(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are equal for every batch. Of `==` PyTorch would learn that the batch is the number it met."""
    known = ([size if isinstance(size, int) else str(size.node.expr) for size in shape] for shape in (a, b))
    return next(known) == next(known)


@dataclass(frozen=True)
class Ref:
    """A value that the graph computes."""

    name: str
    shape: tuple[Any, ...]  # int or torch.SymInt
    dtype: torch.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class Dequantized(Ref):
    """A Ref that is values * scale, both constant, so that a transposed one can be made of it."""

    values: Tensor
    scale: Tensor
    axis: int


class Graph:
    """Operators in order, with the constants they read."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.made_by: dict[str, onnx.NodeProto] = {}
        self._constants: dict[str, onnx.TensorProto] = {}
        self._same_constant: dict[tuple[Any, ...], str] = {}
        self._same_node: dict[bytes, list[str]] = {}
        self._sizes: dict[str, tuple[str, int, int]] = {}  # symbol -> input, axis, the size there in symbols
        self._axes: dict[str, str] = {}  # size of an input's axis -> what the axis is called
        self._renamed: dict[str, str] = {}

    def add_input(self, name: str, value: Tensor) -> Ref:
        """A tensor the user gives; its symbolic sizes become known, also where they are multiples of a number."""
        called = TEXT_AXES if value.ndim == 2 and not value.is_floating_point() else AXES
        for axis, size in enumerate(value.shape):
            if isinstance(size, torch.SymInt):
                times, symbol = size.node.expr.as_coeff_Mul()
                self._sizes.setdefault(str(symbol), (name, axis, int(times)))
                self._axes.setdefault(str(size.node.expr), called[axis])
        shape = [self._axis(size) for size in value.shape]
        self.inputs.append(helper.make_tensor_value_info(name, TYPES[value.dtype], shape))
        return Ref(name, tuple(value.shape), value.dtype)

    def constant(self, value: Tensor) -> str:
        """The name of a stored tensor with these very bytes."""
        value = value.detach().cpu().contiguous()
        if value.dtype not in TYPES:
            raise Unsupported(f"a constant of type {value.dtype}")
        raw = (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy().tobytes()
        key = (value.dtype, tuple(value.shape), raw)
        if key not in self._same_constant:
            self._same_constant[key] = made = f"c{len(self._constants)}"
            self._constants[made] = helper.make_tensor(made, TYPES[value.dtype], value.shape, raw, raw=True)
        return self._same_constant[key]

    def value_of(self, name: str) -> Tensor | None:
        """The constant of that name, or None when it is computed."""
        proto = self._constants.get(name)
        return None if proto is None else torch.from_numpy(onnx.numpy_helper.to_array(proto).copy())

    def integers(self, *values: int) -> str:
        return self.constant(torch.tensor(values, dtype=torch.int64))

    def read(self, value: Any, dtype: torch.dtype | None = None) -> str:
        """The name of a value of any sort, converted to the type if one is given."""
        if isinstance(value, Ref):
            if dtype in (None, value.dtype):
                return value.name
            return self.op("Cast", value.name, to=TYPES[dtype])  # type: ignore[index]
        if isinstance(value, Tensor):
            return self.constant(value if dtype is None else value.to(dtype))
        if isinstance(value, torch.SymInt):
            size = self.op("Squeeze", self.size(value), self.integers(0))
            return self.op("Cast", size, to=TYPES[dtype]) if dtype not in (None, torch.int64) else size  # type: ignore[index]
        return self.constant(torch.tensor(value, dtype=dtype))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The name of the operator's one result."""
        return self.ops(kind, *inputs, results=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, results: int, **attributes: Any) -> list[str]:
        """The names of an operator's results; an operator that is there already is not repeated."""
        node = helper.make_node(kind, inputs, [], **attributes)
        key = node.SerializeToString(deterministic=True) + bytes([results & 255])
        if key not in self._same_node:
            self._same_node[key] = names = [f"v{len(self.made_by) + i}" for i in range(results)]
            node.output.extend(names)
            self.nodes.append(node)
            self.made_by.update(dict.fromkeys(names, node))
        return self._same_node[key]

    def size(self, size: int | torch.SymInt) -> str:
        """The name of an int64 vector of one element: a size that may depend on the batch."""
        if isinstance(size, int):
            return self.integers(size)
        return self._expression(size.node.expr)

    def _expression(self, expr: Any) -> str:
        if expr.is_Integer:
            return self.integers(int(expr))
        if expr.is_Symbol and str(expr) in self._sizes:
            name, axis, times = self._sizes[str(expr)]
            size = self.op("Shape", name, start=axis, end=axis + 1)
            return size if times == 1 else self.op("Div", size, self.integers(times))
        if expr.is_Add or expr.is_Mul:
            parts = [self._expression(part) for part in expr.args]
            total = parts[0]
            for part in parts[1:]:
                total = self.op("Add" if expr.is_Add else "Mul", total, part)
            return total
        if type(expr).__name__ == "FloorDiv" and expr.args[1].is_Integer:
            return self.op("Div", self._expression(expr.args[0]), self.integers(int(expr.args[1])))
        raise Unsupported(f"a size that is {expr}")

    def shape(self, sizes: Sequence[int | torch.SymInt], *, inferred: bool = False) -> str:
        """The name of an int64 vector; with `inferred` the one size that varies may be left to Reshape (-1)."""
        varying = [size for size in sizes if not isinstance(size, int)]
        if not varying:
            return self.integers(*(int(size) for size in sizes))
        if inferred and len(varying) == 1:
            return self.integers(*(size if isinstance(size, int) else -1 for size in sizes))
        return self.op("Concat", *(self.size(size) for size in sizes), axis=0)

    def to_model(self, outputs: Sequence[tuple[str, str, Tensor]]) -> onnx.ModelProto:
        """The finished model; outputs are (name, value, example). What no output needs is left out."""
        infos = []
        for name, value, example in outputs:
            shape = [self._axis(size) for size in example.shape]
            infos.append(helper.make_tensor_value_info(name, TYPES[example.dtype], shape))
            self._publish(name, value)
        nodes = _needed(self.nodes, {name for name, _, _ in outputs})
        read = {name for node in nodes for name in node.input}
        constants = [proto for name, proto in self._constants.items() if name in read]
        graph = helper.make_graph(nodes, "model", self.inputs, infos, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

    def _axis(self, size: int | torch.SymInt) -> int | str | None:
        """A size as a file says it: a number, the name of an input's axis, or unknown."""
        return size if isinstance(size, int) else self._axes.get(str(size.node.expr))

    def _publish(self, name: str, value: str) -> None:
        """Give a value the name of an output; one that has no operator or a name already gets a copy."""
        value = self._renamed.get(value, value)
        if value not in self.made_by or value in self._renamed.values():
            self.nodes.append(helper.make_node("Identity", [value], [name]))
            return
        self._renamed[value] = name
        self.made_by[name] = self.made_by.pop(value)
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, old in enumerate(names):
                    if old == value:
                        names[i] = name


def _needed(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    kept, wanted = [], set(wanted)
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1]
