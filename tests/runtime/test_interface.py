# SPDX-License-Identifier: Apache-2.0
"""Modes, precision, warm start, profiles, and what is said of a graph that a runtime does not take."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_model import FLOAT, WEIGHT, write

from featherweight import floors, sessions
from featherweight.doors import onnx as door
from featherweight.errors import InputError, OptionError, StorageError
from featherweight.runtime import graphs, session
from featherweight.runtime.session import open_session

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
BOTH = pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
X = np.array([[1.0, 2.0, 3.0], [0.1, -0.2, 0.3]], np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "m.onnx")


@BOTH
def test_many_in_flight_answer_in_order(model: Path, backend: str) -> None:
    opened = open_session(model, backend=backend, threads=2, mode="throughput", streams=2)
    assert opened.in_flight == 2
    feeds = [{"x": X + number} for number in range(7)]
    for given, found in zip(feeds, opened.stream(iter(feeds)), strict=True):
        np.testing.assert_allclose(found["logits"], given["x"] @ WEIGHT, rtol=1e-5)
    with pytest.raises(OptionError, match="must be float32"):
        list(opened.stream([feeds[0], {"x": X.astype(np.float64)}]))
    begun = opened.stream(iter(feeds))
    first = next(begun)["logits"]
    begun.close()  # type: ignore[attr-defined]  # stopped early, and begun again
    np.testing.assert_array_equal(next(opened.stream(iter(feeds)))["logits"], first)


@BOTH
def test_lent_answers_are_written_over_and_others_are_not(model: Path, backend: str) -> None:
    opened = open_session(model, backend=backend, threads=1)
    mine, lent = opened.run({"x": X})["logits"], opened.run({"x": X}, copy=False)["logits"]
    again = opened.run({"x": -X}, copy=False)["logits"]
    np.testing.assert_allclose(again, -X @ WEIGHT, rtol=1e-6)
    np.testing.assert_array_equal(lent, again)  # the same memory
    np.testing.assert_allclose(mine, X @ WEIGHT, rtol=1e-6)
    assert opened.run({"x": X[:1]}, copy=False)["logits"].shape == (1, 2)  # another batch


@BOTH
def test_the_second_process_finds_it_compiled(model: Path, tmp_path: Path, backend: str) -> None:
    cache = tmp_path / "cache"
    cold = open_session(model, backend=backend, threads=1, cache=cache)
    warm = open_session(model, backend=backend, threads=1, cache=cache)
    assert (cold.warm, warm.warm) == (False, True)
    assert (warm.metadata, warm.dtype, warm.inputs) == (cold.metadata, cold.dtype, cold.inputs)
    np.testing.assert_array_equal(warm.run({"x": X})["logits"], cold.run({"x": X})["logits"])
    (kept,) = cache.iterdir()
    if os.name != "nt":
        assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")  # damaged: compiled anew, and kept anew
    assert not open_session(model, backend=backend, threads=1, cache=cache).warm
    assert open_session(model, backend=backend, threads=1, cache=cache).warm
    changed = onnx.load(model)
    changed.graph.initializer[0].CopyFrom(helper.make_tensor("w", FLOAT, (3, 2), (2 * WEIGHT).tobytes(), raw=True))
    onnx.save(changed, model)
    other = open_session(model, backend=backend, threads=1, cache=cache)
    assert not other.warm
    np.testing.assert_allclose(other.run({"x": X})["logits"], 2 * X @ WEIGHT, rtol=1e-5)


def test_compiled_for_one_shape_alone(model: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second comes from the cache
        fixed = open_session(model, backend="openvino", threads=1, shapes={"x": (2, 3)}, cache=tmp_path / "cache")
        assert fixed.inputs[0].shape == (2, 3)
        np.testing.assert_allclose(fixed.run({"x": X})["logits"], X @ WEIGHT, rtol=1e-6)
    assert fixed.warm and not open_session(model, backend="openvino", threads=1, cache=tmp_path / "cache").warm
    with pytest.raises(OptionError, match=r"must have the shape \(2, 3\)"):
        fixed.run({"x": X[:1]})
    for backend, shapes, text in (
        ("openvino", {"y": (1, 3)}, "no input 'y'"),
        ("openvino", {"x": (1, 4)}, "does not run with x"),
        ("onnxruntime", {"x": (1, 3)}, "compiles for any size"),
    ):
        with pytest.raises(OptionError, match=text):
            open_session(model, backend=backend, shapes=shapes)


def test_the_cache_is_where_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    open_session(model, backend="onnxruntime")
    assert not (tmp_path / "mine").exists()
    open_session(model, backend="onnxruntime", cache=True)
    assert len(list((tmp_path / "mine" / "featherweight" / "compiled").iterdir())) == 1
    with pytest.raises(StorageError, match="cannot be a cache"):
        open_session(model, backend="onnxruntime", cache=model / "below a file")


@BOTH
def test_layers_are_timed_when_asked_for(model: Path, backend: str) -> None:
    layers = open_session(model, backend=backend, threads=1, profile=True).layers({"x": X})
    assert layers and all(layer.name and layer.kind and layer.ms >= 0 for layer in layers)
    with pytest.raises(OptionError, match="profile=True"):
        open_session(model, backend=backend).layers({"x": X})


def unknown(path: Path, *, name: str) -> Path:
    """x -> y by an operator that nobody has."""
    node = helper.make_node("Frobnicate", ["x"], ["inside"], name=name)
    ports = [helper.make_tensor_value_info(port, FLOAT, [1, 3]) for port in ("x", "y")]
    graph = helper.make_graph([node, helper.make_node("Relu", ["inside"], ["y"])], "g", ports[:1], ports[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(made.SerializeToString())
    return path


@BOTH
@pytest.mark.parametrize(("name", "shown"), [("/block/frob", "/block/frob"), ("", "inside")])
def test_an_operator_that_a_runtime_lacks_is_named_with_its_layer(
    tmp_path: Path, backend: str, name: str, shown: str
) -> None:
    with pytest.raises(InputError, match=rf"unsupported_op: .* has no operator Frobnicate \(layer {shown}\)"):
        open_session(unknown(tmp_path / "odd.onnx", name=name), backend=backend)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mode": "troughput"}, "did you mean 'throughput'"),
        ({"streams": 2}, "goes with mode throughput"),
        ({"mode": "throughput", "streams": 0}, "at least 1"),
    ],
)
def test_wrong_options_are_named(model: Path, options: dict[str, object], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        open_session(model, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("int8", [False, True])
@BOTH
def test_graphs_made_by_hand(tmp_path: Path, backend: str, int8: bool) -> None:
    data = graphs.product(4, 8, 3, int8=int8)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    assert door.checked(data, tmp_path) == data
    opened = session.opened(tmp_path / "product", backend, session.checked(threads=1), data)
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (8, 3)) * 0.03 if int8 else rng.standard_normal((8, 3))
    given = (np.arange(32, dtype=np.float32) % 5).reshape(4, 8) * 0.3  # multiples of the int8 graph's step
    np.testing.assert_allclose(opened.run({"x": given})["y"], given @ weight, atol=1e-4)
    assert opened.dtype == ("int8" if int8 else "float32")


def test_a_floor_is_measured_in_every_runtime() -> None:
    found = floors.floors(threads=1, budget_s=0.01)
    assert set(found) == {"torch", "onnxruntime", "openvino"}
    assert all(0 < one.median_ms < 1000 and one.conditions.threads == 1 for one in found.values())
    with pytest.raises(OptionError, match="did you mean 'openvino'"):
        floors.floor("openvno")


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.layer(x) + ids[:, None], "ids": ids}


def test_a_torch_module_has_the_same_face() -> None:
    torch.manual_seed(0)
    module, feed = Two(), {"x": X, "ids": np.array([0, 1])}
    opened = sessions.open_model(module, example=feed, threads=1, precision="f32")
    assert (opened.backend, opened.dtype, opened.threads) == ("torch", "float32", 1)
    with torch.no_grad():
        expected = module(torch.from_numpy(X), torch.tensor([0, 1]))["logits"].numpy()
    np.testing.assert_allclose(opened.run(feed)["logits"], expected, rtol=1e-6)
    assert opened.run(feed)["ids"].dtype == np.int64
    assert [layer.kind for layer in opened.layers(feed)] == ["Linear"]
    with pytest.raises(OptionError, match="'ids' is missing"):
        opened.run({"x": X})
    for precision, dtype in (("bf16", "bfloat16"), ("autocast", "autocast bfloat16")):
        rough = sessions.open_model(module, example=feed, threads=1, precision=precision)
        assert rough.dtype == dtype
        np.testing.assert_allclose(rough.run(feed)["logits"], expected, atol=0.05)
    assert module.layer.weight.dtype == torch.float32 and module.training  # yours is as it was


def test_float32_that_is_multiplied_in_bfloat16_is_told() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert "bfloat16" in sessions.prepared(torch.nn.Linear(3, 2), threads=1).dtype
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "example: is missing"),
        ({"example": X, "mode": "throughput"}, "one batch at a time"),
        ({"example": X, "backend": "openvino"}, "Known: torch, torch-compiled"),
        ({"example": X, "precision": "bf61"}, "did you mean 'bf16'"),
    ],
)
def test_what_torch_cannot_do_is_said(options: dict[str, object], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        sessions.open_model(torch.nn.Linear(3, 2), **options)  # type: ignore[arg-type]


def test_a_file_by_the_same_function(model: Path) -> None:
    opened = sessions.open_model(model, backend="openvino", threads=1)
    np.testing.assert_allclose(opened.run({"x": X})["logits"], X @ WEIGHT, rtol=1e-6)
