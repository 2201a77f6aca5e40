# SPDX-License-Identifier: Apache-2.0
"""Counts against sums done by hand, the race against a clock that is known, and values that survive JSON."""

from __future__ import annotations

import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_model
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.nn import functional

from featherweight import latency, measure
from featherweight.errors import OptionError


class Attention(nn.Module):
    """One attention over (B, N, C), with its two matrix products written out or fused; `keep` drops tokens in eval."""

    def __init__(self, width: int = 8, *, fused: bool = False, keep: int | None = None) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.fused, self.keep = fused, keep

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.keep and not self.training:
            x = x[:, : self.keep]
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.fused:
            y = functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        else:
            y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y)


def attention_macs(n: int, c: int = 8) -> int:
    return n * c * 3 * c + 2 * n * n * c + n * c * c


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("inference", [False, True])
def test_attention_products_are_counted_written_out_and_fused(fused: bool, inference: bool) -> None:
    model = Attention(fused=fused)
    with torch.inference_mode(inference):
        assert measure.macs(model, torch.zeros(3, 5, 8)) == attention_macs(5)


def test_dropped_tokens_count_nothing_and_the_model_stays_in_its_mode() -> None:
    model = Attention(keep=2).train()
    assert measure.macs(model, torch.zeros(1, 5, 8)) == attention_macs(2)
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("layer", "example", "expected"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), (1, 4, 5, 5), 25 * 6 * 4 * 9),
        (nn.Conv2d(4, 8, 3, groups=2, stride=2), (2, 4, 7, 7), 9 * 8 * 2 * 9),
        (nn.ConvTranspose2d(4, 8, 2, stride=2, groups=2), (1, 4, 5, 5), 25 * 4 * 4 * 4),
        (nn.Linear(3, 7), (2, 3), 21),
        (nn.LayerNorm(4), (1, 4), 0),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (1, 5, 8), attention_macs(5) + 2 * 5 * 8 * 16),
    ],
)
def test_layers_against_sums_done_by_hand(layer: nn.Module, example: tuple[int, ...], expected: int) -> None:
    assert measure.macs(layer, torch.zeros(example)) == expected


def test_deit_tiny_has_the_published_count() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("deit_tiny_patch16_224")
    assert measure.macs(model, torch.zeros(1, 3, 224, 224)) == 1_253_683_200  # 1.2537 G products
    assert measure.parameters(model) == 5_717_416


def test_layers_add_up_and_name_their_place() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Attention())
    rows = measure.layers(model, torch.zeros(2, 5, 8))
    assert sum(r.macs for r in rows) == measure.macs(model, torch.zeros(2, 5, 8))
    assert sum(r.params for r in rows) == measure.parameters(model)
    assert {r.path: r.macs for r in rows}["1"] == 2 * 5 * 5 * 8  # the products belong to the attention itself


def test_parameters_count_shared_ones_once_and_packed_integers_too() -> None:
    shared = nn.Linear(4, 4, bias=False)
    assert measure.parameters(nn.Sequential(shared, shared)) == 16
    packed = nn.Module()
    packed.register_buffer("weight", torch.zeros(4, 4, dtype=torch.int8))
    packed.register_buffer("steps", torch.zeros((), dtype=torch.int64))
    assert measure.parameters(packed) == 16


def test_int8_layers_count_like_the_layers_they_replace() -> None:
    from featherweight.methods.int8 import int8

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    small = nn.Sequential(int8(model[0]), nn.Flatten(), int8(model[2]))
    example = torch.zeros(1, 3, 8, 8)
    assert measure.macs(small, example) == measure.macs(model, example) == 36 * 4 * 27 + 144 * 5
    assert measure.parameters(small) == measure.parameters(model)


class Machine:
    """A clock that moves only when a callable runs: `seconds` per call, times what `drift` says of the moment."""

    def __init__(self, drift: float = 0.0) -> None:
        self.now, self.drift = 0.0, drift

    def __call__(self) -> float:
        return self.now

    def model(self, *seconds: float) -> Callable[[], None]:
        calls = iter(range(10**9))

        def run() -> None:
            self.now += seconds[next(calls) % len(seconds)] * (1 + self.drift * self.now)

        return run


def test_the_race_finds_the_ratio_though_the_machine_slows_down() -> None:
    clock = Machine(drift=1.0)  # in this race it ends up many times slower than it began
    slow, fast = clock.model(0.020), clock.model(0.010)
    result = measure.race({"slow": slow, "fast": fast}, budget_s=1.0, clock=clock)
    assert result["slow"].ratio is None and result["slow"].baseline == ""
    ratio, interval = result["fast"].ratio, result["fast"].ratio_interval
    assert ratio == pytest.approx(2.0, abs=0.1)
    assert measure.verdict(ratio, interval) == f"{ratio:.2f}× faster"
    drifted = result["slow"].samples_ms
    assert drifted[-1] > 1.3 * drifted[0]  # the control: without turns the medians would have compared two machines


