# SPDX-License-Identifier: Apache-2.0
"""The one reader of ONNX files: looks through the whole graph before any runtime sees it, without the onnx package.

Refused are weights outside the model's own folder, sizes that do not fit the bytes, operators of unknown makers,
functions (they can multiply when expanded) and fills of absurd size where the file itself says so. What is not done
here is shape inference: a graph may still ask for much memory through the shapes of its inputs.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

from featherweight.doors import Path, door, open_input, read_input
from featherweight.doors import protobuf as pb
from featherweight.doors.fills import Constants, check_fill, check_shape
from featherweight.doors.onnxtensor import Tensor, read_tensor
from featherweight.errors import InputError, shown

MAX_BYTES = (1 << 31) - 1  # what a protocol buffer can hold
MAX_DEPTH = 16  # graphs inside graphs
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})

# message -> field -> the message inside; other fields are numbers, texts or of no concern
_INSIDE = {
    "model": {7: "graph", 8: "opset"},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_TEXTS = {"model": {2, 3, 4, 6}, "graph": {2, 10}, "attribute": {1, 13, 21}}  # names and notes, shown to people
_ONCE = {"model": {7}, "attribute": {5, 6, 22}, "sparse": {1, 2}}  # twice, they would be merged by other readers


def read(path: Path) -> bytes:
    """The bytes of a checked model that needs no other file: weights kept beside it have been put inside."""
    with door(path, "corrupt", "is not an ONNX model, or a damaged one"):
        return checked(read_input(path, max_bytes=MAX_BYTES), path)


def checked(data: bytes, path: Path) -> bytes:
    """The same for the bytes of a file at `path`."""
    with door(path, "corrupt", "is not an ONNX model, or a damaged one"):
        if data[:64].lstrip()[:2] in (b"<!", b"<h", b"<H", b"<?") or data.startswith(b"version https://git-lfs"):
            raise InputError(path, "corrupt", "is a web page or a git-lfs pointer; download the model itself")
        check = _Check(path)
        if 7 not in check.message("model", memoryview(data), 0, Constants()):
            raise InputError(path, "corrupt", "holds no graph; it is not an ONNX model")
        if check.outside == 0:
            return data
        if len(data) + check.outside > MAX_BYTES:
            raise InputError(path, "too_large", f"has {check.outside} bytes of weights; one model can hold {MAX_BYTES}")
        return _inlined("model", memoryview(data), path)


@dataclass
class _Node:
    """What the checks need to know of a node."""

    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    op_type: str = ""
    domain: str = ""
    attributes: dict[str, list[int | float]] = field(default_factory=dict)


class _Check:
    """One walk through the file; raises InputError at the first thing that is not as it must be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outside = 0  # bytes of weights in other files

    def refuse(self, reason: str, text: str) -> InputError:
        return InputError(self.path, reason, text)

    def message(self, kind: str, data: memoryview, depth: int, known: Constants) -> set[int]:
        """Check what is inside a message that is not a node, tensor or value itself; the field numbers it has."""
        if depth > MAX_DEPTH:
            raise self.refuse("corrupt", f"graphs are nested more than {MAX_DEPTH} deep")
        inside, once, met = _INSIDE[kind], _ONCE.get(kind, set()), set()
        nodes = []
        for number, wire, _, part in pb.fields(data):
            if number in once and number in met:
                raise self.refuse("corrupt", f"a {kind} has field {number} twice")
            met.add(number)
            if number in _TEXTS.get(kind, ()):
                _text(part)
            what = inside.get(number)
            if what is not None and wire != pb.BYTES:
                raise self.refuse("corrupt", f"field {number} of a {kind} is no message")
            if kind == "model" and number == 14:
                pb.texts(part)
            if kind == "model" and number in (20, 25):
                raise self.refuse("unsupported_op", "holds functions or a training graph; export it inlined")
            if what == "node":
                nodes.append(part)
            elif what == "tensor":
                tensor = self.tensor(part)
                known.learn(tensor.name, tensor.values)
            elif what == "value":
                check_shape(part, self.path)
            elif what == "sparse":
                self.message("sparse", part, depth + 1, Constants())
            elif what == "graph":
                self.message("graph", part, depth + 1, known.inner())
        for part in nodes:  # after the initializers, whatever the order in the file
            self.node(part, depth, known)
        return met

    def node(self, data: memoryview, depth: int, known: Constants) -> None:
        node = _Node()
        for number, wire, _, part in pb.fields(data):
            if number in (1, 2, 3, 4, 5, 7) and wire != pb.BYTES:
                raise self.refuse("corrupt", f"field {number} of a node is no text")
            if number == 1:
                node.inputs.append(_text(part))
            elif number == 2:
                node.outputs.append(_text(part))
            elif number == 3:
                _text(part)
            elif number == 4:
                node.op_type = _text(part)
            elif number == 7:
                node.domain = _text(part)
            elif number == 5:
                name, values = self.attribute(part, depth, known)
                node.attributes[name] = values
        if node.domain not in DOMAINS:
            text = f"uses {shown(node.op_type, limit=60)} of '{shown(node.domain, limit=60)}'; operators of "
            raise self.refuse("unsupported_op", text + "ONNX and of com.microsoft are run, no others")
        check_fill(node.op_type, node.inputs, node.attributes, known, self.path)
        known.evaluate(node.op_type, node.inputs, node.outputs, node.attributes)

    def attribute(self, data: memoryview, depth: int, known: Constants) -> tuple[str, list[int | float]]:
        """Its name, and its whole numbers if it has some (from i, ints, or a small tensor)."""
        self.message("attribute", data, depth, known)
        name = ""
        values: list[int | float] = []
        for number, wire, value, part in pb.fields(data):
            if number == 1 and wire == pb.BYTES:
                name = _text(part)
            elif number in (3, 8) and wire == pb.VARINT:
                values.append(pb.signed(value))
            elif number == 8 and wire == pb.BYTES:
                values.extend(pb.packed(part))
            elif number == 5 and wire == pb.BYTES:
                values.extend(read_tensor(part, self.path).values or ())
        return name, values

    def tensor(self, data: memoryview) -> Tensor:
        tensor = read_tensor(data, self.path)
        if tensor.is_external:
            self.outside += _outside(tensor, self.path)[2]
        return tensor


