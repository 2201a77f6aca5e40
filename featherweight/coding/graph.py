# SPDX-License-Identifier: Apache-2.0
"""An ONNX file as a compact one: its weights become coded tensors, the rest stays as it is, and both go together again.

A weight's bytes are cut out of the file where they stand, and put back there: what comes out is the file that went in,
bit for bit. So a model runs from a compact file where only ONNX Runtime is, without torch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from featherweight.doors import Path
from featherweight.doors import onnx as door
from featherweight.doors import protobuf as pb
from featherweight.doors.stored import Stored
from featherweight.errors import InputError
from featherweight.files import PathLike

from .container import Hole, opened, write
from .streams import AUTO
from .tensors import Packed

REST = "/graph"  # the entry with all bytes that are no weights; no parameter of a module is called so
WORTH = 64  # bytes from which a weight is cut out
_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip


def write_graph(path: PathLike, onnx: bytes, *, coder: str = AUTO) -> dict[str, Packed]:
    """Publish an ONNX file as a compact one; what each weight became. Equal input gives equal bytes."""
    data, tensors, holes, rest, last = memoryview(onnx), dict[str, Stored](), list[Hole](), list[bytes](), 0
    for place, tensor in _weights(data):
        name = f"{REST}/{len(holes)}"
        tensors[name] = tensor
        rest.append(onnx[last:place])
        holes.append((place, name))
        last = place + tensor.nbytes
    rest.append(onnx[last:])
    tensors[REST] = Stored.of(np.frombuffer(b"".join(rest), np.uint8))
    return write(path, tensors, coder=coder, graph=holes)


def read_graph(path: Path) -> bytes:
    """The bytes of the ONNX file that `write_graph` was given, looked through as `doors.onnx` does."""
    with opened(path) as file:
        if file.graph is None or REST not in file.entries:
            text = "holds a model for PyTorch and no graph: load it with featherweight.load, or export it"
            raise InputError(path, "unsupported_format", text)
        rest, pieces, taken, position = bytes(file.tensor(REST).data), list[bytes](), 0, 0
        for place, name in file.graph:
            weight = bytes(file.tensor(name).data)
            before = place - position
            if before < 0 or taken + before > len(rest):
                raise InputError(path, "corrupt", "the graph's weights do not stand in order")
            pieces += [rest[taken : taken + before], weight]
            taken, position = taken + before, place + len(weight)
        return door.checked(b"".join([*pieces, rest[taken:]]), path)


def is_graph(path: Path) -> bool:
    """Whether this compact file holds an ONNX graph; else it holds a model for PyTorch."""
    with opened(path) as file:
        return file.graph is not None


def _weights(data: memoryview) -> Iterator[tuple[int, Stored]]:
    """Where the raw bytes of each initializer of the outermost graph begin, and what they are."""
    start = _address(data)
    for number, wire, _, graph in pb.fields(data):
        if number != 7 or wire != pb.BYTES:
            continue
        for inner, kind, _, tensor in pb.fields(graph):
            if inner == 5 and kind == pb.BYTES:
                found = _weight(tensor)
                if found is not None:
                    raw, stored = found
                    yield _address(raw) - start, stored


def _weight(tensor: memoryview) -> tuple[memoryview, Stored] | None:
    shape, dtype, raw = list[int](), 0, None
    for number, wire, value, part in pb.fields(tensor):
        if number == 1:
            shape.extend([pb.signed(value)] if wire == pb.VARINT else pb.packed(part))
        elif number == 2:
            dtype = value
        elif number == 9:
            raw = part
    if raw is None or len(raw) < WORTH or dtype not in _TYPES:
        return None
    return raw, Stored(_TYPES[dtype], tuple(shape), bytes(raw))


def _address(data: memoryview) -> int:
    found: int = np.frombuffer(data, np.uint8).ctypes.data
    return found
