# SPDX-License-Identifier: Apache-2.0
"""What compression was asked to reach, beside what came out: rows for `compression_study`, from docs/measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from results import table

MISSING = "not run yet"
FEW = {  # points that an earlier study lost, repaired
    "6 bits": 0.4,
    "5 bits": 1.0,
    "4 bits": 5.9,
    "3 bits": 19.4,
    "30 % pruned": 1.8,
    "50 % pruned": 12.6,
    "5 % of channels cut, 91 % of MACs": 12.1,
    "10 % of channels cut, 82 % of MACs": 30.6,
    "1 x 1 in factors, 91 % of weights": 32.4,
    "1 x 1 in factors, 66 % of weights": 85.8,
}
SPEED = 1.65  # at half the multiply-adds, batch 1
ASKED = {  # net -> what it is, times smaller, points that may be lost
    "lenet300": ("LeNet-300-100", (43, 0.5), (70, 1.0)),
    "lenet5_short": ("LeNet-5, trained for 6 epochs as in the earlier study", (42, 0.1), (75, 0.2)),
    "lenet5": ("LeNet-5, trained for 20 epochs", (42, 0.1), (75, 0.2)),
}
CODED = 0.02  # bytes over the entropy of the streams
Rows = Mapping[str, Mapping[str, Any]]
Line = tuple[str, str, str, bool | None]


def stored(measured: Path, name: str) -> Rows:
    """The rows of a study; none where it has not been run."""
    path = measured / f"{name}.json"
    found: Rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else {}
    return found


def deep_compression(rows: Rows) -> list[Line]:
    lines: list[Line] = []
    for net, (says, *targets) in ASKED.items():
        few, seeds = _few(rows, net)
        for times, points in targets:
            asked = f"≥ {times}× smaller, ≤ {points:.1f} points lost"
            ratio, lost = _nearest(few, times, points)
            met = ratio >= times and lost <= points + 1e-9 if few else None
            worst = f", the worst of {seeds} seeds" if seeds > 1 else ""
            lines.append((f"Deep Compression, {says}", asked, f"{ratio:.1f}×, {lost:+.2f} points lost{worst}", met))
    over = [row["streams_bytes"] / row["entropy_bytes"] - 1 for row in rows.values() if row["bits"] < 32]
    span = f"{100 * min(over):.1f} to {100 * max(over):.1f} %" if over else ""
    lines.append(("coded size over the entropy of its streams", f"≤ {CODED:.0%}", span, max(over, default=1) <= CODED))
    return lines


def _few(rows: Rows, net: str) -> tuple[list[tuple[float, float]], int]:
    """Of what every seed has done: times smaller and points lost, the worst of the seeds; how many seeds there are."""
    mine = [row for row in rows.values() if row["net"] == net]
    dense = {row["seed"]: row["accuracy"] for row in mine if row["density"] == 1.0 and row["bits"] == 32}
    done: dict[str, list[tuple[float, float]]] = {}
    for key, row in rows.items():
        if row["net"] == net and row["bits"] < 32:
            done.setdefault(key.partition(" ")[2], []).append((row["ratio"], dense[row["seed"]] - row["accuracy"]))
    seeds = len({row["seed"] for row in mine if row["bits"] < 32})
    several = [ones for ones in done.values() if len(ones) == seeds]
    return [(min(ratio for ratio, _ in ones), max(lost for _, lost in ones)) for ones in several], seeds


def _nearest(few: list[tuple[float, float]], times: float, points: float) -> tuple[float, float]:
    """Of (times smaller, points lost) the smallest file that is asked for, else the one that misses by least."""
    reached = [one for one in few if one[0] >= times]
    met = [one for one in reached if one[1] <= points + 1e-9]
    return max(met or few, default=(0.0, 0.0)) if met or not reached else min(reached, key=lambda one: one[1])


def lite0(int8: Rows, repaired: Rows) -> list[Line]:
    lines: list[Line] = []
    if "int8" in int8:
        row = int8["int8"]
        worst = min(row[runtime]["agreement"] for runtime in ("onnxruntime", "openvino"))
        noise = min(row[runtime]["snr_db"] for runtime in ("onnxruntime", "openvino"))
        size = max(row["size_bytes"], row["openvino_bytes"]) / 1e6
        found = f"{100 * worst:.1f} %, {noise:.1f} dB, {size:.2f} MB, {row['seconds']:.1f} s"
        met = worst >= 0.98 and noise >= 20 and size <= 5.2 and row["seconds"] <= 15
        lines.append(("EfficientNet-Lite0, int8", "≥ 98 % same class, ≥ 20 dB, ≤ 5.2 MB, ≤ 15 s", found, met))
    for name, points in FEW.items():
        row = repaired.get(f"{name}, repaired", {})
        lost = repaired["none"]["top1"] - row["top1"] if row else 0.0
        mine = f"{lost:.1f} points lost, {row['size_bytes'] / 1e6:.2f} MB" if row else ""
        met = lost <= points + 1e-9 if row else None
        lines.append((f"EfficientNet-Lite0, {name}, repaired", f"≤ {points:.1f} points lost", mine, met))
    return lines


def speed(rows: Rows) -> list[Line]:
    lines: list[Line] = []
    for model, says in (("resnet18", "ResNet-18"), ("deit_tiny_patch16_224", "DeiT-tiny")):
        mine = [row for row in rows.values() if row["model"] == model and row["batch"] == 1 and row["macs"] <= 0.5]
        ratios = [row["process_time"]["ratio"] for row in mine]
        found = f"{min(ratios):.2f} to {max(ratios):.2f}×" if ratios else ""
        met = min(ratios) >= SPEED if ratios else None
        lines.append((f"{says} at half the multiply-adds, batch 1", f"≥ {SPEED}×", found, met))
    return lines


def coders(rows: Rows) -> list[Line]:
    lines: list[Line] = []
    for coder, least in (("zstd", 500), ("rans", 40)):
        fast = [row["decode_mb_s"] for row in rows.values() if row["coder"] == coder and "decode_mb_s" in row
                and "gaps" not in row["stream"] and "values" not in row["stream"]]  # fmt: skip
        kind = "a library" if coder == "zstd" else "NumPy alone"
        found = f"{min(fast):.0f} to {max(fast):.0f} MB/s" if fast else ""
        lines.append((f"decoding with {kind}", f"≥ {least} MB/s", found, min(fast) >= least if fast else None))
    return lines


def asked(measured: Path) -> str:
    """The table."""
    lines = [
        *deep_compression(stored(measured, "deep_compression")),
        *lite0(stored(measured, "lite0_int8"), stored(measured, "lite0_repair")),
        *speed(stored(measured, "prune_speed")),
        *coders(stored(measured, "coders")),
    ]
    verdict = {True: "yes", False: "no", None: "–"}
    body = [(what, wanted, found if met is not None else MISSING, verdict[met]) for what, wanted, found, met in lines]
    return table(("what", "asked", "measured", "met?"), body)
