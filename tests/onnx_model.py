# SPDX-License-Identifier: Apache-2.0
"""A small .onnx file with known answers, made without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT
WEIGHT = np.array([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0]], np.float32)


def write(path: Path) -> Path:
    """x (batch, 3) -> logits (batch, 2) = x WEIGHT, and twice that."""
    weight = helper.make_tensor("w", FLOAT, WEIGHT.shape, WEIGHT.tobytes(), raw=True)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"])]
    nodes += [helper.make_node("Add", ["logits", "logits"], ["twice"])]
    outputs = [helper.make_tensor_value_info(name, FLOAT, ["batch", 2]) for name in ("logits", "twice")]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", FLOAT, ["batch", 3])], outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"task": "image-classification", "names": '{"0": "a b"}'})
    path.write_bytes(model.SerializeToString())
    return path