def _outside(tensor: Tensor, path: Path) -> tuple[str, int, int]:
    """The file, offset and length of a tensor kept outside, all compared with what is there."""
    label = f"tensor '{shown(tensor.name, limit=60)}'"
    entries = tensor.external
    unknown = set(entries) - {"location", "offset", "length", "checksum"}
    if unknown or "location" not in entries:
        raise InputError(path, "corrupt", f"{label}: external data without a location, or with unknown entries")
    place = _contained(entries["location"], label, path)
    for key in ("offset", "length"):
        text = entries.get(key, "0")
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise InputError(path, "corrupt", f"{label}: {key} {shown(text, limit=30)} is not a number of bytes")
    try:
        size = os.stat(place).st_size
    except OSError as error:
        text = f"{label} is in '{shown(entries['location'], limit=80)}', which is not beside the model"
        raise InputError(path, "missing", text) from error
    offset = int(entries.get("offset", "0"))
    length = int(entries.get("length", max(0, size - offset)))
    if offset + length > size or length != tensor.nbytes:
        text = f"{label} needs {tensor.nbytes} bytes, the entry says {length} from {offset}, the file has {size}"
        raise InputError(path, "corrupt", text)
    return place, offset, length


def _contained(location: str, label: str, path: Path) -> str:
    """The path of a plain file in the model's folder or below; neither `..` nor links on the way."""
    parts = location.replace("\\", "/").split("/")
    bad = not location or location[0] in "/\\" or ":" in location or "*" in location or not location.isprintable()
    if bad or any(part in ("", ".", "..") for part in parts):
        text = f"{label} is kept at '{shown(location, limit=100)}'; only files beside the model are read"
        raise InputError(path, "unsafe_path", text)
    place = os.path.dirname(os.path.abspath(os.fsdecode(path)))
    for i, part in enumerate(parts):
        place = os.path.join(place, part)
        if not os.path.lexists(place):
            break
        mode = os.lstat(place).st_mode
        if not (stat.S_ISREG(mode) if i == len(parts) - 1 else stat.S_ISDIR(mode)):
            text = f"{label}: '{shown(location, limit=100)}' is a link, a device or a folder; it must be a plain file"
            raise InputError(path, "unsafe_path", text)
    return os.path.join(os.path.dirname(os.path.abspath(os.fsdecode(path))), *parts)


def _inlined(kind: str, data: memoryview, path: Path) -> bytes:
    """The same message with the bytes of every outside tensor put where its address was."""
    inside = _INSIDE.get(kind, {})
    tensor = read_tensor(data, path) if kind == "tensor" else None
    pieces = []
    for number, wire, value, part in pb.fields(data):
        if tensor is not None and tensor.is_external and number in (9, 13, 14):
            continue
        if inside.get(number) in _INSIDE or inside.get(number) == "tensor":
            pieces.append(pb.encoded(number, _inlined(inside[number], part, path)))
        elif wire == pb.VARINT:
            pieces.append(pb.number(number, value))
        elif wire == pb.BYTES:
            pieces.append(pb.encoded(number, bytes(part)))
        else:
            pieces.append(pb.fixed(number, bytes(part)))
    if tensor is not None and tensor.is_external:
        pieces.append(pb.encoded(9, _bytes(tensor, path)))
    return b"".join(pieces)


def _bytes(tensor: Tensor, path: Path) -> bytes:
    if tensor.nbytes == 0:
        return b""
    place, offset, length = _outside(tensor, path)
    stream, _ = open_input(place, max_bytes=1 << 62)
    with stream:
        stream.seek(offset)
        data = stream.read(length)
    if len(data) != length:
        raise InputError(path, "unreadable", "its weights changed while they were being read; try again")
    return data


def _text(part: memoryview) -> str:
    return bytes(part).decode("utf-8")
