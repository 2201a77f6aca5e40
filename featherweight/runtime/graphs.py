# SPDX-License-Identifier: Apache-2.0
"""Small ONNX graphs made by hand, to measure what a runtime can do: an empty one, and one matrix product.

Without the onnx package, which the runtime half does not bring.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featherweight.doors import protobuf as pb

FLOAT, INT8 = 1, 3
OPSET, IR = 20, 10


def empty(shape: Sequence[int] = (1, 8)) -> bytes:
    """x -> y, the same: what is left when a model does nothing."""
    return _model([_node("Identity", ["x"], "y")], [], tuple(shape), tuple(shape))


def product(rows: int, inner: int, columns: int, *, int8: bool = False) -> bytes:
    """x (rows, inner) times a constant (inner, columns); int8: both rounded to 8 bits as exported models have it."""
    rng = np.random.default_rng(0)
    if not int8:
        weight = _tensor("w", rng.standard_normal((inner, columns)).astype(np.float32))
        return _model([_node("MatMul", ["x", "w"], "y")], [weight], (rows, inner), (rows, columns))
    weight = _tensor("w", rng.integers(-127, 128, (inner, columns)).astype(np.int8))
    scale, zero = _tensor("s", np.float32(0.03)), _tensor("z", np.int8(0))
    nodes = [
        _node("QuantizeLinear", ["x", "s", "z"], "q"),
        _node("DequantizeLinear", ["q", "s", "z"], "d"),
        _node("DequantizeLinear", ["w", "s", "z"], "e"),
        _node("MatMul", ["d", "e"], "y"),
    ]
    return _model(nodes, [weight, scale, zero], (rows, inner), (rows, columns))


def _model(nodes: list[bytes], tensors: list[bytes], given: tuple[int, ...], answer: tuple[int, ...]) -> bytes:
    graph = b"".join(pb.encoded(1, node) for node in nodes) + pb.encoded(2, b"graph")
    graph += b"".join(pb.encoded(5, tensor) for tensor in tensors)
    graph += pb.encoded(11, _value("x", given)) + pb.encoded(12, _value("y", answer))
    opset = pb.encoded(1, b"") + pb.number(2, OPSET)
    return pb.number(1, IR) + pb.encoded(7, graph) + pb.encoded(8, opset)


def _node(kind: str, inputs: Sequence[str], output: str) -> bytes:
    named = b"".join(pb.encoded(1, name.encode()) for name in inputs) + pb.encoded(2, output.encode())
    return named + pb.encoded(3, f"{kind}_{output}".encode()) + pb.encoded(4, kind.encode())


def _tensor(name: str, values: NDArray[np.generic] | np.generic) -> bytes:
    array = np.asarray(values)
    kind = INT8 if array.dtype == np.int8 else FLOAT
    sizes = b"".join(pb.number(1, n) for n in array.shape)
    return sizes + pb.number(2, kind) + pb.encoded(8, name.encode()) + pb.encoded(9, array.tobytes())


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    sizes = b"".join(pb.encoded(1, pb.number(1, n)) for n in shape)
    kind = pb.encoded(1, pb.number(1, FLOAT) + pb.encoded(2, sizes))
    return pb.encoded(1, name.encode()) + pb.encoded(2, kind)
