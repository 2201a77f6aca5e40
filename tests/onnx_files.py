# SPDX-License-Identifier: Apache-2.0
"""Small ONNX models for the door, made with the onnx package; where that is missing the tests skip themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featherweight.doors import onnx as door
from featherweight.errors import InputError

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

W = np.arange(4, dtype=np.float32).reshape(2, 2)
Nodes = list[Any]


def value(name: str, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(nodes: Nodes, weights: Nodes = (), *, inputs: Nodes | None = None, outputs: Nodes | None = None) -> Any:
    graph = helper.make_graph(nodes, "g", inputs or [value("x", [2, 2])], outputs or [value("y", ["a", "b"])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def adding(weight: Any) -> Any:
    return model([helper.make_node("Add", ["x", "w"], ["y"])], [weight])


def tensor(array: np.ndarray = W, name: str = "w") -> Any:
    return numpy_helper.from_array(array, name)


def ints(*values: int, name: str = "s") -> Any:
    return tensor(np.array(values, dtype=np.int64), name)


def outside(**entries: str) -> Any:
    found = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 2], data_location=TensorProto.EXTERNAL)
    for key, text in entries.items():
        found.external_data.add(key=key, value=text)
    return found


def save(folder: Path, what: Any, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(what if isinstance(what, bytes) else what.SerializeToString())
    return path


def refused(folder: Path, what: Any) -> str:
    with pytest.raises(InputError) as caught:
        door.read(save(folder, what))
    assert "m.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def node(op: str, inputs: list[str], output: str = "y", **attributes: Any) -> Any:
    return helper.make_node(op, inputs, [output], **attributes)


def floats(*values: float) -> Any:
    return tensor(np.array(values, dtype=np.float32), "s")


def ranging(*numbers: int) -> Any:
    weights = [tensor(np.array(value), name) for name, value in zip("abc", numbers, strict=True)]
    return model([node("Range", ["a", "b", "c"])], weights)