def test_any_two_runners_of_a_race_can_be_compared() -> None:
    clock = Machine()
    times = measure.race({"a": clock.model(0.04), "b": clock.model(0.02), "c": clock.model(0.01)}, clock=clock)
    assert times.ratio("c", "b") == (2.0, (2.0, 2.0))
    assert times.ratio("c", "a") == (times["c"].ratio, times["c"].ratio_interval) == (4.0, (4.0, 4.0))


def test_two_equal_models_are_never_called_faster() -> None:
    clock = Machine()
    noise = np.random.default_rng(0).normal(0.010, 0.001, size=(2, 997)).tolist()
    one, two = clock.model(*noise[0]), clock.model(*noise[1])
    result = measure.race({"one": one, "two": two}, budget_s=5.0, clock=clock)["two"]
    assert not measure.faster(result.ratio, result.ratio_interval)
    assert measure.verdict(result.ratio, result.ratio_interval).startswith("not faster here: ")


def test_a_race_keeps_to_its_budget_but_never_takes_fewer_than_six_turns() -> None:
    clock = Machine()
    rich = measure.race({"a": clock.model(0.1), "b": clock.model(0.1)}, budget_s=4.0, repeats=100, clock=clock)
    assert clock.now <= 4.5 and 6 < rich["a"].conditions.repeats < 100
    poor = measure.race({"a": clock.model(1.0), "b": clock.model(1.0)}, budget_s=0.1, clock=clock)
    assert poor["b"].conditions.repeats == latency.MIN_ROUNDS
    assert poor["b"].conditions.warmup == 3


def test_a_slower_model_is_called_slower_and_the_words_come_from_one_place() -> None:
    assert measure.verdict(0.8, (0.7, 0.9)) == "slower here: 0.80×"
    assert measure.verdict(1.02, (0.98, 1.05)) == "not faster here: 1.02×"
    assert measure.verdict(1.002, (1.001, 1.003)) == "not faster here: 1.00×"
    assert measure.verdict(None, None) == "not measured"


def test_the_interval_of_a_median_is_that_of_its_order_statistics() -> None:
    assert measure.median_interval([6, 1, 2, 3, 5, 4]) == (1, 6)
    assert measure.median_interval(list(range(1, 31))) == (10, 21)  # tables: 95.7 % for n = 30
    with pytest.raises(OptionError, match="5 values"):
        measure.median_interval([1, 2, 3, 4, 5])
    rng = np.random.default_rng(0)
    draws = rng.lognormal(size=(2000, 15))
    covered = [low <= 1.0 <= high for low, high in map(measure.median_interval, draws.tolist())]
    assert 0.95 <= statistics.mean(covered) <= 0.98  # theory: 0.965


def test_options_of_the_race_are_checked_before_anything_runs() -> None:
    def forbidden() -> None:
        raise AssertionError("ran")

    with pytest.raises(OptionError, match="did you mean 'before'"):
        measure.race({"before": forbidden}, baseline="befor")
    with pytest.raises(OptionError, match="repeats"):
        measure.race({"before": forbidden}, repeats=2)
    with pytest.raises(OptionError, match="nothing to time"):
        measure.race({})


def test_a_torch_model_is_raced_with_its_conditions_and_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5)).train()
    run = measure.runnable(model, batch=2, resolution=(8, 10), threads=1)
    result = measure.race({"conv": run}, budget_s=0.2)["conv"]
    conditions = result.conditions
    assert (conditions.batch, conditions.resolution, conditions.threads) == (2, (8, 10), 1)
    assert (conditions.dtype, conditions.runtime, conditions.device) == ("float32", "torch eager", "cpu")
    assert conditions.version and conditions.cpu and conditions.repeats >= 6
    assert result.p10_ms <= result.median_ms <= result.p90_ms
    assert result.images_per_s == pytest.approx(2000 / result.median_ms)
    assert model.training
    first, second = run(), run()
    assert torch.equal(first, second)  # eval mode: dropout is off


def test_what_cannot_be_timed_says_what_would() -> None:
    with pytest.raises(OptionError, match="resolution"):
        measure.runnable(nn.Conv2d(3, 4, 3))
    with pytest.raises(OptionError, match="batch"):
        measure.runnable(nn.Conv2d(3, 4, 3), batch=0, resolution=(8, 8))
    with pytest.raises(TypeError, match="torch module"):
        measure.runnable(object(), resolution=(8, 8))


