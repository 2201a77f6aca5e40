# SPDX-License-Identifier: Apache-2.0
"""A report as a run of the demo would make it, from random numbers; `hostile` replaces every name in it."""

from __future__ import annotations

from typing import Any

import numpy as np

from featherweight.latency import Conditions, Latency
from featherweight.measure import Measurement
from featherweight.report import Export, Kept, Report, Sample, Stage, TokenView

CPU = "Some Processor 9000"
FLAGS = ("avx2", "avx512_vnni", "amx_int8")
# name, accuracy, MACs, bytes, parameters, ms in torch eager, kept, reason, runtime
STEPS: tuple[tuple[str, float, int, int, int, float, bool, str, str], ...] = (
    ("baseline", 0.972, 128_000_000, 3_600_000, 890_000, 2.31, True, "", "torch eager"),
    ("distilled", 0.976, 129_000_000, 3_610_000, 892_000, 2.35, True, "teacher: resnet", "torch eager"),
    ("+ tokens (keep 0.7)", 0.974, 82_000_000, 3_700_000, 915_000, 1.71, True, "", "torch eager"),
    ("+ prune heads/mlp 30 %", 0.969, 55_000_000, 2_300_000, 570_000, 1.32, True, "", "torch eager"),
    ("+ low-rank", 0.968, 50_000_000, 2_100_000, 520_000, 1.33, False, "not faster here: 0.99×", "torch eager"),
    ("+ int8", 0.967, 55_000_000, 700_000, 570_000, 0.62, True, "", "onnxruntime"),
)
SPEED = {"torch eager": 1.0, "onnxruntime": 0.62, "openvino": 0.55}


def latency(rng: np.random.Generator, ms: float, *, base_ms: float, runtime: str, batch: int, first: bool) -> Latency:
    samples = np.sort(ms * (1 + rng.gamma(2.0, 0.02, size=30)))
    p10, p50, p90 = (float(v) for v in np.quantile(samples, [0.1, 0.5, 0.9]))
    ratio = None if first else base_ms / p50
    conditions = Conditions(
        cpu=CPU, flags=FLAGS, cores=2, threads=2, dtype="float32", runtime=runtime, version="1.0", batch=batch,
        resolution=(96, 96), warmup=3, repeats=30, load=0.4,
    )  # fmt: skip
    interval = None if ratio is None else (ratio * 0.98, ratio * 1.02)
    return Latency(p50, p10, p90, tuple(map(float, samples)), ratio, interval, "" if first else "baseline", conditions)


def measurement(rng: np.random.Generator, step: tuple[str, float, int, int, int, float, bool, str, str]) -> Measurement:
    name, top1, macs, size, params, ms, _, _, _ = step
    found = [
        latency(
            rng, factor * ms * batch**0.8, base_ms=STEPS[0][5] * batch**0.8, runtime=runtime, batch=batch,
            first=name == "baseline" and runtime == "torch eager",
        )
        for runtime, factor in SPEED.items() for batch in (1, 32)
    ]  # fmt: skip
    half = 1.96 * (top1 * (1 - top1) / 720) ** 0.5
    return Measurement(
        name, params, macs, size, {"top1": top1, "interval": [top1 - half, top1 + half], "n": 720}, tuple(found)
    )


def images(rng: np.random.Generator, count: int, side: int = 48) -> list[np.ndarray]:
    """Smooth colored noise with a bright bar: compresses like a photograph."""
    grid = np.linspace(0, 3, side)
    made = []
    for _ in range(count):
        a, b, c = rng.uniform(0.5, 3, size=3)
        image = np.stack([np.sin(a * grid[:, None] + k) * np.cos(b * grid[None] - c * k) for k in range(3)], axis=-1)
        image = 128 + 90 * image + rng.normal(0, 6, size=image.shape)
        place = int(rng.integers(8, side - 16))
        image[8:-8, place : place + 6] = 240
        made.append(np.clip(image, 0, 255).astype(np.uint8))
    return made


def matrix(rng: np.random.Generator, classes: int, wrong: int) -> tuple[tuple[int, ...], ...]:
    counts = np.eye(classes, dtype=int) * 72
    for _ in range(wrong):
        i, j = rng.choice(classes, size=2, replace=False)
        counts[i, i] -= 1
        counts[i, j] += 1
    return tuple(tuple(int(v) for v in row) for row in counts)


