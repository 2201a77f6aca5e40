# SPDX-License-Identifier: Apache-2.0
"""Small ONNX graphs made by hand, to measure what a runtime can do: an empty one, and one matrix product.

Without the onnx package, which the runtime half does not bring.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.doors import protobuf as pb

FLOAT, UINT8, INT8 = 1, 2, 3
OPSET, IR = 20, 10


def empty(shape: Sequence[int] = (1, 8)) -> bytes:
    """x -> y, the same: what is left when a model does nothing."""
    return _model([node("Identity", ["x"], "y")], [], tuple(shape), tuple(shape))


def product(rows: int, inner: int, columns: int, *, int8: bool = False) -> bytes:
    """x (rows, inner) times a constant (inner, columns); int8: both rounded to 8 bits as exported models have it."""
    rng = np.random.default_rng(0)
    if not int8:
        weight = tensor("w", rng.standard_normal((inner, columns)).astype(np.float32))
        return _model([node("MatMul", ["x", "w"], "y")], [weight], (rows, inner), (rows, columns))
    weight = tensor("w", rng.integers(-127, 128, (inner, columns)).astype(np.int8))
    scale, zero = tensor("s", np.float32(0.03)), tensor("z", np.int8(0))
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], "q"),
        node("DequantizeLinear", ["q", "s", "z"], "d"),
        node("DequantizeLinear", ["w", "s", "z"], "e"),
        node("MatMul", ["d", "e"], "y"),
    ]
    return _model(nodes, [weight, scale, zero], (rows, inner), (rows, columns))


def _model(nodes: list[bytes], tensors: list[bytes], given: tuple[int, ...], answer: tuple[int, ...]) -> bytes:
    graph = b"".join(pb.encoded(1, one) for one in nodes) + pb.encoded(2, b"graph")
    graph += b"".join(pb.encoded(5, one) for one in tensors)
    graph += pb.encoded(11, value("x", given)) + pb.encoded(12, value("y", answer))
    opset = pb.encoded(1, b"") + pb.number(2, OPSET)
    return pb.number(1, IR) + pb.encoded(7, graph) + pb.encoded(8, opset)


def node(kind: str, inputs: Sequence[str], output: str, **attributes: int | Sequence[int]) -> bytes:
    """A node named after its output, with whole numbers as attributes."""
    named = b"".join(pb.encoded(1, name.encode()) for name in inputs) + pb.encoded(2, output.encode())
    named += pb.encoded(3, f"{kind}_{output}".encode()) + pb.encoded(4, kind.encode())
    for name, found in attributes.items():
        many = not isinstance(found, int)
        numbers = b"".join(pb.number(8, n) for n in found) if not isinstance(found, int) else pb.number(3, found)
        named += pb.encoded(5, pb.encoded(1, name.encode()) + numbers + pb.number(20, 7 if many else 2))
    return named


def tensor(name: str, values: NDArray[Any] | np.generic) -> bytes:
    """An initializer, float32 or int8."""
    array = np.asarray(values)
    kind = INT8 if array.dtype == np.int8 else FLOAT
    sizes = b"".join(pb.number(1, n) for n in array.shape)
    return sizes + pb.number(2, kind) + pb.encoded(8, name.encode()) + pb.encoded(9, array.tobytes())


def value(name: str, shape: Sequence[int | str], kind: int = FLOAT) -> bytes:
    """An input or output; a text in the shape is the name of a size that may vary."""
    sizes = [pb.number(1, n) if isinstance(n, int) else pb.encoded(2, n.encode()) for n in shape]
    dims = b"".join(pb.encoded(1, size) for size in sizes)
    return pb.encoded(1, name.encode()) + pb.encoded(2, pb.encoded(1, pb.number(1, kind) + pb.encoded(2, dims)))
