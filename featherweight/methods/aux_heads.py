# SPDX-License-Identifier: Apache-2.0
"""Auxiliary heads for a detector in training (Wang 2022, 2207.02696): deep supervision with coarser labels.

Each level gets a second head, on the map of the top-down path that the lead head's own map is made from. The lead head
learns from the fine assignment, the auxiliary one from a coarse one, more candidates for each target; both are those of
the lead head's predictions (`tasks.detection`). The heads are gone from the finished model. A model that comes with
auxiliary heads, as the training form of W6 to E6E does, keeps its own.

Partial auxiliary heads, as in E6E, read one half of a doubled block: name those modules in `at`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..convs import ConvNorm
from ..errors import OptionError
from ..modes import evaluating
from ..surgery import Aside, submodule
from ..tasks.detection.detectors import detector_of
from ..train import Method
from .listening import hear, with_listener, without

NAME = "aux_heads"
WIDER = 2  # the 3x3 convolution of a head, against the map it reads


@dataclass(frozen=True)
class AuxHeads(Method):
    """A second head for each level while training.

    at: paths of the modules whose maps the heads read, finest level first; unless given, those the model names.
    """

    at: tuple[str, ...] = ()

    def prepare(self, model: nn.Module) -> nn.Module:
        """A copy with the heads beside it. Raises OptionError for places that are not one per level."""
        head: Any = detector_of(model).head
        if len(getattr(head, "m2", ())):
            return model
        at = tuple(self.at) or _own_places(model)
        if len(at) != len(head.strides):
            raise OptionError("aux_heads.at", f"names {len(at)} modules for {len(head.strides)} levels, one each")
        channels = _channels(model, at, head.strides)
        config = getattr(model, "config", None)
        act = getattr(config, "activation", "") or "silu"
        heads = Branches(channels, head.anchors.shape[1], head.num_classes, head.strides, act)
        new = with_listener(model, NAME, heads)
        for level, path in enumerate(at):
            hear(submodule(new, path), heads.keep, level)
        hear(new, heads.answer)
        if not hasattr(new, "aside"):
            new.aside = Aside()  # type: ignore[assignment]
        return new

    def finish(self, model: nn.Module) -> nn.Module:
        return without(model, NAME) if hasattr(model, NAME) else model


class Branches(nn.Module):
    """Maps of the model -> raw maps (B, A, H_l, W_l, 5 + K), put aside as the model's `aside.aux`."""

    def __init__(
        self, channels: Sequence[int], anchors: int, num_classes: int, strides: Sequence[int], act: str
    ) -> None:
        super().__init__()
        self.anchors, self.strides = anchors, tuple(strides)
        width = anchors * (5 + num_classes)
        self.convs = nn.ModuleList(ConvNorm(c, WIDER * c, 3, act=act) for c in channels)
        self.m2 = nn.ModuleList(nn.Conv2d(WIDER * c, width, 1) for c in channels)
        self.aside = Aside()
        for conv, stride in zip(self.m2, self.strides, strict=True):
            _first_biases(conv, anchors, num_classes, stride)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        found = []
        for x, conv, head in zip(maps, self.convs, self.m2, strict=True):
            raw = head(conv(x))  # (B, A (5 + K), H, W)
            found.append(raw.unflatten(1, (self.anchors, -1)).permute(0, 1, 3, 4, 2))
        return tuple(found)

    def keep(self, level: int, module: nn.Module, args: Any, output: Tensor) -> None:
        """Remember what a level's head reads."""
        if self.training:
            setattr(self.aside, f"level{level}", output)

    def answer(self, model: nn.Module, args: Any, output: Any) -> None:
        """When the model is done: what the heads say, for the loss."""
        if self.training:
            model.aside.aux = self([self.aside.take(f"level{n}") for n in range(len(self.strides))])  # type: ignore[union-attr]


def _own_places(model: nn.Module) -> tuple[str, ...]:
    """Where the model itself says that auxiliary heads would read."""
    sources = getattr(getattr(model, "graph", None), "aux_sources", None)
    if not sources:
        text = f"{type(model).__name__} does not say which maps they read: name a module for each level"
        raise OptionError("aux_heads.at", text)
    return tuple(f"model.{row}" for row in sources)


def _channels(model: nn.Module, at: Sequence[str], strides: Sequence[int]) -> list[int]:
    """The width of each map; OptionError where its size is not that of the level."""
    side = 2 * max(strides)
    like = next(model.parameters())
    seen: dict[str, Tensor] = {}

    def note(path: str) -> Any:
        return lambda _module, _args, output: seen.__setitem__(path, output)

    hooks = [submodule(model, path).register_forward_hook(note(path)) for path in at]
    try:
        with torch.no_grad(), evaluating(model):
            model(torch.zeros(1, 3, side, side, device=like.device, dtype=like.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    for path, stride in zip(at, strides, strict=True):
        found = list(seen[path].shape) if path in seen else None
        if found is None or found[2:] != [side // stride] * 2:
            text = f"{path} puts out {found} for a picture of {side} x {side}; a map of stride {stride} is wanted"
            raise OptionError("aux_heads.at", text)
    return [seen[path].shape[1] for path in at]


@torch.no_grad()
def _first_biases(conv: nn.Conv2d, anchors: int, num_classes: int, stride: int) -> None:
    """As the lead head's: few objects, all classes alike (fact sheet, section 3)."""
    bias = conv.bias.view(anchors, -1)  # type: ignore[union-attr]
    bias[:, 4] += math.log(8 / (640 / stride) ** 2)
    bias[:, 5:] += math.log(0.6 / (num_classes - 0.99))
