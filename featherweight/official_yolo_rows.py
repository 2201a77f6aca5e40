# SPDX-License-Identifier: Apache-2.0
"""Rows of a graph from the layers of a file: each is checked to be what our block of that name computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .convs import EPS
from .doors.modules import Module
from .errors import InputError, OptionError, shown
from .models.yolov7 import shapes
from .models.yolov7_graph import Graph, Row
from .models.yolov7_text import MAX_CHANNELS

ACTIVATIONS = {"SiLU": "silu", "LeakyReLU": "leaky_relu", "ReLU": "relu", "Identity": "none"}


def graph_of(layers: Sequence[Module], path: object) -> tuple[Graph, str]:
    """The graph of a file's layers, the head last, and the activation of most plain convolutions.

    InputError names the first layer that is none of ours, or that does something else than ours.
    """
    rows: list[Row] = []
    for number, layer in enumerate(layers[:-1]):
        sources = _sources(layer, number, path)
        read = _ROWS.get(layer.kind)
        if read is None:
            text = f"layer {number} is a {shown(layer.kind, limit=60)}; blocks known here: {', '.join(_ROWS)}"
            raise InputError(path, "unknown_name", text)
        try:
            rows.append(read(layer, sources))
        except (_Other, KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
            text = f"layer {number}, {layer.kind}, is not as ours: {str(error) or type(error).__name__}"
            raise InputError(path, "unknown_name", text) from None
    reads = _sources(layers[-1], len(rows), path)
    levels = layers[-1].facts.get("nl")
    parts = 2 if layers[-1].kind == "IAuxDetect" else 1
    if type(levels) is not int or len(reads) != levels * parts or min(reads) < 0:
        raise InputError(path, "bad_schema", f"its head reads {len(reads)} layers for {str(levels)[:20]} levels")
    acts = [row.act for row in rows if row.block == "conv"]
    usual = max(sorted(set(acts)), key=acts.count) if acts else "silu"
    plain = tuple(Row(**{**vars(row), "act": "" if row.act == usual else row.act}) for row in rows)
    graph = Graph(plain, reads[:levels], reads[levels:])
    try:
        shapes(graph.rows)
    except OptionError as error:
        raise InputError(path, "bad_schema", str(error)) from None
    return graph, usual


class _Other(Exception):
    """A layer has the name of ours and does something else."""


def _need(facts: Mapping[str, Any], **wanted: Any) -> None:
    for name, value in wanted.items():
        if _pair(facts.get(name)) != _pair(value):
            raise _Other(f"{name} is {str(facts.get(name))[:40]}, not {value}")


def _pair(value: Any) -> Any:
    """1 and (1, 1) are the same to a convolution."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


def _sources(layer: Module, number: int, path: object) -> tuple[int, ...]:
    """Absolute numbers of the layers that this one reads."""
    told = layer.facts.get("f")
    listed = told if isinstance(told, (list, tuple)) else [told]
    found = []
    for source in listed:
        place = source if type(source) is not int or source >= 0 else number + source
        if type(place) is not int or not min(0, number - 1) <= place < number:
            raise InputError(path, "bad_schema", f"layer {number} reads {str(told)[:60]}, which is not before it")
        found.append(place)
    if not found or layer.facts.get("i", number) != number:
        raise InputError(path, "bad_schema", f"layer {number} says it is {str(layer.facts.get('i'))[:20]}")
    return tuple(found)


