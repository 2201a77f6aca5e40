# SPDX-License-Identifier: Apache-2.0
"""Graphs of a hundred bytes that ask for gigabytes, as far as their own constants show it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_files import floats, helper, ints, model, node, ranging, refused, save, tensor, value

from featherweight.doors import onnx as door

BIG = 1 << 36
FILLS: dict[str, Callable[[], Any]] = {
    "initializer": lambda: model([node("ConstantOfShape", ["s"])], [ints(BIG)]),
    "typed initializer": lambda: model([node("ConstantOfShape", ["s"])], [helper.make_tensor("s", 7, [1], [BIG])]),
    "two dimensions": lambda: model([node("ConstantOfShape", ["s"])], [ints(1 << 20, 1 << 20)]),
    "constant": lambda: model([node("Constant", [], "s", value=ints(BIG)), node("ConstantOfShape", ["s"])]),
    "constant of ints": lambda: model([node("Constant", [], "s", value_ints=[BIG]), node("ConstantOfShape", ["s"])]),
    "computed": lambda: model(
        [node("Mul", ["s", "s"], "t"), node("Concat", ["t", "s"], "u", axis=0), node("ConstantOfShape", ["u"])],
        [ints(1 << 14)],
    ),
    "cast": lambda: model([node("Cast", ["s"], "t", to=7), node("ConstantOfShape", ["t"])], [floats(1e12)]),
    "node before its constant": lambda: model([node("Expand", ["x", "s"])], [ints(BIG)]),
    "tile": lambda: model([node("Tile", ["x", "s"])], [ints(1 << 18, 1 << 18)]),
    "range": lambda: ranging(0, BIG, 1),
    "endless range": lambda: ranging(0, 1, 0),
    "random": lambda: model([node("RandomNormal", [], shape=[1 << 20, 1 << 20])]),
    "resize": lambda: model([node("Resize", ["x", "", "", "s"])], [ints(1 << 20, 1 << 20)]),
    "resize by scales": lambda: model([node("Resize", ["x", "", "s"])], [floats(1e9, 1e9)]),
    "scales that are no numbers": lambda: model([node("Resize", ["x", "", "s"])], [floats(np.nan, 1)]),
    "pad": lambda: model([node("Pad", ["x", "s"])], [ints(0, 0, 0, BIG)]),
    "one-hot": lambda: model([node("OneHot", ["x", "s", "x"])], [ints(BIG)]),
    "window": lambda: model([node("MaxPool", ["x"], kernel_shape=[2, 2], pads=[BIG, 0, 0, 0])]),
    "declared output": lambda: model([node("Identity", ["x"])], outputs=[value("y", [1 << 20, 1 << 20])]),
    "declared input": lambda: model([node("Identity", ["x"])], inputs=[value("x", [1 << 20, 1 << 20])]),
}  # fmt: skip


@pytest.mark.parametrize("fill", FILLS)
def test_a_fill_of_absurd_size_is_refused(tmp_path: Path, fill: str) -> None:
    assert refused(tmp_path, FILLS[fill]()) == "too_large"


def test_a_fill_in_an_inner_graph_and_a_loop_without_end(tmp_path: Path) -> None:
    inner = helper.make_graph([node("ConstantOfShape", ["s"], "o")], "inner", [], [value("o", ["a"])])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    assert refused(tmp_path, model([choice], [tensor(np.array(True), "c"), ints(BIG)])) == "too_large"
    loop = helper.make_node("Loop", ["n", "c"], ["y"], body=inner)
    assert refused(tmp_path, model([loop], [tensor(np.array(BIG), "n"), tensor(np.array(True), "c")])) == "too_large"


def test_ordinary_sizes_pass(tmp_path: Path) -> None:
    for found in (
        model([node("ConstantOfShape", ["s"])], [ints(1000, 1000)]),
        model([node("Expand", ["x", "s"])], [ints(1, 3, 224, 224)]),
        model([node("Slice", ["x", "a", "s"])], [ints(0, name="a"), ints((1 << 63) - 1)]),
        model([node("Reshape", ["x", "s"])], [ints(-1, 0)]),
        ranging(10, 0, -1),
        model([node("Resize", ["x", "", "s"])], [floats(1, 0.5)]),
    ):
        path = save(tmp_path, found)
        assert door.read(path) == path.read_bytes()
