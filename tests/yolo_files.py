# SPDX-License-Identifier: Apache-2.0
"""Files as YOLOv7's training writes them, made from our models: live modules of classes that do not exist here.

What such a file looks like is in the fact sheet (12): class names, `f` and `i` on each layer, plain attributes, fp16.
"""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.convs import ConvNorm, RepConv
from featherweight.models.yolov7 import YOLOv7
from featherweight.models.yolov7_blocks import SPPCSPC, DownC, Widest

CLASSES = {
    "models.yolo": ("Model", "Detect", "IDetect", "IAuxDetect"),
    "models.common": (
        "Conv", "Concat", "MP", "SP", "ImplicitA", "ImplicitM", "RepConv", "SPPCSPC", "ReOrg", "DownC", "Shortcut",
        "Foreign",
    ),
}  # fmt: skip


@contextmanager
def foreign() -> Iterator[dict[str, type[nn.Module]]]:
    """While inside, the classes can be pickled; afterwards nobody could load them any more."""
    made: dict[str, type[nn.Module]] = {}
    modules = {name: types.ModuleType(name) for name in ("models", *CLASSES)}
    for place, names in CLASSES.items():
        for name in names:
            made[name] = type(name, (nn.Module,), {"__module__": place})
            setattr(modules[place], name, made[name])
    sys.modules.update(modules)
    try:
        yield made
    finally:
        for name in modules:
            del sys.modules[name]


def write(path: Path, model: YOLOv7, *, ema: YOLOv7 | None = None, change: Any = None, **facts: Any) -> Path:
    """A file that holds the model, in fp16 as released; `change(Model)` may damage it before it is written."""
    with foreign() as kinds:
        live = _model(model, kinds, facts).half()
        if change is not None:
            change(live, kinds)
        tree: dict[str, Any] = {"model": live, "optimizer": None, "training_results": None, "epoch": -1}
        if ema is not None:
            state = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.01, "params": [0]}]}
            tree |= {"ema": _model(ema, kinds, facts).half(), "updates": 12, "optimizer": state, "epoch": 3}
        torch.save(tree, path)
    return path


def _model(model: YOLOv7, kinds: Mapping[str, type[nn.Module]], facts: Mapping[str, Any]) -> nn.Module:
    live, model = kinds["Model"](), copy.deepcopy(model)
    live.model = nn.Sequential(*(_layer(model, index, kinds) for index in range(len(model.model))))
    told = {"yaml": {"nc": "__import__('os').abort()"}, "names": [f"kind {n}" for n in range(model.head.num_classes)]}
    for name, value in {**told, "stride": torch.tensor(model.head.strides).float(), **facts}.items():
        setattr(live, name, value)
    return live


def _layer(model: YOLOv7, index: int, kinds: Mapping[str, type[nn.Module]]) -> nn.Module:
    graph, ours = model.graph, model.model[index]
    if index == len(graph.rows):
        kind = "IAuxDetect" if graph.aux else "IDetect" if model.head.ia else "Detect"
        layer, reads = _copied(ours, kinds[kind]()), list(graph.lead + graph.aux)
        layer.nc, layer.nl, layer.na = model.head.num_classes, graph.levels, model.head.num_anchors
        layer.stride = torch.tensor(model.head.strides).float()
        layer.f = reads
    else:
        row = graph.rows[index]
        layer = _block(ours, row.block, kinds)
        near = [-1 if source == index - 1 else source for source in row.sources]
        layer.f = near[0] if len(near) == 1 else near
    layer.i, layer.type, layer.np = index, f"{type(layer).__module__}.{type(layer).__name__}", 0
    return layer


def _block(ours: nn.Module, block: str, kinds: Mapping[str, type[nn.Module]]) -> nn.Module:
    if isinstance(ours, ConvNorm):
        return _copied(ours, kinds["Conv"]())
    if isinstance(ours, (RepConv, SPPCSPC, DownC)):
        layer = _copied(ours, kinds[type(ours).__name__]())
        for name, part in ours.named_children():
            if isinstance(part, ConvNorm):
                setattr(layer, name, _copied(part, kinds["Conv"]()))
        if isinstance(ours, SPPCSPC):
            del layer.pool
            layer.m = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13))
        if isinstance(ours, DownC):
            layer.mp = nn.MaxPool2d(2, 2)
        return layer
    if block == "up":
        return nn.Upsample(None, 2, "nearest")
    layer = kinds[{"cat": "Concat", "add": "Shortcut", "mp": "MP", "sp": "SP", "reorg": "ReOrg"}[block]]()
    if block in ("mp", "sp"):
        layer.m = nn.MaxPool2d(ours.kernel, 1, ours.kernel // 2) if isinstance(ours, Widest) else nn.MaxPool2d(2, 2)
    layer.d = 1
    return layer


def _copied(ours: nn.Module, layer: nn.Module) -> nn.Module:
    """The parameters, buffers and parts of a module of ours on one of another class."""
    for name, tensor in ours.named_parameters(recurse=False):
        layer.register_parameter(name, nn.Parameter(tensor.detach().clone()))
    for name, tensor in ours.named_buffers(recurse=False):
        layer.register_buffer(name, tensor.clone())
    for name, part in ours.named_children():
        if name in ("ia", "im"):
            part = nn.ModuleList(_copied(one, implicit_class(name)()) for one in part)
        if not (name in ("m2", "ia", "im") and len(part) == 0):  # type: ignore[arg-type]
            layer.add_module(name, part)
    return layer


def implicit_class(name: str) -> type[nn.Module]:
    """The foreign class of the implicit vectors that are called so."""
    found: type[nn.Module] = getattr(sys.modules["models.common"], {"ia": "ImplicitA", "im": "ImplicitM"}[name])
    return found
