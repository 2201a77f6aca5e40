# SPDX-License-Identifier: Apache-2.0
"""The tables of `factors.py`, written into the cards of the methods."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from featherweight import files, measure

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- measured:begin factors (\w+) -->\n)(.*?)(<!-- measured:end -->)", re.DOTALL)
Rows = list[dict[str, Any]]
RUNTIMES = ("onnxruntime", "openvino")
SIZES = (192, 768, 2048)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def of_lowrank(found: dict[str, Rows]) -> str:
    first, *_ = rows = found["lowrank"]
    body = []
    for row in rows:
        on_data = f"{row['data']:.1f}" if "data" in row else "–"
        body.append([row["what"], f"{row['params'] / first['params']:.2f}", f"{row['plain']:.1f}", on_data])
    text = "The shipped `vit_digits`, not trained afterwards, accuracy in % on 1,200 test pictures:\n\n"
    text += table(["ranks", "parameters", "from weights", "from 256 pictures"], body)
    if "speed" not in found:
        return text + "\nSpeed of whole nets: not run yet.\n"
    text += "\nWhole nets of random weights at 224 pixels, batch 1, one thread, float32; `kept` are the factors that\n"
    text += "won a race against their layer:\n\n"
    body = []
    for row in found["speed"]:
        net = f"{row['net']}, {row['conv']}, {row['share']:g}"
        shares = [f"{row['macs']:.2f}", f"{row['params']:.2f}"]
        body.append([net, row["runtime"], row["variant"], *shares, measure.verdict(row["ratio"], row["interval"])])
    head = ["net, kernels, share of the rank", "runtime", "factors", "MACs", "parameters", "against the net"]
    return text + table(head, body)


def of_structured(found: dict[str, Rows]) -> str:
    text = "The relative error of the fit to the trained MLP layers of `vit_digits`, with about a quarter of the\n"
    text += "weights (mean); so far from the trained weights, training has to follow:\n\n"
    errors = [[row["matrix"], f"{row['error']:.2f}"] for row in found["structured"] if "error" in row]
    text += table(["matrix", "error"], errors)
    if "structured_speed" not in found:
        return text + "\nSpeed of the layers: not run yet.\n"
    body = []
    for row in found["structured_speed"]:
        cells = [row["matrix"]]
        for n in SIZES:
            ratios = " / ".join(f"{row[f'ratio {n}'][runtime]:.2f}×" for runtime in RUNTIMES)
            cells.append(f"{row[f'params {n}']:.2f}: {ratios}")
        body.append(cells)
    text += (
        "\nOne n x n layer on 196 tokens: its share of the weights, and how many times faster than the dense one in\n"
    )
    text += "ONNX Runtime / OpenVINO, one thread, float32:\n\n"
    return text + table(["matrix", *(f"n = {n}" for n in SIZES)], body)


def of_equivariant(found: dict[str, Rows]) -> str:
    text = "The largest change of an answer when the picture is turned, over the answers' deviation (random\n"
    text += "weights):\n\n"
    cells = {(row["group"], row["symmetric"], row["size"]): f"{row['error']:.0e}" for row in found["equivariant"]}
    kinds = [(group, symmetric) for group in ("p4", "p4m") for symmetric in (False, True)]
    body = [
        [f"{group}, {'symmetric' if symmetric else 'strides'}", *(cells[group, symmetric, n] for n in (32, 33))]
        for group, symmetric in kinds
    ]
    return text + table(["net", "32 x 32", "33 x 33"], body)


def of_crelu(found: dict[str, Rows]) -> str:
    phases = ", ".join(f"{row['phase']:.2f}" for row in found["crelu"] if "layer" in row)
    text = "In the shipped `resnet_digits` the mean lowest cosine of a filter with another is, layer by layer,\n"
    text += f"{phases}. Merging its pairs, without training:\n\n"
    rows = [row for row in found["crelu"] if "what" in row]
    body = [[row["what"], str(row["pairs"]), f"{row['macs']:.3f}", f"{row['accuracy']:.1f}"] for row in rows]
    return text + table(["least cosine", "filters merged", "MACs", "accuracy %"], body)


def of_dynamic(found: dict[str, Rows]) -> str:
    text = "Whole nets, batch 1, one thread, against float32 in the same runtime:\n\n"
    body = [
        [f"`{row['model']}`", row["runtime"], f"{row['ms']:.2f}", f"{row['ratio']:.2f}×"] for row in found["dynamic"]
    ]
    return text + table(["net", "runtime", "ms", "faster"], body)


TABLES: dict[str, tuple[str, Callable[[dict[str, Rows]], str]]] = {
    "lowrank": ("lowrank", of_lowrank),
    "structured": ("structured", of_structured),
    "equivariant": ("equivariant", of_equivariant),
    "crelu": ("crelu", of_crelu),
    "dynamic_int8": ("dynamic", of_dynamic),
}


def filled(text: str, found: dict[str, Any]) -> str:
    """The text of a card with its block written anew, if what belongs there was measured."""

    def block(match: re.Match[str]) -> str:
        part, make = TABLES[match[2]]
        if part not in found:
            return match[0]
        where = f"{found['machine']['cpu']}, {found['machine']['cores']} cores shared with other work"
        return f"{match[1]}{make(found)}\nMeasured on {where}, by `python benchmarks/factors.py`.\n{match[4]}"

    return BLOCK.sub(block, text)


def write(found: dict[str, Any]) -> None:
    """Fill the block of each card."""
    for card in TABLES:
        path = ROOT / "docs" / "methods" / f"{card}.md"
        files.publish(path, filled(path.read_text(encoding="utf-8"), found).encode())
