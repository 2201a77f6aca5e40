# SPDX-License-Identifier: Apache-2.0
"""PyTorch operators in ONNX, the second half: those that move numbers or choose among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from featherweight.export.aten import OPERATORS, Value, operator, permuted
from featherweight.export.graph import Graph, Ref, Unsupported, alike

MAX = (1 << 63) - 1


# Shapes --------------------------------------------------------------------------------------------------------------
@operator
def reshape(g: Graph, out: Tensor, *, self: Value, **shape: Any) -> str:
    """Every operator that only changes the shape: PyTorch has worked out which one."""
    if alike(self.shape, out.shape):
        return g.read(self)
    return g.op("Reshape", g.read(self), g.shape(out.shape, inferred=True))


OPERATORS.update(view=reshape, _unsafe_view=reshape, flatten=reshape, unflatten=reshape)
OPERATORS.update(squeeze=reshape, unsqueeze=reshape, view_as=reshape)


@operator
def expand(g: Graph, out: Tensor, *, self: Value, size: Any = None, implicit: bool = False, other: Value = None) -> str:
    if alike(self.shape, out.shape):
        return g.read(self)
    return g.op("Expand", g.read(self), g.shape(out.shape))


OPERATORS["expand_as"] = expand


@operator
def repeat(g: Graph, out: Tensor, *, self: Value, repeats: Sequence[Any]) -> str:
    name = g.read(self)
    if len(repeats) > len(self.shape):
        shape = (1,) * (len(repeats) - len(self.shape)) + tuple(self.shape)
        name = g.op("Reshape", name, g.shape(shape, inferred=True))
    return g.op("Tile", name, g.shape(repeats))


@operator
def permute(g: Graph, out: Tensor, *, self: Value, dims: Sequence[int]) -> str:
    return permuted(g, g.read(self), [dim % out.ndim for dim in dims])


@operator
def transpose(g: Graph, out: Tensor, *, self: Value, dim0: int, dim1: int) -> str:
    perm = list(range(out.ndim))
    perm[dim0], perm[dim1] = perm[dim1], perm[dim0]
    return permuted(g, g.read(self), perm)


@operator
def t(g: Graph, out: Tensor, *, self: Value) -> str:
    return permuted(g, g.read(self), list(range(out.ndim))[::-1])


@operator
def cat(g: Graph, out: Tensor, *, tensors: Sequence[Value], dim: int = 0) -> str:
    return g.op("Concat", *(g.read(tensor, out.dtype) for tensor in tensors), axis=dim % out.ndim)


@operator
def stack(g: Graph, out: Tensor, *, tensors: Sequence[Value], dim: int = 0) -> str:
    axis = g.integers(dim % out.ndim)
    parts = (g.op("Unsqueeze", g.read(tensor, out.dtype), axis) for tensor in tensors)
    return g.op("Concat", *parts, axis=dim % out.ndim)


@operator
def pad(g: Graph, out: Tensor, *, self: Value, pad: Sequence[int], mode: str = "constant", value: Value = None) -> str:
    name, modes = g.read(self), {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    if not any(pad):
        return name
    if mode not in modes:
        raise Unsupported(f"pad mode {mode}")
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]  # last axis first
    pairs = [(0, 0)] * (out.ndim - len(pairs)) + pairs[::-1]
    sizes = g.shape([first for first, _ in pairs] + [last for _, last in pairs])
    return g.op("Pad", name, sizes, *([g.read(value or 0, out.dtype)] if mode == "constant" else []), mode=modes[mode])


OPERATORS["constant_pad_nd"] = pad


@operator
def roll(g: Graph, out: Tensor, *, self: Value, shifts: Sequence[int], dims: Sequence[int] = ()) -> str:
    name = g.read(self)
    for shift, dim in zip(shifts, dims, strict=True):
        size = out.shape[dim]
        if not isinstance(size, int):
            raise Unsupported("roll along an axis of varying size")
        if shift % size:
            axis, cut = dim % out.ndim, -(shift % size)
            name = g.op("Concat", _slice(g, name, axis, cut, MAX), _slice(g, name, axis, 0, cut), axis=axis)
    return name


@operator
def cumsum(g: Graph, out: Tensor, *, self: Value, dim: int, dtype: Any = None) -> str:
    return g.op("CumSum", g.read(self, out.dtype), g.read(dim % out.ndim, torch.int64))


# Choosing ------------------------------------------------------------------------------------------------------------
def _slice(g: Graph, name: str, dim: int, start: int, end: int, step: int = 1) -> str:
    bounds = [g.integers(start), g.integers(end), g.integers(dim)]
    return g.op("Slice", name, *bounds, *([g.integers(step)] if step != 1 else []))


@operator
def slice_(
    g: Graph, out: Tensor, *, self: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> str:
    if alike(self.shape, out.shape):
        return g.read(self)
    bounds = (0 if start is None else start, MAX if end is None else end)
    if any(isinstance(bound, torch.SymInt) for bound in bounds):
        where = [g.size(bound) for bound in bounds]
        return g.op("Slice", g.read(self), *where, g.integers(dim % out.ndim), g.integers(step))
    return _slice(g, g.read(self), dim % out.ndim, *bounds, step)


@operator
def select(g: Graph, out: Tensor, *, self: Value, dim: int, index: Any) -> str:
    return g.op("Gather", g.read(self), g.read(index, torch.int64), axis=dim % len(self.shape))


@operator
def unbind(g: Graph, out: Sequence[Tensor], *, self: Value, dim: int = 0) -> list[str]:
    """Split, and the axis removed. Of a transposed value, the value is split and its parts transposed: less moves."""
    name, axis, ndim = g.read(self), dim % len(self.shape), len(self.shape)
    maker, perm = g.made_by.get(name), list(range(ndim))
    if maker is not None and maker.op_type == "Transpose":
        perm, name = list(maker.attribute[0].ints), maker.input[0]
    source = perm[axis]
    rest = [place for place in perm if place != source]
    rest = [place - (place > source) for place in rest]
    parts = [name] if len(out) == 1 else g.ops("Split", name, results=len(out), axis=source, num_outputs=len(out))
    return [permuted(g, g.op("Squeeze", part, g.integers(source)), rest) for part in parts]


@operator
def split(g: Graph, out: Sequence[Tensor], *, self: Value, dim: int = 0, **sizes: Any) -> list[str]:
    """Every way of cutting along an axis: PyTorch has worked out the sizes."""
    lengths = g.shape([part.shape[dim] for part in out])
    return g.ops("Split", g.read(self), lengths, results=len(out), axis=dim % len(self.shape))


OPERATORS.update(split_with_sizes=split, chunk=split, tensor_split=split)


@operator
def index_select(g: Graph, out: Tensor, *, self: Value, dim: int, index: Value) -> str:
    return g.op("Gather", g.read(self), g.read(index), axis=dim % len(self.shape))


@operator
def embedding(g: Graph, out: Tensor, *, weight: Value, indices: Value, padding_idx: int = -1) -> str:
    return g.op("Gather", g.read(weight), g.read(indices), axis=0)


@operator
def index_(g: Graph, out: Tensor, *, self: Value, indices: Sequence[Value | None]) -> str:
    given = {place: index for place, index in enumerate(indices) if index is not None}
    first = min(given)
    if len(given) == 1 and given[first].dtype in (torch.int64, torch.int32):
        return g.op("Gather", g.read(self), g.read(given[first]), axis=first)
    if list(given) != list(range(len(given))) or any(index.dtype != torch.int64 for index in given.values()):
        raise Unsupported("indexing by a mask, or by several tensors that are not the first ones")
    shape = torch.broadcast_shapes(*(tuple(index.shape) for index in given.values()))
    parts = [g.op("Expand", g.read(index), g.shape(shape)) for index in given.values()]
    parts = [g.op("Unsqueeze", part, g.integers(-1)) for part in parts]
    return g.op("GatherND", g.read(self), g.op("Concat", *parts, axis=-1))


@operator
def gather(g: Graph, out: Tensor, *, self: Value, dim: int, index: Value) -> str:
    """By element; when the index is one number per row, expanded over the last axis, by row, which is much faster."""
    maker = g.made_by.get(index.name) if isinstance(index, Ref) else None
    if maker is not None and maker.op_type == "Expand" and dim % out.ndim == out.ndim - 2 and out.ndim >= 2:
        rows = g.made_by.get(maker.input[0])
        if rows is not None and rows.op_type in ("Reshape", "Unsqueeze") and alike(out.shape[-1:], self.shape[-1:]):
            column = g.op("Reshape", maker.input[0], g.shape((*out.shape[:-1], 1), inferred=True))
            return g.op("GatherND", g.read(self), column, batch_dims=out.ndim - 2)
    return g.op("GatherElements", g.read(self), g.read(index), axis=dim % out.ndim)


@operator
def topk(
    g: Graph, out: Sequence[Tensor], *, self: Value, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True  # noqa: A002
) -> list[str]:  # fmt: skip
    how = {"axis": dim % len(self.shape), "largest": int(largest), "sorted": int(sorted)}
    return g.ops("TopK", g.read(self), g.size(k), results=2, **how)


@operator
def sort(
    g: Graph, out: Sequence[Tensor], *, self: Value, dim: int = -1, descending: bool = False, stable: Any = None
) -> list[str]:
    how = {"axis": dim % len(self.shape), "largest": int(descending), "sorted": 1}
    return g.ops("TopK", g.read(self), g.size(self.shape[dim]), results=2, **how)


@operator
def argsort(g: Graph, out: Tensor, *, self: Value, dim: int = -1, descending: bool = False, stable: Any = None) -> str:
    how = {"axis": dim % len(self.shape), "largest": int(descending), "sorted": 1}
    return g.ops("TopK", g.read(self), g.size(self.shape[dim]), results=2, **how)[1]