def image_model(path: Path) -> Path:
    """(N, 3, 8, 6) -> the mean of each channel, as ONNX."""
    x = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 6])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 1, 1])
    graph = helper.make_graph([helper.make_node("GlobalAveragePool", ["images"], ["logits"])], "mean", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    return path


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_exported_file_is_raced_with_its_conditions(backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    file = image_model(tmp_path / "mean.onnx")
    run = measure.runnable(file, batch=4, threads=1, backend=backend)  # the resolution is known to the file
    conditions = measure.race({"file": run}, budget_s=0.1)["file"].conditions
    assert (conditions.batch, conditions.resolution, conditions.threads) == (4, (8, 6), 1)
    assert (conditions.runtime, conditions.dtype) == (backend, "float32") and conditions.version
    shown = measure.runnable(file, batch=3, images=np.ones((1, 3, 8, 6)), backend=backend)()
    assert np.array_equal(shown["logits"].squeeze(), np.ones((3, 3)))


def test_a_file_of_somebody_elses_is_timed_whatever_it_takes(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    run = measure.runnable(onnx_model.write(tmp_path / "vectors.onnx"), batch=5)
    assert run()["logits"].shape == (5, 2) and run.conditions.batch == 5
    several = measure.runnable(two_inputs(tmp_path / "two.onnx"), shapes={"maps": (1, 4, 6), "input_ids": (1, 9)})
    assert several()["y"].shape == (1, 4, 6) and several()["ids"].shape == (1, 9)
    assert measure.runnable(tmp_path / "two.onnx", shapes={"maps": (2, 4, 6)}, batch=2)()["ids"].shape == (2, 128)
    for shapes, text in (
        ({}, r"of 'maps' in .*two.onnx is \(any, 4, any\): say it, --shape maps=1,4,224"),
        ({"map": (1, 4, 6)}, "did you mean 'maps'"),
        ({"maps": (1, 3, 6)}, r"'maps' takes \(any, 4, any\), not 1,3,6"),
    ):
        with pytest.raises(OptionError, match=text):
            measure.runnable(tmp_path / "two.onnx", shapes=shapes)


def two_inputs(path: Path) -> Path:
    """Maps (N, 4, L) and token ids (N, T), each given back."""
    ports = {
        "maps": ("y", TensorProto.FLOAT, ["batch", 4, "length"]),
        "input_ids": ("ids", TensorProto.INT64, ["batch", "tokens"]),
    }
    nodes = [helper.make_node("Identity", [name], [port[0]]) for name, port in ports.items()]
    given = [helper.make_tensor_value_info(name, port[1], port[2]) for name, port in ports.items()]
    answers = [helper.make_tensor_value_info(*port) for port in ports.values()]
    graph = helper.make_graph(nodes, "two", given, answers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    return path


def test_throughput_counts_every_batch_of_a_call(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    run = measure.runnable(image_model(tmp_path / "mean.onnx"), batch=2, threads=1, mode="throughput", calls=4)
    found = measure.race({"file": run}, budget_s=0.1)["file"]
    assert (found.conditions.mode, found.conditions.calls) == ("throughput", 4)
    assert found.images_per_s == pytest.approx(8000 / found.median_ms)


def test_processors_are_timed_beside_the_clock() -> None:
    found = measure.race({"sleeps": lambda: time.sleep(0.01), "works": lambda: sum(range(300_000))}, budget_s=0.2)
    assert found["sleeps"].cpu_ms is not None and found["works"].cpu_ms is not None
    assert found["sleeps"].median_ms >= 10 and found["sleeps"].cpu_ms < 3
    assert found["works"].cpu_ms > found["sleeps"].cpu_ms


def test_measurements_survive_json_and_refuse_what_they_do_not_know(tmp_path: Path) -> None:
    result = measure.race({"a": lambda: None, "b": lambda: None}, budget_s=0.05)
    accuracy = {"top1": 0.9, "interval": [0.88, 0.92], "n": 720}
    one = measure.Measurement(
        "x", 10, 20, 30, accuracy, tuple(result.values()), measure.Conditions(batch=1, resolution=(8, 8))
    )
    data = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert measure.Measurement.from_dict(data) == one
    with pytest.raises(ValueError, match="did you mean 'params'"):
        measure.Measurement.from_dict({**data, "param": 1})
    with pytest.raises(ValueError, match="schema 99"):
        measure.Measurement.from_dict({**data, "schema": 99})


def test_size_is_what_is_on_disk(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.bin").write_bytes(b"12345")
    (tmp_path / "y.bin").write_bytes(b"123")
    assert measure.size(tmp_path / "a", tmp_path / "y.bin") == 8
    with pytest.raises(OptionError, match="does not exist"):
        measure.size(tmp_path / "z")


def test_the_machine_tells_its_processor_and_nobody_s_name() -> None:
    known = measure.machine()
    assert known["cpu"] and known["cores"] >= 1 and known["versions"]["numpy"] == np.__version__
    text = json.dumps(known)
    assert "/" not in text.replace("/s", "")
    for private in (socket.gethostname(), os.path.expanduser("~")):
        assert len(private) < 3 or private not in text
