# SPDX-License-Identifier: Apache-2.0
"""ONNX files: whole models pass unchanged, weights beside them come inside, everything that reaches out is refused."""

import glob
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_files import W, adding, helper, ints, model, onnx, outside, refused, save, tensor, value

from featherweight.doors import onnx as door
from featherweight.doors import protobuf as pb
from featherweight.errors import InputError

TensorProto = onnx.TensorProto


def test_a_whole_model_passes_unchanged(tmp_path: Path) -> None:
    path = save(tmp_path, adding(tensor()))
    assert door.read(path) == path.read_bytes()


def test_the_models_of_the_onnx_project_pass(tmp_path: Path) -> None:
    import onnx.backend.test

    folder = os.path.dirname(onnx.backend.test.__file__)
    found = sorted(glob.glob(os.path.join(folder, "data", "**", "*.onnx"), recursive=True))
    assert len(found) > 50
    for path in found:
        if "training" in path or "gradient" in path:
            continue
        assert door.read(path) == Path(path).read_bytes(), path


@pytest.mark.parametrize("kind", [kind for kind in helper.get_all_tensor_dtypes() if kind <= 26])
def test_every_type_of_tensor_is_measured_right(tmp_path: Path, kind: int) -> None:
    if kind == TensorProto.STRING:
        made = helper.make_tensor("w", kind, [3], ["a", "b", "c"])
    else:
        made = helper.make_tensor("w", kind, [3], np.zeros(3, dtype=helper.tensor_dtype_to_np_dtype(kind)).tolist())
    door.read(save(tmp_path, adding(made)))
    del made.dims[:]
    made.dims.append(30)
    assert refused(tmp_path, adding(made)) == "corrupt"


# weights beside the model -------------------------------------------------------------------------------------------
def nested(weight: Any) -> Any:
    inner = helper.make_graph([helper.make_node("Add", ["x", "w"], ["o"])], "inner", [], [value("o", [2, 2])], [weight])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    return model([choice], [tensor(np.array(True), "c")])


def attribute(weight: Any) -> Any:
    weights = helper.make_node("Constant", [], ["w"])
    weights.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(weight)
    return model([weights, helper.make_node("Add", ["x", "w"], ["y"])])


def sparse(weight: Any) -> Any:
    found = model([helper.make_node("Identity", ["x"], ["y"])])
    made = found.graph.sparse_initializer.add(dims=[4])
    made.values.CopyFrom(weight)
    made.indices.CopyFrom(ints(0, 1, 2, 3))
    return found


PLACES = {"initializer": adding, "nested graph": nested, "attribute": attribute, "sparse": sparse}


