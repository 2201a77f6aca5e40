# SPDX-License-Identifier: Apache-2.0
"""Why a runtime does not take a graph: an operator it lacks is named with its layer, anything else in one line."""

from __future__ import annotations

import re
from pathlib import Path

from featherweight.doors import protobuf as pb
from featherweight.errors import InputError

# What the runtimes write; each has a name for the operator, ONNX Runtime also for the node and its outputs.
_NODE = re.compile(r'In Node, \("([^"]*)", (\w+), "([^"]*)", -?\d+\) : .*?-> \(([^)]*)\)')
_NO_SCHEMA = re.compile(r"No Op registered for (\w+)|is not a registered function/op|No opset import for domain")
_NO_KERNEL = re.compile(r"Could not find an implementation for (?:[\w.]+::?)?(\w+)\(\d+\) node with name '([^']*)'")
_NO_RULE = re.compile(r"No conversion rule found for operations: ([^\n]+)")
_NO_LAYER = re.compile(r"Cannot create (\w+) layer (\S+) id:\d+ from unsupported opset")


def refusal(path: Path, runtime: str, error: Exception, data: bytes | None = None) -> InputError:
    """The error for a file that a runtime refuses; `data` is its graph in ONNX, to find the layer of an operator."""
    said = str(error)
    if (node := _NODE.search(said)) and _NO_SCHEMA.search(said):
        return _lacks(path, runtime, node[2], node[1] or node[4].replace('"', "").split(",")[0])
    if found := _NO_KERNEL.search(said):
        return _lacks(path, runtime, found[1], found[2] or layer_of(data, found[1]))
    if rules := _NO_RULE.search(said):
        names = [word.strip().rpartition(".")[2].partition("-")[0] for word in rules[1].split(",")]
        return _lacks(path, runtime, ", ".join(names[:5]), layer_of(data, names[0]))
    if found := _NO_LAYER.search(said):
        return _lacks(path, runtime, found[1], found[2])
    return InputError(path, "corrupt", f"{runtime} does not accept it: {_last_line(said) or type(error).__name__}")


def _lacks(path: Path, runtime: str, operator: str, layer: str) -> InputError:
    at = f" (layer {layer})" if layer else ""
    return InputError(path, "unsupported_op", f"{runtime} has no operator {operator}{at}; try the other runtime")


def layer_of(data: bytes | None, operator: str) -> str:
    """The name of the first node of that kind in an ONNX graph, or of its output; nothing where there is none."""
    for number, wire, _, graph in pb.fields(memoryview(data or b"")):
        if number != 7 or wire != pb.BYTES:
            continue
        for field, _, _, node in pb.fields(graph):
            if field == 1 and (name := _named(node, operator)):
                return name
    return ""


def _named(node: memoryview, operator: str) -> str:
    found = {2: "", 3: "", 4: ""}
    for number, _, _, part in pb.fields(node):
        if number in found and not found[number]:
            found[number] = bytes(part).decode("utf-8", "replace")
    return (found[3] or found[2]) if found[4] == operator else ""


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else ""
