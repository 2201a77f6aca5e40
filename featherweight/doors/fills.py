# SPDX-License-Identifier: Apache-2.0
"""How much an ONNX graph asks to be filled, where that stands in the file: shapes, repeats, ranges, declared sizes."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence

from featherweight.doors import Path
from featherweight.doors import protobuf as pb
from featherweight.errors import InputError, shown

MAX_NUMBERS = 1 << 28  # of one tensor: 1 GiB of float32
MAX_REPEATS = 1 << 20  # of a loop; of a window, stride or padding
_SMALL = 64

Values = Sequence[int | float]
_WINDOWS = ("pads", "kernel_shape", "strides", "dilations", "output_shape", "output_padding")
_SAME = ("Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Flatten")  # the numbers stay the same
_BINARY = {"Add": operator.add, "Sub": operator.sub, "Mul": operator.mul}


class Constants:
    """Small constants by name, as far as they can be told without running anything."""

    def __init__(self, outer: Mapping[str, Values] | None = None) -> None:
        self.values: dict[str, Values] = dict(outer or {})

    def inner(self) -> Constants:
        """What a graph inside this one sees."""
        return Constants(self.values)

    def learn(self, name: str, values: Values | None) -> None:
        if values is not None and len(values) <= _SMALL:
            self.values[name] = values

    def get(self, inputs: Sequence[str], index: int) -> Values | None:
        return self.values.get(inputs[index]) if index < len(inputs) and inputs[index] else None

    def evaluate(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Mapping[str, Values]
    ) -> None:
        """Learn a node's output if it follows from constants."""
        if not outputs:
            return
        first, second = self.get(inputs, 0), self.get(inputs, 1)
        if op_type == "Constant":
            given = [attributes[name] for name in ("value", "value_int", "value_ints") if name in attributes]
            self.learn(outputs[0], given[0] if given else None)
        elif op_type in _SAME:
            self.learn(outputs[0], first)
        elif op_type == "Concat":
            parts = [self.values.get(name) for name in inputs]
            if all(part is not None for part in parts):
                self.learn(outputs[0], [number for part in parts for number in part or ()])
        elif op_type in _BINARY and first and second and 1 in (len(first), len(second), len(first) // len(second)):
            length = max(len(first), len(second))
            pairs = zip(list(first) * (length // len(first)), list(second) * (length // len(second)), strict=False)
            self.learn(outputs[0], [_bounded(_BINARY[op_type](a, b)) for a, b in pairs])


def _bounded(value: int | float) -> int | float:
    return max(-(1 << 64), min(1 << 64, value)) if value == value else 1 << 64


def check_fill(
    op_type: str, inputs: Sequence[str], attributes: Mapping[str, Values], known: Constants, path: Path
) -> None:
    """Raise if the node makes a tensor of more than MAX_NUMBERS, as far as constants tell."""
    first, second, third = (known.get(inputs, i) for i in range(3))
    numbers: float = 0
    if op_type == "ConstantOfShape":
        numbers = _product(first)
    elif op_type in ("Expand", "Tile", "Upsample"):
        numbers = _product(second)
    elif op_type == "Resize":
        numbers = max(_product(third), _product(known.get(inputs, 3)))
    elif op_type in ("RandomNormal", "RandomUniform"):
        numbers = _product(attributes.get("shape"))
    elif op_type == "Range" and first and second and third:
        numbers = abs(second[0] - first[0]) / abs(third[0]) if third[0] else math.inf
    elif op_type == "OneHot" and second:
        numbers = abs(second[0])
    elif op_type == "Pad" and second:
        numbers = max(map(abs, second))
    if not numbers <= MAX_NUMBERS:
        text = f"its {shown(op_type, limit=40)} makes {numbers:.3g} numbers; {MAX_NUMBERS} are allowed in one tensor"
        raise InputError(path, "too_large", text)
    windows = [value for name in _WINDOWS for value in attributes.get(name, ())]
    rounds = list(first or ()) if op_type == "Loop" else []
    if any(abs(value) > MAX_REPEATS for value in windows) or any(value > MAX_REPEATS for value in rounds):
        text = f"its {shown(op_type, limit=40)} has a window, padding or count above {MAX_REPEATS}"
        raise InputError(path, "too_large", text)


def _product(values: Values | None) -> float:
    """The product of sizes, where -1, 0 and fractions count as they would at most; inf where it is beyond all sense."""
    total = 1.0
    for value in values or ():
        total *= max(1.0, abs(value)) if value == value else math.inf
    return total


def check_shape(value: memoryview, path: Path) -> None:
    """Raise if a declared input, output or intermediate (ValueInfoProto) is larger than MAX_NUMBERS."""
    for name in _inside(value, 1):
        bytes(name).decode("utf-8")
    sizes = []
    for dimension in _inside(value, 2, 1, 2, 1):
        for number, wire, size, part in pb.fields(dimension):
            if number == 1 and wire == pb.VARINT:
                sizes.append(pb.signed(size))
            bytes(part).decode("utf-8")  # the name of a free size
    if any(size < 0 for size in sizes):
        raise InputError(path, "corrupt", "an input or output has a negative size")
    if _product(sizes) > MAX_NUMBERS:
        text = f"an input or output has {_product(sizes):.3g} numbers; {MAX_NUMBERS} are allowed in one tensor"
        raise InputError(path, "too_large", text)


def _inside(message: memoryview, *numbers: int) -> list[memoryview]:
    """The messages at the end of a path of field numbers."""
    found = [message]
    for wanted in numbers:
        found = [part for outer in found for number, _, _, part in pb.fields(outer) if number == wanted]
    return found
