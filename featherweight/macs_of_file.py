# SPDX-License-Identifier: Apache-2.0
"""Multiply-adds of an exported file at given input shapes, whoever made it: those of int8 products apart.

The shapes inside come from OpenVINO's reader. Not counted: recurrent layers, graphs whose shapes follow from values.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from featherweight.errors import InputError, MissingExtra
from featherweight.runtime import ov

PASSED = ("Convert", "Multiply", "Subtract", "Reshape", "Transpose", "FakeQuantize")  # between a weight and its layer


class Macs(NamedTuple):
    """Multiply-adds of one call."""

    int8: int
    rest: int

    @property
    def total(self) -> int:
        return self.int8 + self.rest


def macs_of(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Macs | None:
    """Of one call with inputs of these shapes; None where OpenVINO is not installed or the graph does not tell."""
    try:
        source, weights = ov.graph_of(path)
        model = ov.core().read_model(source, weights or b"")
        model.reshape({name: list(shape) for name, shape in shapes.items()})
        counted = [_of(op) for op in model.get_ops()]
    except (MissingExtra, InputError, RuntimeError):
        return None
    found = [one for one in counted if one is not None]
    if len(found) < len(counted):
        return None
    return Macs(sum(n for n, small in found if small), sum(n for n, small in found if not small))


def _of(op: Any) -> tuple[int, bool] | None:
    """Multiply-adds of one operator and whether they are of int8; None where its shapes are not known."""
    kind = op.get_type_name()
    if kind not in ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"):
        return 0, False
    shapes = [op.input(0).get_partial_shape(), op.input(1).get_partial_shape(), op.output(0).get_partial_shape()]
    if any(shape.is_dynamic for shape in shapes):
        return None
    given, weight, out = ([n.get_length() for n in shape] for shape in shapes)
    if kind == "MatMul":
        inner = given[-2] if op.get_attributes()["transpose_a"] and len(given) > 1 else given[-1]
        return prod(out) * inner, _small(op)
    if kind == "ConvolutionBackpropData":
        return prod(given) * prod(weight[1:]), _small(op)
    return prod(out) * prod(weight[1 if kind == "Convolution" else 2 :]), _small(op)


def _small(op: Any) -> bool:
    """Whether both sides of a product are rounded to 8 bits."""
    return all(_rounded(op.input_value(side).get_node()) for side in (0, 1))


def _rounded(node: Any) -> bool:
    for _ in range(6):
        kind = node.get_type_name()
        if kind == "FakeQuantize" or (kind == "Constant" and node.get_element_type().size == 1):
            return True
        if kind not in PASSED:
            return False
        node = node.input_value(0).get_node()
    return False
