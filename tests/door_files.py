# SPDX-License-Identifier: Apache-2.0
"""Small files for the doors, good and bad, made here byte by byte so that what is in them is known."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

W = np.arange(4, dtype=np.float32).reshape(2, 2)


def picture() -> np.ndarray:
    """48 x 32, four corners of different colors."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :24], pixels[:16, 24:] = (220, 30, 30), (30, 200, 30)
    pixels[16:, :24], pixels[16:, 24:] = (30, 30, 220), (240, 240, 240)
    return pixels


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, kind: int, rows: Sequence[bytes], *, extra: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + extra + pixels + chunk(b"IEND", b"")


def tiff(order: str, bits: int, photometric: int, data: bytes, *, sample: int = 1) -> bytes:
    """48 x 32, one sample a pixel, one strip."""
    e = "<" if order == "II" else ">"
    tags = [(256, 48), (257, 32), (258, bits), (259, 1), (262, photometric), (277, 1), (278, 32), (339, sample)]
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    entries = [(tag, struct.pack(e + "HHIHH", tag, 3, 1, value, 0)) for tag, value in tags]
    entries += [(273, struct.pack(e + "HHII", 273, 4, 1, start)), (279, struct.pack(e + "HHII", 279, 4, 1, len(data)))]
    body = b"".join(entry for _, entry in sorted(entries))
    return order.encode() + struct.pack(e + "HIH", 42, 8, len(entries)) + body + struct.pack(e + "I", 0) + data


def safetensors(header: Any, data: bytes = W.tobytes()) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def numbers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(number(value) for value in values) + b"t"


def tensor(
    *,
    key: str = "0",
    kind: str = "FloatStorage",
    count: int = 4,
    offset: int = 0,
    size: Sequence[int] = (2, 2),
    stride: Sequence[int] = (2, 1),
) -> bytes:
    """The instructions that put one tensor on the stack."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"
    arguments = storage + number(offset) + numbers(size) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def state(**entries: bytes) -> bytes:
    """A pickle of a dict of what the instructions make."""
    return b"\x80\x02}(" + b"".join(text(name) + code for name, code in entries.items()) + b"u."


def archive(program: bytes, members: dict[str, bytes] | None = None, *, compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    files = {"data.pkl": program, "byteorder": b"little", "data/0": W.tobytes(), "version": b"3\n", **(members or {})}
    with zipfile.ZipFile(stream, "w", compression) as out:
        for name, data in files.items():
            out.writestr(zipfile.ZipInfo(f"archive/{name}"), data, compression)
    return stream.getvalue()
