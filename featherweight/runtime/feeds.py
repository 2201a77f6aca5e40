# SPDX-License-Identifier: Apache-2.0
"""Inputs for a model that only has to be timed: of the shapes and types that its ports say, or that a user says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featherweight.errors import OptionError, closest, shown
from featherweight.runtime.metadata import preprocess_in
from featherweight.runtime.nms import THRESHOLDS, Nms, thresholds
from featherweight.runtime.session import Array, Arrays, Port

TOKENS = 128  # of a text whose length may vary
SMALL = 2  # whole numbers are below this: they may be places in a table of any size
Shapes = Mapping[str, Sequence[int]]


def made(
    inputs: Sequence[Port],
    metadata: Mapping[str, str],
    path: object,
    *,
    batch: int = 1,
    resolution: tuple[int, int] | None = None,
    images: Array | None = None,
    shapes: Shapes | None = None,
) -> Arrays:
    """Seeded noise for every input, or `images` (N, 3, H, W) repeated; OptionError for a size that nobody says.

    shapes: of inputs by name, whole. Without: `batch` for the first axis, `resolution` for the sides of pictures (or
    what the file says it was made for), 128 tokens for text.
    """
    shapes = shapes or {}
    names = [port.name for port in inputs]
    for name in shapes:
        if name not in names:
            text = f"{shown(path)} has no input {name!r}; {closest(name, names)}Known: {', '.join(names)}"
            raise OptionError("shape", text)
    fixed = thresholds(Nms(), [port.name for port in inputs if port.name in THRESHOLDS])
    found: Arrays = {}
    for number, port in enumerate(inputs):
        if port.name in fixed:
            found[port.name] = fixed[port.name]
            continue
        if images is not None and len(port.shape) == 4:
            found[port.name] = np.resize(images, (batch, *images.shape[1:])).astype(port.dtype)
            continue
        told = shapes.get(port.name)
        shape = _sizes(port, batch, resolution, metadata, path) if told is None else _given(port, told, path)
        if told is None and number == 0 and shape and shape[0] != batch:
            text = f"{shown(path)} takes {shape[0]} at a time, not {batch}; give that batch, or export it with any"
            raise OptionError("batch", text)
        found[port.name] = _noise(port, shape)
    return found


def size_of(array: Array) -> tuple[int, ...]:
    """Height and width of a batch of pictures, (B, C, H, W) or (B, H, W, C); what follows the batch of others."""
    shape = tuple(int(n) for n in array.shape)
    if len(shape) == 4:
        return shape[1:3] if shape[3] in (1, 3) and shape[1] not in (1, 3) else shape[2:]
    return shape[2:]


def _given(port: Port, told: Sequence[int], path: object) -> tuple[int, ...]:
    shape = tuple(int(n) for n in told)
    fits = len(shape) == len(port.shape) and min(shape, default=1) >= 1
    if not fits or any(wanted not in (None, n) for wanted, n in zip(port.shape, shape, strict=False)):
        text = f"{shown(path)}: {port.name!r} takes ({_worded(port)}), not {','.join(map(str, shape))}"
        raise OptionError("shape", text)
    return shape


def _sizes(
    port: Port, batch: int, resolution: tuple[int, int] | None, metadata: Mapping[str, str], path: object
) -> tuple[int, ...]:
    """The port's own sizes, with those that may vary filled in."""
    sizes: list[int | None] = list(port.shape)
    if sizes and sizes[0] is None:
        sizes[0] = batch
    if len(sizes) == 4 and None in sizes[1:]:
        if resolution is None and ("preprocess" in metadata or "imgsz" in metadata):
            resolution = preprocess_in(metadata, path).size
        sides = (1, 2) if sizes[3] in (1, 3) else (2, 3)
        if resolution is not None:
            for axis, side in zip(sides, resolution, strict=True):
                sizes[axis] = side if sizes[axis] is None else sizes[axis]
    if len(sizes) == 2 and sizes[1] is None and port.dtype in ("int64", "int32"):
        sizes[1] = TOKENS
    known = [n for n in sizes if n is not None]
    if len(known) < len(sizes):
        example = ",".join(str(n or 224) for n in sizes)
        text = f"of {port.name!r} in {shown(path)} is ({_worded(port)}): say it, --shape {port.name}={example}"
        if len(sizes) == 4:
            raise OptionError("resolution", f"unknown for this model; give (height, width), or the shape {text}")
        raise OptionError("shape", text)
    return tuple(known)


def _worded(port: Port) -> str:
    return ", ".join("any" if n is None else str(n) for n in port.shape)


def _noise(port: Port, shape: tuple[int, ...]) -> Array:
    rng = np.random.default_rng(0)
    try:
        kind: np.dtype[Any] = np.dtype(port.dtype)
    except TypeError:
        raise OptionError("shape", f"{port.name!r} takes {port.dtype}, which noise cannot be made of") from None
    if kind.kind == "f":
        return rng.standard_normal(shape, dtype=np.float32).astype(kind)
    if kind.kind == "b" or "mask" in port.name:
        return np.ones(shape, kind)
    if kind == np.uint8:
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.integers(0, SMALL, shape).astype(kind)