@pytest.mark.parametrize("place", PLACES)
def test_weights_beside_the_model_come_inside(tmp_path: Path, place: str) -> None:
    (tmp_path / "sub").mkdir()
    for location, offset, length in (("w.bin", "8", "16"), ("sub/w.bin", "8", None), ("w.bin", None, "16")):
        (tmp_path / location).write_bytes(b"12345678" * (offset is not None) + W.tobytes())
        entries = {"location": location, "offset": offset, "length": length}
        weight = outside(**{k: v for k, v in entries.items() if v is not None})
        data = door.read(save(tmp_path, PLACES[place](weight)))
        expected = PLACES[place](tensor())
        found = onnx.load_from_string(data)
        assert str(found).count("external") == 0
        if place != "sparse":
            ort = pytest.importorskip("onnxruntime")
            session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
            assert np.array_equal(session.run(None, {"x": W})[0], 2 * W)
        assert len(data) <= len(expected.SerializeToString()) + 8


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "location",
    [
        "../w.bin", "a/../../w.bin", "sub/../w.bin", "./w.bin", "/etc/passwd", "//etc/passwd", "/proc/self/environ",
        "..", "\\etc\\passwd", "..\\w.bin", "C:\\w.bin", "C:w.bin", "", "sub//w.bin", "*/_ORT_MEM_ADDR_/*", "w\0.bin",
        "w\n.bin", "link.bin", "linked/w.bin", "folder", "pipe",
    ],
)  # fmt: skip
def test_weights_anywhere_else_are_refused(tmp_path: Path, place: str, location: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    (here / "w.bin").write_bytes(W.tobytes())
    (here / "sub").mkdir()
    (here / "folder").mkdir()
    (here / "link.bin").symlink_to(tmp_path / "w.bin")
    (here / "linked").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(here / "pipe")
    assert refused(here, PLACES[place](outside(location=location, offset="0", length="16"))) == "unsafe_path"


@pytest.mark.parametrize(
    "entries",
    [
        {"length": "1125899906842624"},
        {"length": "17"},
        {"length": "8"},
        {"length": "-1"},
        {"length": "-16", "offset": "16"},
        {"offset": "-1"},
        {"offset": "8", "length": "16"},
        {"offset": "9" * 40},
        {"offset": "0x0"},
        {"offset": " 0"},
        {"offset": "\u0661"},
        {"offset": ""},
        {"basepath": "/etc"},
    ],
)
def test_offsets_and_lengths_are_compared_with_the_file(tmp_path: Path, entries: dict[str, str]) -> None:
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    assert refused(tmp_path, adding(outside(location="w.bin", **entries))) == "corrupt"


def test_other_faults_of_an_address(tmp_path: Path) -> None:
    assert refused(tmp_path, adding(outside(location="w.bin"))) == "missing"
    assert refused(tmp_path, adding(outside())) == "corrupt"
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    twice = outside(location="w.bin")
    twice.external_data.add(key="location", value="/etc/passwd")
    assert refused(tmp_path, adding(twice)) == "corrupt"
    both = tensor()
    both.external_data.add(key="location", value="w.bin")
    assert refused(tmp_path, adding(both)) == "corrupt"
    # A reader that merges the two parts of one message would see the address of the second in the first.
    first = adding(tensor()).SerializeToString()
    assert refused(tmp_path, first + first) == "corrupt"


# operators, fills ---------------------------------------------------------------------------------------------------
def test_operators_of_unknown_makers_are_refused_wherever_they_are(tmp_path: Path) -> None:
    evil = helper.make_node("Evil", ["x"], ["o"], domain="evil.ops")
    inner = helper.make_graph([evil], "inner", [], [value("o", [2, 2])])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    assert refused(tmp_path, model([evil])) == "unsupported_op"
    assert refused(tmp_path, model([choice], [tensor(np.array(True), "c")])) == "unsupported_op"
    for domain in ("", "ai.onnx", "ai.onnx.ml", "com.microsoft"):
        path = save(tmp_path, model([helper.make_node("Add", ["x", "x"], ["y"], domain=domain)]))
        assert door.read(path) == path.read_bytes()


def test_functions_and_training_graphs_are_refused(tmp_path: Path) -> None:
    found = adding(tensor())
    found.functions.add(name="f", domain="local")
    assert refused(tmp_path, found) == "unsupported_op"
    found = adding(tensor())
    found.training_info.add()
    assert refused(tmp_path, found) == "unsupported_op"


# damage -------------------------------------------------------------------------------------------------------------
def test_a_model_cut_anywhere_is_refused_or_means_less(tmp_path: Path) -> None:
    whole = adding(tensor())
    data, refusals = whole.SerializeToString(), list[InputError]()
    for end in range(1, len(data), 2):
        path = save(tmp_path, data[:end])
        try:
            passed = door.read(path)
        except InputError as error:
            refusals.append(error)
            continue
        assert passed == data[:end]
        less = onnx.load_from_string(passed)  # a cut between two fields is a message still
        assert less != whole and all(getattr(less, f.name) == value for f, value in less.ListFields())
        assert {f.name for f, _ in less.ListFields()} < {f.name for f, _ in whole.ListFields()}
    assert len(refusals) > len(data) // 4
    assert all(error.reason in ("corrupt", "truncated") and "\n" not in str(error) for error in refusals)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, b"") == "empty"
    for data in (b"\0", b"hello, world", b"<!DOCTYPE html>", b"PK\x03\x04" + bytes(30), b"\xff" * 40, b"\x08\x09"):
        assert refused(tmp_path, data) == "corrupt"


@pytest.mark.parametrize(
    "data",
    [
        pb.number(7, 1),  # a graph that is a number
        pb.encoded(7, pb.number(1, 5)),  # a node that is a number
        pb.encoded(7, pb.encoded(1, pb.number(4, 5))),  # an operator's name that is a number
        pb.encoded(7, pb.encoded(1, pb.encoded(4, b"\xff"))),  # or not text
        pb.encoded(7, pb.encoded(12, pb.encoded(1, b"\xff"))),  # an output's name that is not text
        pb.encoded(7, b"") + pb.encoded(14, pb.encoded(2, b"\xff")),  # a note that is not text
        pb.encoded(7, pb.encoded(2, b"\xff")),  # a graph's name
        pb.encoded(7, pb.encoded(5, pb.number(2, 99))),  # a tensor of unknown type
        pb.encoded(7, pb.encoded(5, pb.number(2, 1) + pb.number(1, (1 << 64) - 1))),  # negative
        pb.encoded(7, pb.encoded(5, pb.number(2, 1) + pb.number(1, 1) * 70)),  # of 70 dimensions
        pb.encoded(7, pb.encoded(5, pb.number(2, 1) + pb.encoded(3, b""))),  # in segments
        pb.encoded(7, pb.encoded(5, pb.number(2, 1) + pb.number(9, 1))),  # whose bytes are a number
        pb.encoded(7, b"\x0b\x0c"),  # a group
        pb.encoded(7, b"\x00\x00"),  # field 0
        pb.encoded(7, b"\x0a\xff\xff\xff\xff\x0f"),  # longer than the file
        pb.encoded(7, b"\x08" + b"\x80" * 20),  # a number without an end
    ],
)
def test_broken_messages_are_refused(tmp_path: Path, data: bytes) -> None:
    assert refused(tmp_path, data) == "corrupt"


def test_graphs_in_graphs_are_bounded(tmp_path: Path) -> None:
    data = b""
    for _ in range(500):
        data = pb.encoded(1, pb.encoded(5, pb.encoded(6, data)))
    assert refused(tmp_path, pb.encoded(7, data)) == "corrupt"
