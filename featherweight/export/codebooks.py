# SPDX-License-Identifier: Apache-2.0
"""Shared weights in ONNX: codes, table and scale stay in the file; a runtime makes the weights when it loads it."""

from __future__ import annotations

import onnx
from torch import Tensor

from featherweight.export.aten import Value, operator
from featherweight.export.graph import Graph


@operator
def lookup(g: Graph, out: Tensor, *, table: Value, codes: Value, scale: Value = None) -> str:
    """See methods/share.py."""
    weight = g.op("Gather", g.read(table), g.op("Cast", g.read(codes), to=onnx.TensorProto.INT32))
    return weight if scale is None else g.op("Mul", weight, g.read(scale))
