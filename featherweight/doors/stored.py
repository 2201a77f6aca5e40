# SPDX-License-Identifier: Apache-2.0
"""A tensor as a file holds it: dtype, shape and bytes, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Buffer = bytes | bytearray | memoryview

# our name (torch's) -> (name in a safetensors header, NumPy's type or None where NumPy has none, bytes per number)
DTYPES: dict[str, tuple[str, str | None, int]] = {
    "bool": ("BOOL", "?", 1),
    "uint8": ("U8", "u1", 1),
    "int8": ("I8", "i1", 1),
    "uint16": ("U16", "<u2", 2),
    "int16": ("I16", "<i2", 2),
    "float16": ("F16", "<f2", 2),
    "bfloat16": ("BF16", None, 2),
    "uint32": ("U32", "<u4", 4),
    "int32": ("I32", "<i4", 4),
    "float32": ("F32", "<f4", 4),
    "uint64": ("U64", "<u8", 8),
    "int64": ("I64", "<i8", 8),
    "float64": ("F64", "<f8", 8),
    "complex64": ("C64", "<c8", 8),
}
_PIECE = 1 << 20  # numbers looked at in one go, so that a check never doubles the memory


@dataclass(frozen=True, eq=False)
class Stored:
    """One tensor: contiguous little-endian `data` of `shape`; scalars have the shape ()."""

    dtype: str
    shape: tuple[int, ...]
    data: Buffer

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise TypeError(f"{self.dtype!r} is not one of {', '.join(DTYPES)}")
        if any(not isinstance(n, int) or n < 0 for n in self.shape):
            raise ValueError(f"shape {self.shape} has a size that is not a whole number >= 0")
        given = memoryview(self.data).nbytes
        if given != self.nbytes:
            raise ValueError(f"{self.dtype} of shape {self.shape} needs {self.nbytes} bytes, not {given}")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype][2]

    def numpy(self) -> np.ndarray:
        """The values as an array on the same bytes; bfloat16, which NumPy lacks, becomes the equal float32."""
        kind = DTYPES[self.dtype][1]
        if kind is not None:
            return np.frombuffer(self.data, dtype=kind).reshape(self.shape)
        bits = np.frombuffer(self.data, dtype=np.dtype("<u2")).astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).reshape(self.shape)

    @classmethod
    def of(cls, array: np.ndarray) -> Stored:
        """An array's values, byte order and layout made plain."""
        name = array.dtype.name
        if name not in DTYPES:
            raise TypeError(f"an array of {name} cannot be stored; use one of {', '.join(DTYPES)}")
        plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        return cls(name, tuple(array.shape), plain.tobytes())

    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        if self.dtype == "bfloat16":
            bits = np.frombuffer(self.data, dtype="<u2")
            return all(_below_infinity(bits[i : i + _PIECE]) for i in range(0, bits.size, _PIECE))
        if not self.dtype.startswith(("float", "complex")):
            return True
        flat = np.frombuffer(self.data, dtype=DTYPES[self.dtype][1])
        return all(bool(np.isfinite(flat[i : i + _PIECE]).all()) for i in range(0, flat.size, _PIECE))

    def is_well_formed(self) -> bool:
        """Whether every byte means something: a truth value is 0 or 1."""
        return self.dtype != "bool" or int(np.frombuffer(self.data, dtype="u1").max(initial=0)) <= 1


def _below_infinity(bits: np.ndarray) -> bool:
    return not bool(((bits & 0x7F80) == 0x7F80).any())
