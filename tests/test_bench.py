# SPDX-License-Identifier: Apache-2.0
"""Racing models and other people's files: what a row says, what is left out, and what is said of a busy machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from featherweight import cli, fresh, latency, macs_of_file, measure, roofline, sources, verbs
from featherweight.errors import OptionError
from featherweight.runtime import graphs
from featherweight.verbs import racing

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
QUICK: dict[str, Any] = {"repeats": 6, "budget_s": 0.02, "attempts": 1, "threads": 1}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """A file of somebody else's: x (4, 8) times a constant (8, 3)."""
    path = tmp_path / "product.onnx"
    path.write_bytes(graphs.product(4, 8, 3))
    return path


def conv(path: Path) -> Path:
    """Pictures (N, 3, H, W) -> a convolution to four channels."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 3, 3, 3], np.ones(108, np.float32).tobytes(), raw=True)
    node = helper.make_node("Conv", ["images", "w"], ["y"], pads=[1, 1, 1, 1])
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, "h", "w"])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, "h", "w"])
    graph = helper.make_graph([node], "conv", [given], [answer], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    return path


def test_a_race_for_each_batch_and_number_of_threads(tmp_path: Path) -> None:
    file = conv(tmp_path / "conv.onnx")
    given = {**QUICK, "threads": (1, 2), "shapes": None, "resolution": (8, 6)}
    rows = verbs.bench([file], batch=(1, 2), backend=("onnxruntime", "openvino"), **given)
    assert [(row["threads"], row["batch"], row["runtime"]) for row in rows] == [
        (threads, batch, runtime) for threads in (1, 2) for batch in (1, 2) for runtime in ("onnxruntime", "openvino")
    ]
    assert all(row["cpu_ms"] >= 0 and row["p10_ms"] <= row["median_ms"] <= row["p90_ms"] for row in rows)
    assert rows[0]["verdict"] == "baseline" and rows[1]["verdict"] != "baseline"


def test_what_cannot_run_so_is_left_out_and_said(product: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"left out of batch 4: .*\(onnxruntime, bf16\)"):
        rows = verbs.bench(
            [product], batch=(4,), backend=("onnxruntime", "openvino"), precision=("f32", "bf16"), **QUICK
        )
    assert [(row["model"].partition(" ")[2], row["batch"]) for row in rows] == [
        ("(onnxruntime, f32)", 4), ("(openvino, f32)", 4), ("(openvino, bf16)", 4)
    ]  # fmt: skip
    with pytest.warns(UserWarning, match="takes 4 at a time, not 1"):
        assert {row["batch"] for row in verbs.bench([product], batch=(1, 4), **QUICK)} == {4}
    with pytest.raises(OptionError, match="takes 4 at a time, not 2"):
        verbs.bench([product], batch=(2,), **QUICK)
    for wrong, text in (({"precision": "bf61"}, "'bf16'"), ({"mode": "fast"}, "Known: latency, throughput")):
        with pytest.raises(OptionError, match=text):
            verbs.bench([product], batch=(4,), **QUICK, **wrong)


def test_a_busy_machine_is_told_and_the_calmest_race_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def race(ready: Any, **_: Any) -> latency.Times:
        calls.append(1)
        wide = {1: 9.0, 2: 3.0, 3: 5.0}[len(calls)]
        return latency.Times({"m": latency.Latency(10.0, 10 - wide, 10 + wide)}, {"m": [[1.0]]})

    monkeypatch.setattr(measure, "race", race)
    times, tries = racing._steady({"m": None}, 3, repeats=6, budget_s=0.1)  # type: ignore[dict-item]
    assert (times["m"].p90_ms, tries["attempts"]) == (13.0, 3)
    assert "busy" in tries["remark"] and "spread by 60 % of the median after 3 races" in tries["remark"]
    monkeypatch.setattr(racing, "SPREAD", 2.0)
    calls.clear()
    calm = racing._steady({"m": None}, 3, repeats=6, budget_s=0.1)[1]  # type: ignore[dict-item]
    assert calm == {"attempts": 1, "remark": None}


def test_multiply_adds_of_anybodys_file(product: Path, tmp_path: Path) -> None:
    assert macs_of_file.macs_of(product, {"x": (4, 8)}) == (0, 4 * 8 * 3)
    (tmp_path / "int8.onnx").write_bytes(graphs.product(4, 8, 3, int8=True))
    assert macs_of_file.macs_of(tmp_path / "int8.onnx", {"x": (4, 8)}) == (4 * 8 * 3, 0)
    found = macs_of_file.macs_of(conv(tmp_path / "conv.onnx"), {"images": (2, 3, 8, 6)})
    assert found is not None and found.total == 2 * 8 * 6 * 4 * 27


PEAKS = roofline.Roofline(
    1,
    (
        roofline.Product("float32", "small", "openvino", 2e9),
        roofline.Product("float32", "large", "onnxruntime", 1e9),
        roofline.Product("int8", "small", "openvino", 8e9),
    ),
    4e9,
    1e9,
    1000,
)


def test_the_limit_is_what_the_slower_of_two_takes() -> None:
    assert (PEAKS.peak("float32"), PEAKS.peak("float32", "large"), PEAKS.peak("bfloat16")) == (2e9, 1e9, None)
    assert PEAKS.limit(rest=2_000_000) == roofline.Limit(1.0, "compute")
    both = PEAKS.limit(rest=2_000_000, int8=8_000_000, dtype="int8")
    assert (both.ms, both.bound) == (2.0, "compute")
    heavy = PEAKS.limit(rest=1, weights=3_000_000)
    assert (heavy.ms, heavy.bound) == (3.0, "memory")
    assert PEAKS.limit(rest=1, weights=1000).ms == pytest.approx(1000 / 4e6)  # in the cache


def test_a_row_says_how_far_from_the_limit_it_is(product: Path) -> None:
    (row,) = verbs.bench([product], batch=(4,), roofline=PEAKS, **QUICK)
    assert row["macs"] == 96 and row["limit_ms"] > 0
    assert row["limit_share"] == pytest.approx(row["limit_ms"] / row["median_ms"], abs=1e-4)


def test_the_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "SIZES", {"small": (8, 16, 16), "large": (16, 32, 32)})
    monkeypatch.setattr(roofline, "MEMORY_BYTES", 1 << 20)
    found = roofline.measured(threads=1, budget_s=0.01)
    assert {("float32", "onnxruntime"), ("int8", "openvino")} <= {(p.dtype, p.runtime) for p in found.products}
    assert all(p.macs_per_s > 0 for p in found.products)
    assert found.memory_bytes_per_s > 0 and found.cached_bytes_per_s > 0
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_model_is_started_in_a_process_of_its_own(product: Path, tmp_path: Path) -> None:
    source, cache = sources.find(product, backend="onnxruntime"), tmp_path / "cache"
    cold = fresh.started(source, batch=4, threads=1, cache=cache)
    assert 0 < cold.load_ms < cold.ready_ms and cold.first_ms > 0 and not cold.warm
    assert fresh.started(source, batch=4, threads=1, cache=cache).warm
    if os.path.exists("/proc/self/status"):
        assert cold.peak_bytes is not None and cold.peak_bytes < 400e6  # not what the parent has


def test_layers_of_a_file_and_of_a_module(product: Path) -> None:
    kinds = {layer.kind for layer in verbs.layers(product, backend="onnxruntime", batch=4, threads=1)}
    assert "MatMul" in kinds
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    found = verbs.layers(module, resolution=(8, 8), threads=1)
    assert {(layer.name, layer.kind) for layer in found} == {("0", "Conv2d"), ("1", "ReLU")}


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    conv(tmp_path / "conv.onnx")
    given = ["bench", "conv.onnx", "--batch", "2", "--threads", "1", "--seconds", "0.02", "--shape", "images=2,3,8,6"]
    assert cli.main([*given, "--floor", "--layers", "--plot", "race.svg", "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["rows"][0]["batch"] == 2 and set(found["floor"]) >= {"onnxruntime", "openvino"}
    assert found["layers"][0]["layers"] and "kinds" in said.err
    drawing = (tmp_path / "race.svg").read_text(encoding="utf-8")
    assert "batch 2, 1 thread" in drawing and "conv.onnx" in drawing
    for wrong, text in (
        (["--shape", "images"], "is not a name and a shape"),
        (["--plot", "race.gif"], "draws .svg files"),
        (["--mode", "fast"], "Known: latency, throughput"),
    ):
        assert cli.main([*given, *wrong]) == 2
        assert text in capsys.readouterr().err


def test_a_module_in_memory_is_looked_at() -> None:
    torch.manual_seed(0)
    nn = torch.nn
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    found = verbs.info(model, resolution=(8, 10))
    assert (found["kind"], found["resolution"], found["trained"]) == ("Sequential", [8, 10], None)
    assert (found["params"], found["macs"]) == (4 * 28 + 10, 80 * 4 * 27 + 8)
    assert verbs.info("resnet_digits", resolution=(16, 16))["macs"] < verbs.info("resnet_digits")["macs"]
    with pytest.raises(OptionError, match="resolution: Sequential does not take pictures of 224 x 224: mat1 and mat2"):
        verbs.info(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    with pytest.raises(OptionError, match="Sequential does not take pictures of -1 x 8: "):
        verbs.info(model, resolution=(-1, 8))
    with pytest.raises(OptionError, match="model: is a dict; it must be a name, a path or a module"):
        verbs.info({})