def _conv(layer: Module) -> tuple[int, int, int, str]:
    """Channels, kernel, stride and activation of a convolution with batch norm."""
    if "bn" not in layer.parts or "conv" not in layer.parts:
        raise _Other("its batch norm is merged already; convert the file from before")
    facts = layer.parts["conv"].facts
    kernel, stride = _pair(facts["kernel_size"]), _pair(facts["stride"])
    _need(facts, groups=1, dilation=1, padding=kernel // 2, padding_mode="zeros")
    if type(kernel) is not int or type(stride) is not int or kernel % 2 == 0 or stride not in (1, 2):
        raise _Other(f"kernel {facts['kernel_size']}, stride {facts['stride']}")
    if "bias" in layer.parts["conv"].tensors:
        raise _Other("a convolution with bias before its batch norm")
    _norm(layer.parts["bn"])
    return _channels(facts), kernel, stride, _act(layer.parts["act"])


def _channels(facts: Mapping[str, Any]) -> int:
    channels = facts["out_channels"]
    if type(channels) is not int or not 1 <= channels <= MAX_CHANNELS:
        raise _Other(f"{str(channels)[:40]} channels")
    return channels


def _pools(layer: Module) -> list[Module]:
    """The max pools of a block, in order."""
    inner = [pool for part in layer.parts.values() for pool in _pools(part)]
    return [layer, *inner] if layer.kind == "MaxPool2d" else inner


def _norm(norm: Module) -> None:
    if norm.kind != "BatchNorm2d" or abs(norm.facts["eps"] - EPS) > 1e-9:
        raise _Other(f"{shown(norm.kind, limit=40)} with eps {str(norm.facts.get('eps'))[:20]}, not {EPS}")
    _need(norm.facts, affine=True, track_running_stats=True)


def _act(act: Module) -> str:
    if act.kind not in ACTIVATIONS or act.facts.get("negative_slope", 0.1) != 0.1:
        raise _Other(f"the activation {shown(act.kind, limit=40)} {act.facts.get('negative_slope', '')}")
    return ACTIVATIONS[act.kind]


def _plain(layer: Module, sources: tuple[int, ...]) -> Row:
    channels, kernel, stride, act = _conv(layer)
    return Row("conv", sources, channels, kernel, stride, act)


def _rep(layer: Module, sources: tuple[int, ...]) -> Row:
    if "rbr_dense" not in layer.parts:
        raise _Other("its branches are merged already; convert the file from before")
    dense, point = layer.parts["rbr_dense"].parts, layer.parts["rbr_1x1"].parts
    stride = _pair(dense["0"].facts["stride"])
    _need(dense["0"].facts, kernel_size=3, padding=1, groups=1, dilation=1)
    _need(point["0"].facts, kernel_size=1, padding=0, groups=1, stride=stride)
    for norm in (dense["1"], point["1"]):
        _norm(norm)
    _need({"activation": _act(layer.parts["act"])}, activation="silu")
    if type(stride) is not int:
        raise _Other(f"stride {str(stride)[:40]}")
    return Row("rep", sources, _channels(dense["0"].facts), 3, stride)


def _parts(layer: Module, kernels: Sequence[tuple[str, int, int]]) -> int:
    """Check the convolutions of a block (name, kernel, stride); the channels of the last."""
    channels = 0
    for name, kernel, stride in kernels:
        found = _conv(layer.parts[name])
        if found[1:] != (kernel, stride, "silu"):
            raise _Other(f"{name} has kernel, stride and activation {found[1:]}")
        channels = found[0]
    return channels


def _sppcspc(layer: Module, sources: tuple[int, ...]) -> Row:
    kernels = [("cv1", 1, 1), ("cv2", 1, 1), ("cv3", 3, 1), ("cv4", 1, 1), ("cv5", 1, 1), ("cv6", 3, 1), ("cv7", 1, 1)]
    channels = _parts(layer, kernels)
    for pool, kernel in zip(_pools(layer), (5, 9, 13), strict=True):
        _need(pool.facts, kernel_size=kernel, stride=1, padding=kernel // 2, dilation=1, ceil_mode=False)
    return Row("sppcspc", sources, channels)


def _downc(layer: Module, sources: tuple[int, ...]) -> Row:
    half = _parts(layer, [("cv1", 1, 1), ("cv2", 3, 2), ("cv3", 1, 1)])
    (pool,) = _pools(layer)
    _need(pool.facts, kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    return Row("downc", sources, 2 * half)


def _mp(layer: Module, sources: tuple[int, ...]) -> Row:
    (pool,) = _pools(layer)
    _need(pool.facts, kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    return Row("mp", sources)


def _sp(layer: Module, sources: tuple[int, ...]) -> Row:
    (pool,) = _pools(layer)
    kernel = _pair(pool.facts["kernel_size"])
    if type(kernel) is not int or kernel % 2 == 0:
        raise _Other(f"a window of {str(kernel)[:40]}")
    _need(pool.facts, stride=1, padding=kernel // 2, dilation=1, ceil_mode=False)
    return Row("sp", sources, kernel=kernel)


def _up(layer: Module, sources: tuple[int, ...]) -> Row:
    _need(layer.facts, scale_factor=2.0, mode="nearest", size=None)
    return Row("up", sources)


def _cat(layer: Module, sources: tuple[int, ...]) -> Row:
    _need(layer.facts, d=1)
    return Row("cat", sources)


_ROWS: dict[str, Callable[[Module, tuple[int, ...]], Row]] = {
    "Conv": _plain, "RepConv": _rep, "SPPCSPC": _sppcspc, "DownC": _downc, "MP": _mp, "SP": _sp, "Upsample": _up,
    "Concat": _cat, "Shortcut": lambda layer, sources: Row("add", sources),
    "ReOrg": lambda layer, sources: Row("reorg", sources),
}  # fmt: skip
