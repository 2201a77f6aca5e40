# SPDX-License-Identifier: Apache-2.0
"""The one reader and writer of weights, without torch: safetensors, and `.pt` read by an allow-list.

Values are checked by `check`, against names, shapes and types the model gives; nothing is mended. What it does not do:
guess a missing weight, load half a file, or run anything a file names.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from featherweight.doors import Path, door, open_input, safetensors, torchfile
from featherweight.doors import json as strict_json
from featherweight.doors.stored import Stored
from featherweight.errors import InputError, OptionError, shown
from featherweight.files import PathLike, publish

__all__ = ["Stored", "check", "read", "read_sealed", "read_tree", "write"]

MAX_BYTES = 64 << 30
_WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<[!?a-zA-Z]")  # a '<' alone may be a header length
_LISTED = 10  # names shown of a long list


def read(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Stored]:
    """The tensors of a `.safetensors` file or of a `.pt`/`.pth` file that holds one flat state dict."""
    tree = read_tree(path, max_bytes=max_bytes)
    if not isinstance(tree, dict):
        raise InputError(path, "bad_schema", f"holds a {_kind(tree)}, not a state dict of named tensors")
    for name, value in tree.items():
        if not isinstance(name, str) or not isinstance(value, Stored):
            what = f"the entry '{shown(name, limit=80)}' is a {_kind(value)}, not a tensor"
            raise InputError(path, "bad_schema", f"{what}; save the state dict alone")
    return tree


def read_tree(path: Path, *, inert: tuple[str, ...] = (), max_bytes: int = MAX_BYTES) -> Any:
    """Everything in a file: for `.pt`/`.pth` dicts, lists, numbers, texts, `Stored` tensors, and `Inert` stand-ins for
    the classes whose dotted name begins with one of `inert`. Nothing is imported or called."""
    with door(path, "corrupt"), _opened(path, max_bytes) as (stream, size, first):
        # By name, so that nothing called safetensors is ever read as anything looser; else by the first bytes.
        if os.fsdecode(path).endswith(".safetensors") or _begins_as_safetensors(first, size):
            return safetensors.read(stream, size, path)[0]
        return torchfile.read(stream, size, path, inert)


def read_sealed(
    path: Path, *, max_bytes: int = MAX_BYTES, mapped: bool = False
) -> tuple[dict[str, Stored], dict[str, str]]:
    """Tensors and metadata of a file made by `write`; refused unless its digest fits. mapped: as in `safetensors`."""
    with door(path, "corrupt"), _opened(path, max_bytes) as (stream, size, _):
        tensors, metadata = safetensors.read(stream, size, path, safetensors.SEALED, mapped=mapped)
        if not {safetensors.NOTE, safetensors.DIGEST} <= metadata.keys():
            raise InputError(path, "not_an_artifact", "carries no digest of ours; it was not written by featherweight")
        note = strict_json.parse(metadata[safetensors.NOTE], path)
        if not isinstance(note, dict) or not all(isinstance(value, str) for value in note.values()):
            raise InputError(path, "bad_header", "our metadata must be an object of texts")
        return tensors, note


def write(path: PathLike, tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> None:
    """A safetensors file with a digest over all its bytes, published whole or not at all; equal input, equal bytes."""
    if "__metadata__" in tensors:
        raise OptionError("tensors", "'__metadata__' cannot be the name of a tensor")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise OptionError("metadata", f"{shown(key)} must be a text with a text, not {type(value).__name__}")
    publish(path, safetensors.encode(tensors, metadata))


def check(tensors: Mapping[str, Stored], spec: Mapping[str, Any], *, name: object = "weights") -> None:
    """Raise unless `tensors` are exactly those of `spec` and every number is finite. `spec` maps names to anything with
    a shape and a dtype: a mapping with these keys, a `Stored`, a torch tensor. `name` is the file's, for messages."""
    check_outline(tensors, spec, name=name)
    check_finite(tensors, name=name)


def check_outline(tensors: Mapping[str, Any], spec: Mapping[str, Any], *, name: object = "weights") -> None:
    """Raise unless names, shapes and types are exactly those of `spec`; numbers are not looked at."""
    missing = [key for key in spec if key not in tensors]
    extra = [key for key in tensors if key not in spec]
    if missing:
        also = f"; not expected: {_listed(extra)}" if extra else ""
        raise InputError(name, "missing_key", f"{len(missing)} tensors are missing: {_listed(missing)}{also}")
    if extra:
        raise InputError(name, "unexpected_key", f"{len(extra)} tensors the model does not have: {_listed(extra)}")
    for key, want in spec.items():
        shape, dtype = _wanted(want)
        if tensors[key].shape != shape:
            text = f"tensor '{shown(key, limit=80)}' has shape {tensors[key].shape}, the model needs {shape}"
            raise InputError(name, "shape_mismatch", text)
        if tensors[key].dtype != dtype:
            text = f"tensor '{shown(key, limit=80)}' is {tensors[key].dtype}, the model needs {dtype}"
            raise InputError(name, "dtype_mismatch", text)


def check_finite(tensors: Mapping[str, Stored], *, name: object = "weights") -> None:
    """Raise if a number is NaN or infinite, naming its tensor."""
    for key, tensor in tensors.items():
        if not tensor.is_finite():
            text = f"tensor '{shown(key, limit=80)}' holds NaN or infinity; the training diverged"
            raise InputError(name, "non_finite", text)


def _wanted(want: Any) -> tuple[tuple[int, ...], str]:
    if isinstance(want, Mapping):
        return tuple(want["shape"]), str(want["dtype"])
    return tuple(want.shape), str(want.dtype).removeprefix("torch.")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(f"'{shown(name, limit=30)}'" for name in names[:_LISTED]) + more


def _kind(value: Any) -> str:
    return value.name if isinstance(value, torchfile.Inert) else type(value).__name__


@contextlib.contextmanager
def _opened(path: Path, max_bytes: int) -> Iterator[tuple[BinaryIO, int, bytes]]:
    """The open file at its start, its size and its first bytes; the usual wrong downloads are told apart here."""
    stream, size = open_input(path, max_bytes=max_bytes)
    with stream:
        first = stream.read(512)
        stream.seek(0)
        if first.startswith(b"version https://git-lfs"):
            raise InputError(path, "not_a_checkpoint", "is a git-lfs pointer, not the weights; run: git lfs pull")
        if _WEB_PAGE.match(first):
            raise InputError(path, "not_a_checkpoint", "is a web page, not weights; download the file itself")
        yield stream, size, first


def _begins_as_safetensors(first: bytes, size: int) -> bool:
    return first[8:9] == b"{" and int.from_bytes(first[:8], "little") <= size - 8