def views(rng: np.random.Generator, name: str) -> tuple[TokenView, ...]:
    made = []
    for image in images(rng, 8):
        score = np.add.outer(-((np.arange(12) - 6) ** 2), -((np.arange(12) - 5) ** 2)) + rng.normal(0, 6, size=(12, 12))
        stages = [Kept("original", np.ones((12, 12), bool), name)]
        for stage, keep in (("stage 1", 0.7), ("stage 2", 0.49), ("stage 3", 0.34)):
            stages.append(Kept(stage, score > np.quantile(score, 1 - keep), name if stage == "stage 3" else ""))
        made.append(TokenView(image, name, tuple(stages)))
    return tuple(made)


def curves(names: list[str]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"stage": name, "epoch": e, "loss": 2.0 / (e + k + 1), "top1": 0.97 - 0.3 / (e + k + 1), "note": None}
        for k, name in enumerate(names) for e in range(1, 8 - k)
    )  # fmt: skip


def fake(*, hostile: str = "", classes: int = 10, seed: int = 0) -> Report:
    """A full report; with `hostile`, that text stands wherever a name from outside could."""
    rng = np.random.default_rng(seed)
    stages = tuple(
        Stage((hostile and s[0] + hostile) or s[0], measurement(rng, s), s[6], s[7] + hostile, s[8]) for s in STEPS
    )
    names = tuple(hostile + str(i) if hostile else str(i) for i in range(classes))
    pairs = [
        ("3", "3", "5"),
        ("8", "8", "3"),
        ("1", "7", "1"),
        ("9", "4", "5"),
        *[(str(i), str(i), str(i)) for i in range(8)],
    ]
    samples = [
        Sample(image, hostile + label, hostile + base, hostile + small, 0.5 + 0.04 * i)
        for i, (image, (label, base, small)) in enumerate(zip(images(rng, 12), pairs, strict=True))
    ]
    paths = [f"blocks.{i}.{part}" for i in range(6) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    exports = (
        Export("export/model.onnx" + hostile, "onnx", 2_300_000, 1.0, 118.0, 3.8e-6, True, "opset 20" + hostile),
        Export("export/model-int8.onnx", "onnx int8", 700_000, 0.993, 31.2, 0.21, True, "runs in onnxruntime"),
        Export("export/openvino_model.xml", "openvino", 2_310_000, 1.0, 114.0, 9e-6, True, "f32"),
    )
    return Report(
        title="Handwritten digits on photographs" + hostile,
        command="featherweight run recipes/demo.yaml" + hostile,
        data="digits: 1797 handwritten digits on photos, 4000 train / 720 test" + hostile,
        model="vit_demo, 0.9 M parameters, 144 tokens" + hostile,
        budget="at most 1.0 point, at least 3× faster, 6× smaller" + hostile,
        budget_met=True,
        stages=stages,
        curves=curves([s.name for s in stages[:4]]),
        classes=names,
        confusion_base=matrix(rng, classes, 20),
        confusion_small=matrix(rng, classes, 24),
        samples=tuple(samples),
        tokens=views(rng, hostile + "3"),
        sensitivity=tuple({"layer": p + hostile, "drop": float(rng.exponential(0.4)) - 0.1} for p in paths),
        layers=tuple(
            {"path": p + hostile, "kind": "Linear", "params": 20_000 * (1 + i % 4), "macs": 2_900_000 * (1 + i % 4)}
            for i, p in enumerate(paths)
        ),
        exports=exports,
        environment={
            "cpu": CPU + hostile, "flags": [*FLAGS, *([hostile] if hostile else [])], "cores": 2, "load": 0.4,
            "system": "Linux x86_64", "python": "3.11.7",
            "versions": {"featherweight": "0.1.0", "torch": "2.14.1", "onnxruntime": "1.31.1"},
        },
        recipe="schema: 1\ndata: digits\nsteps:\n  - tokens: {keep: 0.7, at: [3, 6, 9]}\n" + hostile,
        fingerprint="9f2c4b1e" + hostile,
        skipped=({"path": "photos/broken.png" + hostile, "reason": "truncated" + hostile},),
        warnings=("the machine was busy while stage 3 was measured" + hostile,) if hostile else (),
        notes=("distilled over baseline: +0.4 points, within noise" + hostile,),
        license="CC BY 4.0 (digits), CC0 (photographs)" + hostile,
        seed=0,
    )  # fmt: skip
