# SPDX-License-Identifier: Apache-2.0
"""What a pickle is read as, and the names that it may mention: the whole list, there is no other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from featherweight.doors.stored import DTYPES

# Classes without behavior that turn up beside the weights; kept as Inert, whatever their arguments.
HARMLESS = frozenset(
    {
        "argparse.Namespace", "collections.defaultdict", "collections.Counter", "torch.device", "types.SimpleNamespace",
        "pathlib.Path", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib._local.PosixPath",
        "numpy.ndarray", "numpy.dtype", "_codecs.encode",
        "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
    }
)  # fmt: skip
STORAGES = {
    "torch.DoubleStorage": "float64", "torch.FloatStorage": "float32", "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16", "torch.LongStorage": "int64", "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16", "torch.CharStorage": "int8", "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool", "torch.ComplexFloatStorage": "complex64",
    "torch.storage.UntypedStorage": None,
}  # fmt: skip
TYPES = {f"torch.{name}" for name in DTYPES}


@dataclass(frozen=True)
class Name:
    """A dotted name that the file mentions and the table knows."""

    dotted: str


@dataclass(eq=False, repr=False)
class Inert:
    """What stands where the file had an object of a class that was not imported."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    entries: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Storage:
    """The numbers a tensor looks into: which member of the file, of what type (None: plain bytes), how many."""

    key: str
    dtype: str | None
    count: int


@dataclass(frozen=True)
class View:
    """A tensor as the file describes it: not looked up yet, its numbers unchecked."""

    storage: Storage
    dtype: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
