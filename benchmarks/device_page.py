# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/device.md, from the rows that benchmarks/device.py has kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from results import ROOT, Rows, fill, table

PAGE = ROOT / "docs" / "device.md"
NOTHING = "Not measured yet."


def write(rows: Rows) -> None:
    """Every block of the page anew."""
    fill(PAGE, blocks(rows.rows, json.loads(rows.path.read_text())["machine"] if rows.path.is_file() else {}))


def blocks(rows: Mapping[str, Mapping[str, Any]], machine: Mapping[str, Any]) -> dict[str, str]:
    """Block -> its text."""
    races = {
        "deit": [key for key in rows if key.startswith("deit")],
        "yolo": [key for key in rows if key.startswith("yolo")],
        "jpeg": [key for key in rows if key.startswith("jpeg")],
        "prepare": [key for key in rows if key.startswith("prepare")],
        "streams": [key for key in rows if key.startswith("streams")],
        "copies": [key for key in rows if key.startswith("copies")],
    }
    found = {name: "\n\n".join(_race(key, rows[key]) for key in keys) or NOTHING for name, keys in races.items()}
    return {**found, "start": _start(rows), "size": _size(rows), "machine": _machine(rows, machine)}


def _race(key: str, row: Mapping[str, Any]) -> str:
    """Its conditions in a line, and a row for each runner."""
    bases = list(next(iter(row["rows"].values()))["over"])
    head = [key, "ms", "10 to 90 %", "processor ms", *(f"over {base}" for base in bases)]
    body = []
    for name, one in row["rows"].items():
        over = [f"{r:.2f}× ({low:.2f}–{high:.2f})" for r, low, high in one["over"].values()]
        spread = f"{one['p10_ms']:.2f}–{one['p90_ms']:.2f}"
        body.append([name, f"{one['median_ms']:.2f}", spread, f"{one['cpu_ms']:.1f}", *over])
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in row.get("macs", {}).items())
    about = f"{row['when']}, {row['threads']} threads, load {row['load']:.1f} before the race"
    return table(head, body) + f"\n\n{about}" + (f"; multiply-adds: {shares}." if shares else ".")


def _start(rows: Mapping[str, Mapping[str, Any]]) -> str:
    found = {key: row for key, row in rows.items() if key.startswith("start")}
    if not found:
        return NOTHING
    keys = ("import_ms", "load_ms", "first_ms", "ready_ms")
    body = [
        [key.removeprefix("start "), *(f"{row[k]:.0f}" for k in keys), f"{row['peak_bytes'] / 1e6:.0f}"]
        for key, row in found.items()
    ]
    return table(["", "import ms", "load ms", "first answer ms", "from start to answer ms", "peak MB"], body)


def _size(rows: Mapping[str, Mapping[str, Any]]) -> str:
    if "size" not in rows:
        return NOTHING
    row = rows["size"]
    largest = sorted(row["packages"].items(), key=lambda item: -item[1])[:6]
    named = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in largest)
    return (
        f"{row['total'] / 1e6:.0f} MB on disk, of which {named} MB; torch alone is {row['torch alone'] / 1e6:.0f} MB."
    )


def _machine(rows: Mapping[str, Mapping[str, Any]], machine: Mapping[str, Any]) -> str:
    if not machine:
        return NOTHING
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [f"{machine['cpu']}, {machine['cores']} cores, {', '.join(machine['flags'])}; {versions}."]
    if "roofline" in rows:
        row = rows["roofline"]
        best: dict[tuple[str, str], float] = {}
        for one in row["products"]:
            place = (one["dtype"], one["size"])
            best[place] = max(best.get(place, 0.0), one["macs_per_s"])
        peaks = [f"{dtype} {size} {value / 1e9:.0f}" for (dtype, size), value in best.items()]
        memory = f"{row['memory_bytes_per_s'] / 1e9:.1f} GB/s, {row['cached_bytes_per_s'] / 1e9:.1f} in the cache"
        lines.append(f"Matrix products, GMAC/s: {', '.join(peaks)}. Memory: {memory}. {row['threads']} threads.")
    if "floor" in rows:
        floor = {key: value for key, value in rows["floor"].items() if isinstance(value, float)}
        lines.append("An empty graph: " + ", ".join(f"{name} {1000 * ms:.0f} µs" for name, ms in floor.items()) + ".")
    return "\n\n".join(lines)
